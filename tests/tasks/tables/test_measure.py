"""The driver of scores: full batches, rows that are never mixed up, one odd clip that costs itself alone."""

import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.tables import parts, storage
from tasks.tables.clip import Clip
from tasks.tables.measure import Chosen, in_order, measure, uris_of
from tasks.tables.score import Column, Score, plain, plain_per_source
from tasks.tables.step import StepConfig
from tests.tasks.rows import half_bright, read, seconds_of, store, write

SOURCES, CLIPS = 3, 3


@pytest.fixture(autouse=True)
def own_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Device slots of this test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def shard(tmp_path: Path) -> list[str]:
    """The tables of three sources of three clips each; one clip more is too short."""
    rows = seconds_of(SOURCES, CLIPS)
    for s in range(SOURCES):
        store(tmp_path, half_bright(), f"frames/{s}")
    short = rows[-1] | {"clip_id": "short", "rejected_by": ["too_short"]}
    sources = [row | {"error": None} for row in rows[::CLIPS]]
    scanned, cut = write(tmp_path, "scan", sources), write(tmp_path, "cut", [*rows, short])
    return [scanned, cut, write(tmp_path, "dedup clips", [row | {"rejected_by": []} for row in [*rows, short]])]


class Network:
    """A scorer on an accelerator, which says of each clip which one it is, and remembers its batches."""

    weights: str | None = "w0"
    device = "accelerator"

    def __init__(self, batch: int = 4, fits: int = 99, spoilt: str = "") -> None:
        self.batch, self.fits, self.spoilt = batch, fits, spoilt
        self.batches: list[list[str]] = []

    def prepare(self, seen: Clip) -> str:
        time.sleep(0.002 * (ord(seen.row["clip_id"][-1]) % 3))
        return str(seen.row["clip_id"])

    def score(self, samples: Sequence[str]) -> list[dict[str, Any]]:
        if len(samples) > self.fits:
            raise type("OutOfMemoryError", (RuntimeError,), {})(f"{len(samples)} samples")
        if self.spoilt in samples:
            raise ValueError("a sample that cannot be scored")
        self.batches.append(list(samples))
        return [{"which": float(name)} for name in samples]


def score_of(scorer: Any, name: str = "which", **more: Any) -> Chosen:
    columns = (Column(name, "which clip it is"),)
    return Chosen(Score(f"{name} score", columns=columns, scorers={"own": lambda config: scorer}, **more), StepConfig())


def function(work: Any, name: str = "level", **more: Any) -> Chosen:
    """A score that is a function on the CPU."""
    make = plain_per_source if more.get("per_source") else plain
    return Chosen(Score(name, columns=(Column(name, ""),), scorers={"own": make(work)}, **more), StepConfig())


def values(uri: str, column: str) -> dict[str, Any]:
    return {row["clip_id"]: row[column] for row in read(uri)}


def test_batches_are_full_across_clips_and_sources_and_rows_are_not_mixed_up(shard: list[str]) -> None:
    network = Network(batch=4)
    found = values(measure([score_of(network)], shard, {})["which score"], "which")
    assert [len(batch) for batch in network.batches] == [4, 4, 1]
    assert found == {f"{s}{c}": float(f"{s}{c}") for s in range(SOURCES) for c in range(CLIPS)} | {"short": None}


def test_the_same_shard_makes_the_same_batches(shard: list[str], tmp_path: Path) -> None:
    first, second = Network(), Network()
    for network, weights in ((first, "a"), (second, "b")):
        network.weights = weights
        measure([score_of(network, needs=())], shard, {})
    assert first.batches == second.batches


def test_a_batch_that_does_not_fit_is_halved_down_to_what_does(shard: list[str]) -> None:
    network = Network(batch=4, fits=1)
    uri = measure([score_of(network)], shard, {})["which score"]
    assert [len(batch) for batch in network.batches] == [1] * 9
    assert None not in [row["which"] for row in read(uri) if row["clip_id"] != "short"]


