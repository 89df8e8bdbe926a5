"""Slots of accelerators: by device, over all processes of a machine."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tasks.tables.device import device_slot, names_of, slot

# Takes a slot among the devices that its environment shows, says which, and keeps it until it is told to let go.
HOLD = """
import os, sys, tempfile
tempfile.tempdir = sys.argv[1]
from tasks.tables.device import names_of, slot
with slot(names_of("cuda", int(sys.argv[2]), os.environ)) as number:
    print(number, flush=True)
    sys.stdin.read(1)
"""


@pytest.fixture(autouse=True)
def own_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Device slots of this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def holder(folder: Path, count: int, **environment: str) -> subprocess.Popen[str]:
    """A process that sees ``count`` devices and holds the slot of one."""
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-c", HOLD, str(folder), str(count)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def number(process: subprocess.Popen[str]) -> int:
    """Which of its devices a process holds, once it does."""
    assert process.stdout
    return int(process.stdout.readline())


def test_two_processes_use_both_devices_of_a_machine(tmp_path: Path) -> None:
    with holder(tmp_path, 2) as one, holder(tmp_path, 2) as other:
        assert {number(one), number(other)} == {0, 1}
        one.communicate("x")
        other.communicate("x")


def test_workers_that_see_one_device_each_do_not_take_turns(tmp_path: Path) -> None:
    with holder(tmp_path, 1, CUDA_VISIBLE_DEVICES="2") as one, holder(tmp_path, 1, CUDA_VISIBLE_DEVICES="3") as other:
        assert (number(one), number(other)) == (0, 0)  # both at once
        with slot(["cuda-2", "cuda-3", "cuda-1"]) as free:  # a process that sees more of them takes none of these
            assert free == 2
        one.communicate("x")
        other.communicate("x")


def test_processes_that_see_the_same_device_do(tmp_path: Path) -> None:
    with holder(tmp_path, 1, CUDA_VISIBLE_DEVICES="1") as one:
        assert number(one) == 0
        with holder(tmp_path, 2, CUDA_VISIBLE_DEVICES="1,0") as two:
            assert number(two) == 1  # the first of its devices is taken
            with holder(tmp_path, 2) as waits:
                two.communicate("x")
                assert number(waits) == 0
                waits.communicate("x")
        one.kill()  # whoever dies lets go
    with slot(["cuda-1"]) as free:
        assert free == 0


@pytest.mark.parametrize(
    ("kind", "count", "environment", "names"),
    [
        ("cuda", 2, {}, ["cuda-0", "cuda-1"]),
        ("cuda", 2, {"CUDA_VISIBLE_DEVICES": "3, 1"}, ["cuda-3", "cuda-1"]),
        ("cuda", 1, {"CUDA_VISIBLE_DEVICES": "GPU-8f6b"}, ["cuda-GPU-8f6b"]),
        ("cuda", 1, {"CUDA_VISIBLE_DEVICES": "2,-1,0"}, ["cuda-2"]),  # what follows a number that is none is not seen
        ("cuda", 1, {"HIP_VISIBLE_DEVICES": "5"}, ["cuda-5"]),
        ("cuda", 1, {"ASCEND_RT_VISIBLE_DEVICES": "5"}, ["cuda-0"]),
        ("npu", 2, {"ASCEND_RT_VISIBLE_DEVICES": "6,7"}, ["npu-6", "npu-7"]),
        ("xpu", 1, {"ZE_AFFINITY_MASK": "1.0"}, ["xpu-1.0"]),
        ("mps", 1, {}, ["mps-0"]),
    ],
)
def test_a_device_is_named_as_the_machine_names_it(
    kind: str, count: int, environment: dict[str, str], names: list[str]
) -> None:
    assert names_of(kind, count, environment) == names


def test_the_cpu_needs_no_slot() -> None:
    with device_slot("cpu") as none:
        assert none is None
