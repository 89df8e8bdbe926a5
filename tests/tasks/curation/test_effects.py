"""Every setting has an effect that a test shows. A setting that is in no table here fails, so that none is left out."""

import ast
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_sample_image

from tasks.curation import aesthetics, blur, motion
from tasks.curation.dedup_clips import DedupClipsConfig, dedup_clips
from tasks.curation.dedup_sources import DedupSourcesConfig, find_duplicates
from tasks.curation.embed import film_of
from tasks.curation.overlays import OverlayConfig
from tasks.curation.text import TextConfig
from tasks.curation.transitions import ShotConfig
from tasks.curation.verdict import THRESHOLDS, VerdictConfig, judge, limits
from tasks.tables import storage
from tasks.tables.clip import Clip
from tasks.tables.frame_store import FrameStore, FrameStoreWriter, Image
from tasks.tables.rows import joined
from tests.tasks.curation import test_dedup_clips as clips_module
from tests.tasks.curation.test_dedup_sources import copies, pan
from tests.tasks.curation.test_reruns import SETTINGS
from tests.tasks.rows import clip, tables

HERE = "curation/test_effects.py"
HOUSE = Path(__file__).resolve().parents[1]

# Where the effect of a setting is tested: a file below tests/tasks, and a function in it. A group stands for all its
# settings, of which the test is given each.
SHOWN: dict[str, tuple[str, str]] = {
    "verdict.filters": (
        "curation/test_filter.py",
        "test_a_filter_of_ones_own_adds_its_column_and_rejects_by_its_limit",
    ),
    **{f"verdict.{each.setting}": (HERE, "test_a_threshold_lets_in_what_is_on_its_side") for each in THRESHOLDS},
    **{
        f"dedup_sources.{name}": (HERE, "test_a_setting_decides_what_is_a_copy")
        for name in DedupSourcesConfig.model_fields
    },
    **{f"blur.{name}": (HERE, "test_a_setting_of_blur_is_in_the_score") for name in blur.BlurConfig.model_fields},
    **{f"motion.{name}": (HERE, "test_a_setting_of_motion_is_in_the_score") for name in ("pairs_max", "working_side")},
    "motion.scorer": (HERE, "test_a_scorer_of_another_name_is_refused"),
    "aesthetics.key_frames": (HERE, "test_key_frames_are_those_that_are_scored"),
    "dedup_clips.max_difference": (HERE, "test_clips_that_differ_by_less_than_is_allowed_are_copies"),
    "aesthetics.scorer": (HERE, "test_a_scorer_of_another_name_is_refused"),
    "scan.samples_per_s": ("curation/test_scan.py", "test_samples_per_s_is_how_many_pictures_are_kept"),
    "scan.retry_wait_s": ("curation/test_scan.py", "test_the_waits_between_tries_double"),
    **{
        f"scan.{name}": ("curation/test_scan.py", "test_limits_of_decoding_are_those_of_the_config")
        for name in ("decode_max_s", "decode_max_s_per_gb", "memory_max_gib")
    },
    **{
        f"cut.shots.{name}": ("curation/test_shot_settings.py", "test_every_setting_is_in_a_test_here")
        for name in ShotConfig.model_fields
    },
    **{
        f"text.{name}": ("curation/test_text_settings.py", "test_every_setting_is_in_a_test_here")
        for name in TextConfig.model_fields
    },
    **{
        f"overlays.{name}": ("curation/test_overlay_settings.py", "test_every_setting_is_in_a_test_here")
        for name in OverlayConfig.model_fields
    },
    "cut.clip_min_s": ("curation/test_cut.py", "test_other_clip_lengths_are_a_matter_of_config"),
    "cut.clip_max_s": ("curation/test_cut.py", "test_other_clip_lengths_are_a_matter_of_config"),
}


def test_every_setting_has_a_test_of_its_effect() -> None:
    assert set(SETTINGS) == set(SHOWN)


