"""Where a flow's tasks run: chosen by a parameter of the run, so that the UI's form can move it to a cluster."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

Runner = Literal["threads", "processes", "ray"]

# A step uses every core on its own shard; a second shard at once fills the gaps while tasks start and end.
SHARDS_AT_ONCE = 2


def task_runner(runner: Runner, ray_address: str | None = None) -> TaskRunner[Any]:
    """Threads of this process, processes of this machine, or a Ray cluster (None: the address in RAY_ADDRESS).

    Raises ModuleNotFoundError, with the command that helps, where Ray is asked for and not installed.
    """
    if runner == "threads":
        return ThreadPoolTaskRunner(max_workers=SHARDS_AT_ONCE)
    if runner == "processes":
        return ProcessPoolTaskRunner(max_workers=SHARDS_AT_ONCE)
    if find_spec("prefect_ray") is None:
        raise ModuleNotFoundError('runner "ray" needs prefect-ray: uv pip install "contentv[ray]"')
    from prefect_ray import RayTaskRunner

    starts_its_own = ray_address is None and "RAY_ADDRESS" not in os.environ
    return RayTaskRunner(address=ray_address, init_kwargs={"include_dashboard": False} if starts_its_own else {})


def results(futures: Sequence[PrefectFuture[Any]]) -> list[Any]:
    """Results of tasks, all awaited. Give causes before consequences: the first failure is the one that is raised."""
    for future in futures:
        future.wait()
    return [future.result() for future in futures]


@contextmanager
def tasks_run_on(runner: TaskRunner[Any]) -> Iterator[None]:
    """Submit the tasks of the running flow to ``runner`` while the context lasts."""
    flow_run = FlowRunContext.get()
    if flow_run is None:
        raise RuntimeError("tasks_run_on is for use inside a flow run")
    with runner, flow_run.model_copy(update={"task_runner": runner}):
        yield
