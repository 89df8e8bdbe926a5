"""Clips that could not be read are listed once, and a run has patience with some."""

from pathlib import Path

import pytest

from tests.training.small_data import small_recipe, write_data
from training.data.manifest import open_manifest
from training.data.plan import BatchPlan, Job, Sample
from training.encode.reading import BadClip
from training.observe.bad_clips import LEAST, BadClips, TooManyBadClips, forget_bad_clips, read_bad_clips

GONE = BadClip("clip-9", "s3://bucket/nine.mp4", "it is gone\nfor good")


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    manifest = open_manifest([write_data(tmp_path / "data")], tmp_path / "cache")
    return BatchPlan(manifest, Job(recipe=small_recipe(), seed=0, manifest=manifest.fingerprint)).samples(0)[1]


def test_each_is_listed_with_its_place_and_reason(sample: Sample, tmp_path: Path) -> None:
    other = BadClip("clip-8", "eight.mp4", "no video")
    BadClips(tmp_path, 1, 0.1).add(5, sample, (GONE, other))
    BadClips(tmp_path, 0, 0.1).add(4, sample, (other,))
    BadClips(tmp_path, None, 0.1).add(4, sample, (GONE,))
    assert [(line["step"], line["clip_id"], line["words"]) for line in read_bad_clips(tmp_path)] == [
        (4, "clip-8", "no video"),
        (5, "clip-9", "it is gone\nfor good"),
        (5, "clip-8", "no video"),
    ]
    assert all(line["instead"] == sample.clip.clip_id for line in read_bad_clips(tmp_path))


def test_steps_that_are_taken_again_are_forgotten_and_a_line_cut_off_too(sample: Sample, tmp_path: Path) -> None:
    clips = BadClips(tmp_path, 0, 0.1)
    for step in range(4):
        clips.add(step, sample, (GONE,))
    with (tmp_path / "bad_clips" / "rank-00000.jsonl").open("a") as file:
        file.write('{"step": 1, "cl')  # its writer was killed
    forget_bad_clips(tmp_path, 2)
    assert [line["step"] for line in read_bad_clips(tmp_path)] == [0, 1]


def test_more_than_the_share_end_the_run_and_a_few_never_do(tmp_path: Path) -> None:
    BadClips(tmp_path, 0, 0.0).check(8, LEAST)
    clips = BadClips(tmp_path, 0, 0.1)
    for _ in range(10):
        clips.check(100, 10)
    with pytest.raises(TooManyBadClips, match=r"101 clips .* 1000 samples, and encode.most_bad_clips is 0.1"):
        clips.check(0, 1)