def test_a_sample_that_does_not_fit_alone_is_an_error_of_its_clip_and_the_table_is_not_final(shard: list[str]) -> None:
    chosen = score_of(Network(fits=0))
    uri = measure([chosen], shard, {})["which score"]
    assert uri != uris_of([chosen], shard, {})["which score"]
    errors = {row["error"] for row in read(uri) if row["clip_id"] != "short"}
    assert errors == {
        f"which score: {s}.mp4: one sample does not fit the device's memory: 1 samples" for s in range(SOURCES)
    }


def test_a_sample_that_spoils_its_batch_is_an_error_and_the_others_have_their_scores(shard: list[str]) -> None:
    uri = measure([score_of(Network(spoilt="11"))], shard, {})["which score"]
    rows = {row["clip_id"]: row for row in read(uri)}
    assert rows.pop("11")["error"] == "which score: 1.mp4: a sample that cannot be scored"
    assert all(row["error"] is None and row["which"] == float(name) for name, row in rows.items() if name != "short")


def test_a_passing_fault_is_measured_again_by_the_next_run_and_nothing_else_is(shard: list[str]) -> None:
    network = Network(spoilt="11")
    calls: list[str] = []

    def fails_once(seen: Clip) -> str:
        calls.append(seen.row["clip_id"])
        if seen.row["clip_id"] == "11" and calls.count("11") == 1:
            raise TimeoutError("no answer")
        return str(seen.row["clip_id"])

    network.prepare, network.spoilt = fails_once, ""  # type: ignore[method-assign]
    chosen = score_of(network)
    first = measure([chosen], shard, {})["which score"]
    assert {row["error"] for row in read(first)} == {None, "which score: 1.mp4: no answer"}
    second = measure([chosen], shard, {})["which score"]
    assert second == uris_of([chosen], shard, {})["which score"] != first
    assert values(second, "which")["11"] == 11.0
    assert {name: calls.count(name) for name in calls} == {name: 1 + (name == "11") for name in calls}
    assert not [name for name in storage.list_below(storage.join(second.rsplit("/", 1)[0])) if ".part" in name]


