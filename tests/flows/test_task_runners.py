import pytest
from prefect import flow, task
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from flows.task_runners import results, task_runner, tasks_run_on


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
