"""What a changed setting makes again: the results that read it, and those that need these; no other."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from models.scoring.weights import CHECKPOINTS
from tasks.curation import blur, motion
from tasks.curation import caption as caption_module
from tasks.curation.buckets import buckets
from tasks.curation.caption import caption
from tasks.curation.clips import clips
from tasks.curation.cut import cut
from tasks.curation.dedup_clips import dedup_clips
from tasks.curation.dedup_sources import dedup_sources
from tasks.curation.embed import embed
from tasks.curation.filter import OwnFilter
from tasks.curation.measure import measure, pieces
from tasks.curation.scan import scan
from tasks.curation.settings import CurationConfig
from tasks.curation.verdict import verdict
from tasks.tables.keys import step_of
from tasks.tables.shards import write_shards
from tasks.tables.sources import find_sources
from tests.tasks.curation.own_filters import DARK
from tests.tasks.rows import clip, read, store, tables

OWN = [OwnFilter.of(DARK)]
OWN_STEP = "filter-darkness-of-tests-tasks-curation-own_filters-dark"
AFTER = {"verdict", "caption", "buckets", "clips"}
LOOKS = {"blur", "motion", "aesthetics", OWN_STEP}  # at the crop that overlays leaves
SHOTS = {"cut", "dedup-clips", "text", "overlays"} | LOOKS | AFTER
# The results that a group of settings decides, with those that need them.
DECIDES = {
    "scan": {"scan", "embed", "dedup-sources"} | SHOTS,
    "dedup_sources": set[str](),  # a result is named after its outcome, and the outcome is the same here
    "cut": SHOTS,
    "dedup_clips": SHOTS - {"cut"},
    "text": {"text", "overlays"} | LOOKS | AFTER,
    "overlays": {"overlays"} | LOOKS | AFTER,
    "blur": {"blur"} | AFTER,
    "motion": {"motion"} | AFTER,
    "aesthetics": {"aesthetics"} | AFTER,
    "verdict": AFTER,
}
# What decides whether a source can be decoded on this machine, and nothing about what it then shows.
LIMITS_OF_DECODING = ("scan.decode_max_s", "scan.decode_max_s_per_gb", "scan.memory_max_gib", "scan.retry_wait_s")
OTHER_SCORERS = {"aesthetics.scorer": "clip", "motion.scorer": "gmflow"}


def leaves(config: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a config, by its path, with its value."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


SETTINGS = dict(leaves(CurationConfig()))


def changed(path: str) -> CurationConfig:
    """The default config with another value, which is allowed there, of one setting."""
    value = SETTINGS[path]
    candidates: list[Any] = [{"filter": DARK, "low": 1.0}], not value
    if path in OTHER_SCORERS:
        candidates = [OTHER_SCORERS[path]]
    elif value is None:
        candidates = [100]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        candidates = [type(value)(value * 0.9), value + 1, value - 1]
    for candidate in candidates:
        settings: Any = [candidate] if isinstance(candidate, dict) else candidate
        for name in reversed(path.split(".")):
            settings = {name: settings}
        try:
            config = CurationConfig.model_validate(settings)
        except ValidationError:
            continue
        if config != CurationConfig():
            return config
    raise AssertionError(f"{path}: no other value is allowed")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of all steps of a shard whose one source cannot be read, under a config: step to URI."""
    root = tmp_path_factory.mktemp("run")
    (root / "videos").mkdir()
    (root / "videos" / "a.mp4").touch()
    (listed,) = write_shards(find_sources(str(root / "videos")), str(root / "out"), 64)

    @cache
    def scanned(config: BaseModel) -> str:
        return scan.fn(listed, config)

    def run(config: CurationConfig) -> dict[str, str]:
        seen = scanned(config.scan)
        embedded = embed.fn(seen)
        (unique,) = dedup_sources.fn([seen], [embedded], config.dedup_sources)
        given = dedup_clips.fn(cut.fn([seen, unique], config.cut), config.dedup_clips)
        for names in pieces(config, OWN):
            given = measure.fn(given, names, config, OWN)
        given = buckets.fn(caption.fn(verdict.fn(given, config.verdict, OWN)))
        return {step_of(uri): uri for uri in [embedded, *given, clips.fn(given, None, OWN)]}

    return run


