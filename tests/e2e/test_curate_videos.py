"""The whole flow on the quick sample library, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from benchmarks.sample_library import build
from benchmarks.sample_truth import facts
from flows.cli import main
from flows.curate_videos import CurationConfig, curate_videos
from tasks.curation.measure import measure
from tasks.curation.scores import SCORES
from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tasks.tables.run_record import NothingKept
from tasks.tables.schema import STEPS
from tasks.tables.step import RETRIES


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


def written(root: Path) -> dict[str, tuple[int, int]]:
    """When each file of the scan was written, and as which file: whoever decodes a source puts new ones there."""
    found = [path for folder in ("frames", "steps/scan") for path in sorted((root / folder).rglob("*"))]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in found if path.is_file()}


@pytest.fixture(scope="module")
def library(tmp_path_factory, prefect_api):
    """The quick sample library with its truth, curated once."""
    folder = tmp_path_factory.mktemp("library")
    truth = build(folder, quick=True)
    curate_videos(str(folder / "videos"), str(folder / "out"))
    return folder, truth


def test_every_planted_fact_is_found_and_no_clean_clip_is_rejected(library):
    folder, truth = library
    assert [fact for fact in facts(truth, folder / "out") if not fact.holds] == []


def test_no_source_is_without_a_row_and_every_rejected_row_has_a_reason(library):
    folder, truth = library
    rows = ds.dataset(folder / "out" / "clips").to_table().to_pylist()
    assert {Path(row["source_uri"]).name for row in rows} == {file.name for file in truth.files}
    assert all(row["keep"] != bool(row["rejected_by"]) for row in rows)


def test_the_tables_have_the_columns_that_the_schema_documents(library):
    columns = set(ds.dataset(library[0] / "out" / "clips").schema.names)
    documented = {name for step in STEPS.values() for name in step}
    documented |= {column.name for score in SCORES for column in score.columns}
    assert documented - columns <= {"embedding", "signature", "segments"}


def test_the_run_record_accounts_for_every_clip(library):
    record = json.loads((library[0] / "out" / "run.json").read_text())
    kept = ds.dataset(library[0] / "out" / "manifest", partitioning="hive").count_rows()
    assert record["counts"][-1]["left"] == kept > 0
    assert CurationConfig.model_validate(record["config"]) == CurationConfig()
    assert {"scan", "text", "motion", "report"} <= set(record["seconds"])


def test_a_second_run_and_a_new_threshold_decode_nothing(library):
    folder, _ = library
    before = files(folder / "out" / "manifest")
    scanned = written(folder / "out")
    curate_videos(str(folder / "videos"), str(folder / "out"))
    assert files(folder / "out" / "manifest") == before
    strict = CurationConfig.model_validate({"verdict": {"motion_min": 0.06}})
    curate_videos(str(folder / "videos"), str(folder / "out"), config=strict)
    assert files(folder / "out" / "manifest").keys() != {} != before
    assert written(folder / "out") == scanned != {}
    rows = ds.dataset(folder / "out" / "clips").to_table().to_pylist()
    assert all(row["motion"] is None or row["motion"] >= 0.06 for row in rows if row["keep"])


def test_a_run_that_keeps_nothing_fails_and_says_which_step_rejected_most(library):
    folder, _ = library
    nothing = CurationConfig.model_validate({"verdict": {"blur_min": 1e9}})
    with pytest.raises(NothingKept, match="'blur' rejected most"):
        curate_videos(str(folder / "videos"), str(folder / "out"), config=nothing)
    assert (folder / "out" / "report.html").exists()


def test_killed_at_several_steps_and_started_again_it_gives_the_same_bytes(tmp_path, prefect_api):
    truth = build(tmp_path, quick=True)
    assert truth.files
    environment = os.environ | {"PREFECT_API_URL": prefect_api}
    whole, torn = tmp_path / "whole", tmp_path / "torn"

    def start(output: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "flows.cli", str(tmp_path / "videos"), str(output)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)

    for reached in ("frames", "steps/scan", "steps/text", "steps/verdict", "manifest"):
        process = start(torn)
        while process.poll() is None and not (torn / reached).exists():
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(torn).wait() == 0
    assert start(whole).wait() == 0
    assert files(torn / "manifest") == files(whole / "manifest") != {}
    assert files(torn / "clips") == files(whole / "clips")


def test_a_full_disk_fails_the_run_with_its_own_words_and_the_same_command_goes_on(tmp_path, prefect_api, monkeypatch):
    build(tmp_path, quick=True)
    write_table = storage.write_table

    def full_disk(table, uri, rows_per_group=None):
        if "/steps/blur/" in uri:
            raise OSError(28, "No space left on device")
        write_table(table, uri, rows_per_group)

    monkeypatch.setattr(storage, "write_table", full_disk)
    monkeypatch.setattr(measure, "retry_delay_seconds", [0] * RETRIES)
    with pytest.raises(OSError, match="No space left"):
        curate_videos(str(tmp_path / "videos"), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "run.json").exists()
    assert not list((tmp_path / "out").rglob("*.partial"))
    monkeypatch.undo()
    curate_videos(str(tmp_path / "videos"), str(tmp_path / "out"))
    assert (tmp_path / "out" / "run.json").exists()


def test_preflight_says_what_is_missing(tmp_path, prefect_api):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PreflightError, match="holds no video"):
        curate_videos(str(tmp_path / "empty"), str(tmp_path / "out"))
    with pytest.raises(PreflightError, match="does not exist"):
        curate_videos(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    (tmp_path / "a.mp4").touch()
    with pytest.raises(PreflightError, match="cannot be written"):
        curate_videos(str(tmp_path), str(tmp_path / "a.mp4"))
    with pytest.raises(PreflightError, match="profile 'paper'"):
        curate_videos(str(tmp_path), str(tmp_path / "out"), profile="paper")


def test_the_command_line_ends_with_the_status_of_the_run(tmp_path, prefect_api, capsys):
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("no video")
    assert main([str(tmp_path / "videos"), str(tmp_path / "out")]) == 1
    assert "no clip is kept" in capsys.readouterr().err
    assert main([str(tmp_path / "videos"), str(tmp_path / "out"), "--set", "verdict.blurmin=3"]) == 2
    assert "blurmin" in capsys.readouterr().err