def test_what_a_killed_run_had_measured_is_not_measured_again(
    shard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_S", 0)
    killed, second = Network(batch=2), Network(batch=2)
    score = killed.score

    def dies(samples: Sequence[str]) -> list[dict[str, Any]]:
        if len(killed.batches) == 3:
            raise KeyboardInterrupt
        return score(samples)

    killed.score = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        measure([score_of(killed)], shard, {})
    uri = measure([score_of(second)], shard, {})["which score"]
    assert {name for batch in second.batches for name in batch} == set(values(uri, "which")) - {
        "short",
        *(name for batch in killed.batches for name in batch),
    }
    assert sum(map(len, killed.batches)) == 6
    assert all(found == float(name) for name, found in values(uri, "which").items() if name != "short")


def test_the_pictures_of_a_source_are_opened_once_for_all_scores(
    shard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.tables.clip as module

    opened: list[str] = []
    open_frames = module.open_frames
    monkeypatch.setattr(module, "open_frames", lambda uri: opened.append(uri) or open_frames(uri))

    def level(seen: Clip, _: object) -> dict[str, float]:
        return {"level": float(np.mean([frame.image.mean() for frame in seen.frames(1)]))}

    def again(seen: Clip, config: object) -> dict[str, float]:
        return {"again": level(seen, config)["level"]}

    uris = measure([function(level), function(again, "again")], shard, {})
    assert len(opened) == len(set(opened)) == SOURCES
    assert values(uris["level"], "level")["00"] == pytest.approx(100, abs=3)
    opened.clear()
    measure([score_of(Network())], shard, {})
    assert len(opened) == len(set(opened)) == SOURCES  # also where clips are prepared in threads


def test_scores_see_the_crop_of_what_they_need_and_no_other(shard: list[str]) -> None:
    def crops(seen: Clip, _: object) -> dict[str, int]:
        return {"crop_x": 32, "crop_w": 32}

    def level(seen: Clip, _: object) -> dict[str, float]:
        return {"level": float(seen.frames(1)[0].image.mean())}

    cropped = Chosen(Score("crops", columns=(), scorers={"own": plain(crops)}, moves_crop=True), StepConfig())
    uris = measure([cropped, function(level, needs=("crops",))], shard, {})
    assert values(uris["level"], "level")["00"] == pytest.approx(200, abs=3)
    whole = measure([cropped, function(level)], shard, {})
    assert values(whole["level"], "level")["00"] == pytest.approx(100, abs=3)


def test_a_score_whose_need_failed_is_not_measured_and_the_others_are(shard: list[str]) -> None:
    def fails(seen: Clip, _: object) -> dict[str, float]:
        if seen.row["clip_id"] == "11":
            raise LookupError("no such thing")
        return {"first": 1.0}

    seen_by: dict[str, list[str]] = {"needs": [], "free": []}

    def watch(name: str) -> Any:
        return lambda seen, _: seen_by[name].append(seen.row["clip_id"]) or {name: 2.0}

    first = function(fails, "first")
    others = [function(watch("needs"), "needs", needs=("first",)), function(watch("free"), "free")]
    uris = measure([first, *others], shard, {})
    assert sorted(seen_by["free"]) == sorted([*seen_by["needs"], "11"])
    errors = {name: {row["clip_id"]: row["error"] for row in read(uris[name])}["11"] for name in uris}
    assert errors == {"first": "first: 1.mp4: no such thing", "needs": "first: 1.mp4: no such thing", "free": None}


def test_the_content_of_a_score_does_not_depend_on_what_else_is_known(shard: list[str]) -> None:
    def level(seen: Clip, _: object) -> dict[str, float]:
        return {"level": 1.0}

    def fails(seen: Clip, _: object) -> dict[str, float]:
        raise LookupError

    alone = read(measure([function(level)], shard, {})["level"])
    measured = measure([function(fails, "other")], shard, {})
    after = measure([function(level, version=2)], shard, measured)["level"]
    assert read(after) == alone


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), np.float32("nan"), 1e300, "three", [1.0]])
def test_a_value_that_is_no_number_is_an_error_of_its_clip(shard: list[str], odd: Any) -> None:
    def level(seen: Clip, _: object) -> dict[str, Any]:
        return {"level": odd if seen.row["clip_id"] == "11" else 1.0}

    rows = {row["clip_id"]: row for row in read(measure([function(level)], shard, {})["level"])}
    assert rows["11"]["level"] is None and rows["11"]["error"].startswith("level: 1.mp4: ")
    assert [name for name, row in rows.items() if row["level"] is None] == ["11", "short"]


def test_of_a_source_whose_clips_are_measured_together_one_odd_value_costs_one_clip(shard: list[str]) -> None:
    def levels(seen: Sequence[Clip], _: object) -> list[dict[str, float]]:
        return [{"level": float("nan") if each.row["clip_id"] == "10" else 1.0} for each in seen]

    rows = read(measure([function(levels, per_source=True)], shard, {})["level"])
    assert [row["clip_id"] for row in rows if row["error"]] == ["10"]


def test_scorers_per_source_get_all_clips_of_a_source_also_in_batches(shard: list[str]) -> None:
    class PerSource(Network):
        def prepare(self, seen: Any) -> Any:
            return [each.row["clip_id"] for each in seen]

        def score(self, samples: Any) -> Any:
            self.batches.append([name for sample in samples for name in sample])
            return [[{"which": float(name)} for name in sample] for sample in samples]

    network = PerSource(batch=2)
    found = values(measure([score_of(network, per_source=True)], shard, {})["which score"], "which")
    assert [len(batch) for batch in network.batches] == [6, 3]
    assert all(value == float(name) for name, value in found.items() if name != "short")