def test_every_group_of_settings_is_known_here() -> None:
    assert set(CurationConfig.model_fields) == set(DECIDES)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in the places of the networks' weights: names of results need their hashes alone."""
    for name in ("gmflow", "clip", "aesthetic"):
        for file in CHECKPOINTS[name].files:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).write_text(name)
    monkeypatch.setenv("CONTENTV_WEIGHTS", str(tmp_path))


@pytest.mark.parametrize("path", sorted(SETTINGS))
def test_a_changed_setting_renames_what_it_decides_and_no_other_result(results, weights, path: str) -> None:
    before, after = results(CurationConfig()), results(changed(path))
    renamed = {step for step in before if before[step] != after[step]}
    assert renamed == (set() if path in LIMITS_OF_DECODING else DECIDES[path.split(".")[0]])


@pytest.fixture
def shard(tmp_path: Path) -> list[str]:
    """The tables of a shard of two clips, up to dedup clips, and the pictures of their source."""
    rng = np.random.default_rng(0)
    store(tmp_path, [rng.integers(0, 255, (36, 64, 3), np.uint8) for _ in range(20)])
    rows = [clip(clip_id="a"), clip(clip_id="b", start_s=5.0, end_s=10.0)]
    return tables(
        tmp_path, "dedup clips", [row | {"width": 64, "height": 36, "crop_w": 64, "crop_h": 36} for row in rows]
    )


LOOSE = {name: None for name in SETTINGS if name.startswith("verdict.") and name != "verdict.filters"}


def config_of(**settings: Any) -> CurationConfig:
    loose = {name.removeprefix("verdict."): None for name in LOOSE}
    return CurationConfig.model_validate(settings | {"verdict": loose | settings.get("verdict", {})})


def test_no_caption_is_made_again_and_no_motion_when_blur_or_a_threshold_changes(shard, monkeypatch) -> None:
    calls: dict[str, int] = {"caption": 0, "motion": 0, "blur": 0}

    def counted(name: str, work: Any) -> Any:
        def count(*given: Any) -> Any:
            calls[name] += 1
            return work(*given)

        return count

    template = caption_module.TEMPLATE
    counting = caption_module.Captioner(template.model, template.reads, counted("caption", template.describe))
    monkeypatch.setattr(caption_module, "TEMPLATE", counting)
    monkeypatch.setattr(motion, "clip_speeds", counted("motion", motion.clip_speeds))
    monkeypatch.setattr(blur, "laplacian_variance", counted("blur", blur.laplacian_variance))

    def run(config: CurationConfig) -> list[dict[str, Any]]:
        calls.update(dict.fromkeys(calls, 0))
        given = shard
        for names in pieces(config, []):
            given = measure.fn(given, names, config, [])
        return read(caption.fn(verdict.fn(given, config.verdict, []))[-1])

    first = run(config_of())
    assert [row["caption_model"] for row in first] == ["template-lite"] * 2
    assert calls == {"caption": 2, "motion": 2, "blur": 10}
    assert run(config_of(verdict={"blur_min": 0.001})) == first
    assert calls == {"caption": 0, "motion": 0, "blur": 0}
    assert run(config_of(blur={"frames_max": 3})) == first
    assert calls == {"caption": 0, "motion": 0, "blur": 6}
    assert [row["caption_model"] for row in run(config_of(verdict={"blur_min": 1e9}))] == [None, None]
    assert run(config_of(verdict={"aesthetic_min": 0.0})) == first
    assert calls == {"caption": 0, "motion": 0, "blur": 0}
