import os

import pytest
from prefect import flow, task
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from flows.task_runners import asked_of_ray, processes_for, results, task_runner, tasks_run_on
from tasks.tables.step import cores


@task
def breaks() -> int:
    raise OSError(28, "No space left on device")


@task
def follows(value: int) -> int:
    return value


def test_each_name_is_a_runner_of_its_kind():
    assert isinstance(task_runner("threads"), ThreadPoolTaskRunner)
    assert isinstance(task_runner("processes"), ProcessPoolTaskRunner)
    assert type(task_runner("ray")).__name__ == "RayTaskRunner"


def test_the_cause_is_raised_not_its_consequence(prefect_api):
    @flow
    def broken() -> None:
        first = breaks.submit()
        second = follows.submit(first)
        results([first, second])

    with pytest.raises(OSError, match="No space left"):
        broken()


def test_tasks_run_on_the_runner_that_was_chosen(prefect_api):
    @flow
    def chosen() -> int:
        with tasks_run_on(ThreadPoolTaskRunner(max_workers=1)):
            return results([follows.submit(7)])[0]

    assert chosen() == 7


def test_outside_of_a_flow_there_is_nothing_to_run_on():
    with pytest.raises(RuntimeError, match="inside a flow run"), tasks_run_on(task_runner("threads")):
        pass


@task
def cores_here() -> int:
    return cores()


def test_processes_keep_all_cores_busy_and_share_them():
    assert processes_for(64) == (16, 4)
    assert processes_for(2) == (1, 2)
    assert processes_for(6) == (2, 3)
    for count in range(1, 200):
        processes, each = processes_for(count)
        assert each <= 4
        assert count <= processes * each < count + processes


def test_a_process_uses_its_part_of_the_cores(prefect_api, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("flows.task_runners.cores", lambda: 1)

    @flow
    def run() -> int:
        with tasks_run_on(task_runner("processes")):
            return results([cores_here.submit()])[0]

    assert run() == 1
    assert "OMP_NUM_THREADS" not in os.environ


def test_ray_is_asked_for_cores_that_a_node_has_and_an_accelerator_where_one_is_wanted():
    assert asked_of_ray([{"CPU": 64.0}, {"CPU": 2.0}], accelerator=False) == {"num_cpus": 4}
    assert asked_of_ray([{"CPU": 2.0}], accelerator=True) == {"num_cpus": 2}
    assert asked_of_ray([], accelerator=False) == {"num_cpus": 1}
    assert asked_of_ray([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 8.0}], accelerator=True) == {"num_cpus": 4, "num_gpus": 1}
    assert asked_of_ray([{"CPU": 192.0, "NPU": 8.0}], accelerator=True) == {"num_cpus": 4, "resources": {"NPU": 1}}
    assert asked_of_ray([{"CPU": 192.0, "NPU": 8.0}], accelerator=False) == {"num_cpus": 4}
