"""How many samples are trained at once: what fits, what the run says, and on every rank the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from models.checkpoint import read_config
from tests.training.distributed.test_parallel import four_ranks
from tests.training.small_data import small_recipe, small_run, write_data
from training.data.buckets import Bucket
from training.data.manifest import Manifest, open_manifest
from training.distributed.layout import Layout
from training.distributed.machine import MachineConfig
from training.distributed.parallel import Parallel
from training.distributed.prepare import on_meta, prepare
from training.memory.micro_batch import agreed_samples_at_once, device_memory, memory_plan, samples_at_once
from training.memory.plan import DoesNotFit, MemoryPlan, plan_memory
from training.memory.step import Setup

RECIPE = small_recipe(frames=49, height=144, width=256, video_batch=64, image_batch=64, bucket_run=8)
BUCKETS = [Bucket(0, "16x9"), Bucket(2, "16x9")]
MEMORY_GB = [1.4, 1.0, 1.2, 1.6]  # of the devices of four ranks
TOO_LITTLE_GB = 0.7


def run_on(memory_gb: float | None = None, **machine: Any) -> Any:
    config = MachineConfig(memory_gb=memory_gb, **machine)
    return small_run("nowhere", Path("nowhere"), recipe=RECIPE, machine=config)


def planned(memory_gb: float) -> MemoryPlan:
    setup = Setup(read_config("tiny"), Layout())
    return plan_memory(RECIPE, setup, memory_gb * 1e9, buckets=BUCKETS)


def in_rank(parallel: Parallel) -> dict[str, Any]:
    """On one of four ranks: what pairs and all four agree on, and what they say where one of them has too little."""
    memory = MEMORY_GB[parallel.rank]
    pairs, _ = dist.new_subgroups(2, backend="gloo")
    found: dict[str, Any] = {"own": planned(memory).at_once}
    for name, group in (("pair", pairs), ("all", parallel.cpu_group)):
        together = replace(parallel, cpu_group=group)
        found[name] = agreed_samples_at_once(run_on(memory), planned(memory), together)
    try:
        agreed_samples_at_once(run_on(), planned(TOO_LITTLE_GB if parallel.rank == 2 else memory), parallel)
    except DoesNotFit as problem:
        found["refused"] = str(problem)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return [each["at once"] for each in four_ranks(tmp_path_factory)[1]]


def test_ranks_of_unequal_memory_train_with_what_the_smallest_takes(ranks: list[dict[str, Any]]) -> None:
    own = [found["own"] for found in ranks]
    assert len({at_once[33] for at_once in own}) > 1  # else there is nothing to agree on
    assert [found["pair"] for found in ranks] == [own[1], own[1], own[2], own[2]]
    assert [found["all"] for found in ranks] == [own[1]] * 4


def test_where_one_rank_cannot_take_a_sample_all_are_refused_and_none_waits(ranks: list[dict[str, Any]]) -> None:
    assert "does not fit devices of 0.7 GB" in ranks[2]["refused"]
    assert all("another rank has less memory" in ranks[rank]["refused"] for rank in (0, 1, 3))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data")
    return open_manifest([write_data(folder)], folder / "cache")


@pytest.mark.effect("MachineConfig.memory_gb")
def test_more_memory_takes_more_samples_at_once(manifest: Manifest) -> None:
    at_once = []
    for memory_gb in (1.0, 1.5):
        run = run_on(memory_gb)
        model = prepare("tiny", run.machine, on_meta(Layout()), 0)
        at_once.append(samples_at_once(run, memory_plan(run, manifest, model, Layout())))
    assert all(at_once[0][frames] < at_once[1][frames] for frames in at_once[0] if frames > 1)


@pytest.mark.effect("MachineConfig.micro_batch")
def test_what_the_run_says_is_taken_at_once_even_where_it_does_not_fit() -> None:
    assert set(samples_at_once(run_on(micro_batch=3), planned(TOO_LITTLE_GB)).values()) == {3}
    with pytest.raises(DoesNotFit):
        samples_at_once(run_on(), planned(TOO_LITTLE_GB))


def test_the_plan_is_of_what_the_prepared_model_computes_again(manifest: Manifest) -> None:
    plans = []
    for mode, every in (("none", 1), ("full", 2), ("full", 1)):
        run = run_on(4.0, recompute=mode, recompute_every=every)
        model = prepare("tiny", run.machine, on_meta(Layout()), 0)
        plans.append(memory_plan(run_on(4.0), manifest, model, Layout()))  # the run's own setting is not looked at
        assert plans[-1].setup.recomputation == model.recompute
    peaks = [each.costliest[-1].sample_bytes for each in plans]
    assert peaks == sorted(set(peaks), reverse=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_without_a_device_to_ask_its_memory_is_asked_for_in_words() -> None:
    with pytest.raises(ValueError, match=r"no cuda .* say how much .* machine\.memory_gb"):
        device_memory(MachineConfig(device="cuda"), 8)
    assert device_memory(MachineConfig(device="cuda", memory_gb=64), 8) == 64e9
