"""Where a flow's tasks run: chosen by a parameter of the run, so that the UI's form can move it to a cluster."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from math import ceil
from typing import Any, Literal

from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from tasks.tables.checks import PreflightError
from tasks.tables.step import cores

Runner = Literal["threads", "processes", "ray"]

# A step uses every core on its own shard; a second shard at once fills the gaps while tasks start and end.
SHARDS_AT_ONCE = 2
# What one process keeps busy: beyond, its threads wait for each other (a process saturates at 6 to 7 cores).
CORES_A_PROCESS = 4
# What clusters call their accelerators, and Ray's option that asks for one.
ACCELERATORS: dict[str, dict[str, Any]] = {"GPU": {"num_gpus": 1}, "NPU": {"resources": {"NPU": 1}}}


def processes_for(cores: int) -> tuple[int, int]:
    """How many processes a machine's cores keep busy, and how many cores each of them uses."""
    processes = ceil(cores / CORES_A_PROCESS)
    return processes, ceil(cores / processes)


def task_runner(runner: Runner, ray_address: str | None = None) -> TaskRunner[Any]:
    """Threads of this process, processes of this machine, or a Ray cluster (None: the address in RAY_ADDRESS).

    Raises PreflightError, with the command that helps, where Ray is asked for and not installed.
    """
    if runner == "threads":
        return ThreadPoolTaskRunner(max_workers=SHARDS_AT_ONCE)
    if runner == "processes":
        return ProcessPoolTaskRunner(max_workers=processes_for(cores())[0])
    if find_spec("prefect_ray") is None:
        raise PreflightError('runner "ray" needs prefect-ray: uv pip install "contentv[ray]"')
    from prefect_ray import RayTaskRunner

    starts_its_own = ray_address is None and "RAY_ADDRESS" not in os.environ
    return RayTaskRunner(address=ray_address, init_kwargs={"include_dashboard": False} if starts_its_own else {})


def asked_of_ray(nodes: Sequence[dict[str, float]], accelerator: bool) -> dict[str, Any]:
    """Ray's options for a task: CORES_A_PROCESS, or all cores of the largest of ``nodes`` (the resources of each) where
    it has fewer; and an accelerator of the first kind that there is, where the task wants one.

    Ray says the number of cores to the task in OMP_NUM_THREADS, which ``cores()`` reads.
    """
    most = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    options: dict[str, Any] = {"num_cpus": max(1, min(CORES_A_PROCESS, int(most)))}
    kinds = [kind for kind in ACCELERATORS if any(node.get(kind, 0.0) >= 1 for node in nodes)]
    return options | (ACCELERATORS[kinds[0]] if accelerator and kinds else {})


@contextmanager
def resources(accelerator: bool = False) -> Iterator[None]:
    """Let the tasks that are submitted inside ask Ray for cores, and for an accelerator where they want one.

    Threads and processes share their machine's devices by slots (tasks/tables/device.py).
    """
    flow_run = FlowRunContext.get()
    if flow_run is None or type(flow_run.task_runner).__name__ != "RayTaskRunner":
        yield
        return
    import ray
    from prefect_ray.context import remote_options

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with remote_options(**asked_of_ray(nodes, accelerator)):
        yield


def results(futures: Sequence[PrefectFuture[Any]]) -> list[Any]:
    """Results of tasks, all awaited. Give causes before consequences: the first failure is the one that is raised."""
    for future in futures:
        future.wait()
    return [future.result() for future in futures]


@contextmanager
def tasks_run_on(runner: TaskRunner[Any]) -> Iterator[None]:
    """Submit the tasks of the running flow to ``runner`` while the context lasts.

    Raises PreflightError where a Ray cluster cannot be reached.
    """
    flow_run = FlowRunContext.get()
    if flow_run is None:
        raise RuntimeError("tasks_run_on is for use inside a flow run")
    with ExitStack() as stack:
        if isinstance(runner, ProcessPoolTaskRunner):
            stack.enter_context(_cores_divided())
        try:
            stack.enter_context(runner)
        except ConnectionError as problem:
            raise PreflightError(f"the Ray cluster cannot be reached: {problem}") from problem
        with flow_run.model_copy(update={"task_runner": runner}):
            yield


@contextmanager
def _cores_divided() -> Iterator[None]:
    """Let each process that is started inside use its part of the cores: OMP_NUM_THREADS, which ``cores()`` reads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(processes_for(cores())[1])
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