def test_a_scorer_that_loses_a_row_or_adds_a_column_is_an_error_of_the_clips(shard: list[str]) -> None:
    class Loses(Network):
        def score(self, samples: Sequence[str]) -> list[dict[str, Any]]:
            return super().score(samples)[1:]

    rows = read(measure([score_of(Loses())], shard, {})["which score"])
    assert all("returned 0 results for 1 samples" in row["error"] for row in rows if row["clip_id"] != "short")

    def strange(seen: Clip, _: object) -> dict[str, float]:
        return {"level": 1.0, "lvl": 1.0}

    rows = read(measure([function(strange)], shard, {})["level"])
    assert "lvl, which the score does not declare" in rows[0]["error"]


def test_failing_storage_ends_the_step_and_is_no_error_of_a_clip(shard: list[str], tmp_path: Path) -> None:
    (tmp_path / "frames" / "1" / "samples.parquet").unlink()

    def level(seen: Clip, _: object) -> dict[str, float]:
        return {"level": float(seen.frames(1)[0].image.mean())}

    with pytest.raises(FileNotFoundError, match="decode the sources again") as caught:
        measure([function(level)], shard, {})
    assert isinstance(caught.value, storage.OutputError)
    assert not (tmp_path / "steps" / "level").exists()


def test_pieces_are_runs_of_scores_on_the_cpu_and_each_one_on_an_accelerator() -> None:
    cpu = [function(len, name) for name in "abc"]
    needs = function(len, "d", needs=("which score",))
    pieces = in_order([cpu[0], needs, cpu[1], score_of(Network()), cpu[2]])
    assert [[each.name for each in piece] for piece in pieces] == [["a", "b"], ["which score"], ["d", "c"]]
    with pytest.raises(ValueError, match="need what is not measured"):
        in_order([needs])


def test_a_declaration_that_changed_has_a_scorer_of_its_own(shard: list[str]) -> None:
    first = function(lambda seen, _: {"level": 1.0})
    second = function(lambda seen, _: {"level": 2.0}, version=2)
    found = [values(measure([each], shard, {})["level"], "level")["00"] for each in (first, second)]
    assert found == [1.0, 2.0]


def test_other_weights_are_another_result(shard: list[str]) -> None:
    first, second = Network(), Network()
    second.weights = "w1"
    assert uris_of([score_of(first)], shard, {}) != uris_of([score_of(second)], shard, {})


class TwoDevices:
    """A machine with two accelerators, as torch speaks of them: each thread has its current one."""

    def __init__(self) -> None:
        self._thread = threading.local()

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def current_accelerator(self) -> torch.device:
        return torch.device("cuda")

    def current_device_index(self) -> int:
        return getattr(self._thread, "number", 0)

    def set_device_index(self, number: int) -> None:
        self._thread.number = number


def test_two_shards_at_once_use_both_devices_each_with_a_network_of_its_own(
    shard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, both = TwoDevices(), threading.Barrier(2, timeout=30)
    monkeypatch.setattr(torch, "accelerator", devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    class Loaded(Network):
        loaded_on: int | None = None
        scored_on: set[int]

        def score(self, samples: Sequence[str]) -> list[dict[str, Any]]:
            if self.loaded_on is None:
                self.loaded_on, self.scored_on = devices.current_device_index(), set()
                both.wait()  # only where two shards are measured at once do both get here
            self.scored_on.add(devices.current_device_index())
            return super().score(samples)

    made: list[Loaded] = []
    score = Score(
        *("which score", (Column("which", ""),)), scorers={"own": lambda config: made.append(Loaded()) or made[-1]}
    )
    after: list[int] = []

    def run(version: int) -> None:
        measure([Chosen(replace(score, version=version), StepConfig())], shard, {})
        after.append(devices.current_device_index())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (1, 2)))
    assert sorted((one.loaded_on, one.scored_on) for one in made) == [(0, {0}), (1, {1})]
    assert after == [0, 0]  # as it was before
    assert all(sum(map(len, one.batches)) == SOURCES * CLIPS for one in made)
