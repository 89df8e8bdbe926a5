import io

import numpy as np
import pytest
from pydantic import ValidationError

from tasks.tables import storage
from tasks.tables.frame_store import FrameStoreWriter
from tasks.tables.step import Clip, StepConfig, cores, result_uri, root_of, score_clips, shard_of
from tests.tasks.rows import clip, read, write


class Config(StepConfig):
    level: float = 1.0


@pytest.fixture
def table(tmp_path):
    """A table of two clips, one good, one too short; and the frames of their source."""
    file = io.BytesIO()
    writer = FrameStoreWriter(file)
    for i in range(10):
        image = np.zeros((36, 64, 3), np.uint8)
        image[:, 32:] = 200
        writer.add(i / 2, image, i / 2 + 0.1, image)
    writer.close()
    with storage.writing(str(tmp_path / "frames" / "00aa" / "samples.parquet")) as out:
        out.write(file.getvalue())
    rows = [
        clip(clip_id="good"),
        clip(clip_id="short", rejected_by=["too_short"]),
    ]
    return write(tmp_path, "overlays", rows)


def brightness(seen: Clip) -> dict:
    return {"blur": float(np.mean([frame.image.mean() for frame in seen.frames(2)]))}


def test_scoring_adds_columns_and_drops_no_row(table):
    rows = read(score_clips(table, "blur", Config(), brightness))
    assert [row["clip_id"] for row in rows] == ["good", "short"]
    assert rows[0]["blur"] == pytest.approx(100, abs=3)


def test_what_is_already_rejected_is_not_scored(table):
    assert read(score_clips(table, "blur", Config(), brightness))[1]["blur"] is None


def test_scores_see_the_crop(tmp_path, table):
    rows = read(table)
    cropped = write(tmp_path, "overlays", [row | {"crop_x": 320, "crop_w": 320} for row in rows[:1]])
    assert read(score_clips(cropped, "blur", Config(), brightness))[0]["blur"] == pytest.approx(200, abs=3)


def test_a_clip_that_cannot_be_scored_is_a_row_with_its_error(table):
    def fails(seen: Clip) -> dict:
        raise ValueError("no such thing")

    row = read(score_clips(table, "blur", Config(), fails))[0]
    assert row["error"] == "blur: no such thing"
    assert row["rejected_by"] == ["error"]


def test_a_result_that_is_there_is_not_made_again(table):
    def tripwire(seen: Clip) -> dict:
        raise AssertionError("scored again")

    first = score_clips(table, "blur", Config(), brightness)
    assert score_clips(table, "blur", Config(), tripwire) == first


def test_the_name_of_a_result_depends_on_table_step_version_and_config(table):
    uris = {
        result_uri(table, "blur", Config(), 1),
        result_uri(table, "blur", Config(), 2),
        result_uri(table, "blur", Config(level=2), 1),
        result_uri(table, "motion", Config(), 1),
        result_uri(table.replace("0123", "0124"), "blur", Config(), 1),
    }
    assert len(uris) == 5


def test_a_table_knows_its_root_and_its_shard(tmp_path, table):
    assert root_of(table) == str(tmp_path)
    assert shard_of(table) == "shard"


def test_a_deleted_frame_store_is_no_error_of_the_clip(tmp_path):
    table = write(tmp_path, "overlays", [clip()])
    with pytest.raises(FileNotFoundError, match=r"decode the sources again"):
        score_clips(table, "blur", Config(), brightness)


def test_a_misspelt_option_is_an_error():
    with pytest.raises(ValidationError):
        Config(levle=1.0)


def test_a_task_that_was_given_one_core_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    bound = cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert cores() == bound