@pytest.mark.parametrize("place", sorted(set(SHOWN.values())))
def test_the_tests_of_effects_are_there(place: tuple[str, str]) -> None:
    file, function = place
    tree = ast.parse((HOUSE / file).read_text("utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("threshold", THRESHOLDS, ids=lambda each: each.setting)
def test_a_threshold_lets_in_what_is_on_its_side(threshold: Any) -> None:
    value = {"crop_area": 0.25}.get(threshold.column, 0.4)
    row = clip(crop_w=320, crop_h=180) | ({} if threshold.column == "crop_area" else {threshold.column: value})
    off = {name: None for name in VerdictConfig.model_fields if name != "filters"}

    def kept(bound: float | None) -> bool:
        config = VerdictConfig.model_validate(off | {threshold.setting: bound})
        return bool(judge(row, limits(config, []))["keep"])

    low, high = value / 2, value * 2
    assert (kept(low), kept(high)) == ((True, False) if threshold.bound == "low" else (False, True))
    assert kept(None)


def source(name: str, images: list[Image], vector: list[float], **changes: Any) -> dict[str, Any]:
    unit = np.array([*vector, *[0.0] * (8 - len(vector))], np.float32)
    row = clip(source_id=name, source_uri=f"/v/{name}", embedding=unit / np.linalg.norm(unit), film=film_of(images))
    return row | {"duration_s": len(images) / 2} | changes


VIDEO = pan(1)
COPY = copies(VIDEO)["noisy"]
APART = {"candidate_cosine": -1.0}
COPIES: dict[str, tuple[dict[str, float], float, float, list[dict[str, Any]]]] = {
    # Of two sources that embeddings put far apart, the sparse threshold decides; of two in one place, the dense one.
    "similarity_sparse": (APART, 0.65, 1.0, [source("a", VIDEO, [1, 0]), source("b", COPY, [0, 1])]),
    "similarity_dense": ({}, 0.55, 1.0, [source("a", VIDEO, [1, 0]), source("b", COPY, [1, 0])]),
    "candidate_cosine": ({}, 0.3, 0.9, [source("a", VIDEO, [1, 0]), source("b", COPY, [1, 1])]),
    # The copy is the nearest but one.
    "neighbours": (
        APART,
        64,
        1,
        [
            *(source("a", VIDEO, [1, 0]), source("x", pan(7), [1, 0.1])),
            *(source("b", COPY, [0, 1]), source("y", pan(8), [0.1, 1])),
        ],
    ),
    "trim_s": ({}, 2.5, 0.5, [source("a", VIDEO, [1, 0]), source("b", VIDEO[2:], [1, 0])]),
}


@pytest.mark.parametrize("name", DedupSourcesConfig.model_fields)
def test_a_setting_decides_what_is_a_copy(name: str) -> None:
    others, finds, misses, rows = COPIES[name]
    films = {row["source_id"]: row["film"] for row in rows}

    def found(value: float) -> dict[str, str]:
        config = DedupSourcesConfig.model_validate({**others, name: value})
        return find_duplicates(rows, lambda row: films[row["source_id"]], config)

    assert (set(found(finds)), found(misses)) == ({"b"}, {})


def test_clips_that_differ_by_less_than_is_allowed_are_copies(tmp_path: Path) -> None:
    still = np.repeat(clips_module.scene(3), 60, axis=0)
    lighter = np.clip(still + 20, 0, 255)
    track = np.concatenate([still, lighter]).astype(np.uint8)
    storage.write_table(
        clips_module.pa.table({"time_s": np.arange(120) / 10, "thumbnail": [frame.tobytes() for frame in track]}),
        str(tmp_path / "frames" / "00aa" / "track.parquet"),
    )
    rows = [clip(clip_id=i, start_s=a, end_s=a + 6, duration_s=6.0) for i, a in (("a", 0.0), ("b", 6.0))]
    given = tables(tmp_path, "cut", rows)
    found = [joined(dedup_clips.fn(given, DedupClipsConfig(max_difference=most))) for most in (10.0, 30.0)]
    assert [[row["duplicate_of"] for row in each] for each in found] == [[None, None], [None, "a"]]


def photograph() -> Image:
    return np.asarray(cv2.resize(load_sample_image("china.jpg"), (480, 320), interpolation=cv2.INTER_AREA), np.uint8)


def seen(images: list[Image], partners: list[Image] | None = None) -> Clip:
    """A clip of these pictures, two a second."""
    file = BytesIO()
    writer = FrameStoreWriter(file)
    for i, image in enumerate(images):
        writer.add(i / 2, image, i / 2 + 0.1 if partners else None, partners[i] if partners else None)
    writer.close()
    height, width = images[0].shape[:2]
    size = {"width": width, "height": height, "crop_w": width, "crop_h": height, "end_s": len(images) / 2}
    return Clip(clip(**size), FrameStore(BytesIO(file.getvalue())))


def differs(score: Any, config: Any, name: str, value: Any, shown: Clip, column: str) -> float:
    """How far a score is moved by one setting, as a fraction of what it is by default."""
    before, after = (score(shown, config.model_validate(given))[column] for given in ({}, {name: value}))
    return float(abs(after / before - 1))


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("frames_max", 1, 0.5), ("working_side", 64, 0.05), ("tiles", 1, 0.1), ("tile_quantile", 0.1, 0.1)],
)
def test_a_setting_of_blur_is_in_the_score(name: str, value: float, least: float) -> None:
    soft = np.asarray(cv2.GaussianBlur(photograph(), (0, 0), 6), np.uint8)
    shown = seen([photograph(), photograph(), soft, photograph(), photograph()])  # the middle frame is blurred
    assert set(blur.BlurConfig.model_fields) == {"frames_max", "working_side", "tiles", "tile_quantile"}
    assert differs(blur.score, blur.BlurConfig, name, value, shown, "blur") > least


@pytest.mark.parametrize(("name", "value", "least"), [("pairs_max", 1, 0.5), ("working_side", 64, 0.002)])
def test_a_setting_of_motion_is_in_the_score(name: str, value: int, least: float) -> None:
    picture = photograph()
    moved = np.ascontiguousarray(np.roll(picture, 6, axis=1))
    pairs = [moved, moved, picture, moved]  # the pair in the middle stands still
    assert set(motion.MotionConfig.model_fields) == {"scorer", "pairs_max", "working_side"}
    assert differs(motion.score, motion.MotionConfig, name, value, seen([picture] * 4, pairs), "motion") > least


def test_key_frames_are_those_that_are_scored() -> None:
    shown = seen([photograph(), np.zeros_like(photograph()), photograph()])
    one, three = (aesthetics.score(shown, aesthetics.AestheticsConfig(key_frames=n))["aesthetic"] for n in (1, 3))
    assert one == pytest.approx(0, abs=0.01) and three > 3


def test_a_scorer_of_another_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="Input should be"):
        aesthetics.AestheticsConfig.model_validate({"scorer": "none"})
    allowed = get_args(aesthetics.AestheticsConfig.model_fields["scorer"].annotation)
    assert set(allowed) == set(aesthetics.AESTHETICS.scorers)
    allowed = get_args(motion.MotionConfig.model_fields["scorer"].annotation)
    assert set(allowed) == set(motion.MOTION.scorers)
