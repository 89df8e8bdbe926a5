"""The command as a user types it, on a library of pictures and one short video."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from benchmarks.sample_library import build
from flows.cli import main
from flows.curate_videos import curate_videos


def picture(file: Path, seed: int) -> None:
    """A colourful picture with sharp shapes in it."""
    rng = np.random.default_rng(seed)
    image = np.full((360, 640, 3), rng.integers(60, 200, 3), np.uint8)
    for _ in range(40):
        x, y, w, h = rng.integers(0, 600), rng.integers(0, 330), rng.integers(10, 200), rng.integers(10, 120)
        cv2.ellipse(
            image,
            (int(x), int(y)),
            (int(w), int(h)),
            int(rng.integers(180)),
            0,
            360,
            rng.integers(0, 255, 3).tolist(),
            -1,
        )
    cv2.imwrite(str(file), image)


@pytest.fixture(scope="module")
def library(tmp_path_factory, prefect_api):
    """Four pictures and a file that is none, curated once in shards of a source or two; and where to."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "in").mkdir()
    for number in range(4):
        picture(folder / "in" / f"picture-{number}.png", number)
    (folder / "in" / "broken.png").write_text("no picture")
    assert main([str(folder / "in"), str(folder / "out"), "--sources-per-shard", "1"]) == 0
    return folder


def test_a_run_tells_each_step_in_a_line_and_prints_the_funnel(library, capfd):
    assert main([str(library / "in"), str(library / "out"), "--sources-per-shard", "1"]) == 0
    shown = capfd.readouterr()
    assert "scan: 5 sources, 1 error, done after" in shown.err
    assert "report: 5 sources, done after" in shown.err
    assert "Finished in state" not in shown.err
    assert "sources found" in shown.out
    assert str(library / "out" / "manifest") in shown.out


def test_explain_says_why_with_scores_limits_and_errors(library, capsys):
    assert main(["explain", str(library / "out"), "picture-1"]) == 0
    kept = capsys.readouterr().out
    assert "verdict    kept" in kept
    assert "at least 60" in kept
    assert f"{(library / 'out').as_uri()}/report.html#clips" in kept
    assert main(["explain", str(library / "out"), "broken"]) == 0
    broken = capsys.readouterr().out
    assert "rejected by error\n" in broken
    assert "error      " in broken
    assert main(["explain", str(library / "out"), "nothing-like-it"]) == 2
    assert main(["explain", str(library / "in"), "picture"]) == 2


def test_a_part_of_the_sources_tells_what_all_would_take(library, tmp_path, capsys):
    assert main([str(library / "in"), str(tmp_path / "part"), "--limit", "2"]) in (0, 1)
    assert "2 of 5 sources" in capsys.readouterr().out


def test_a_run_that_could_not_start_says_so_in_one_sentence(library, tmp_path, capfd):
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert main([str(library / "in"), str(tmp_path / "out")]) == 2
    shown = capfd.readouterr().err
    assert "no Prefect server answers at PREFECT_API_URL=http://127.0.0.1:9/api" in shown
    assert "Traceback" not in shown
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    shown = capfd.readouterr().err
    assert "does not exist" in shown
    assert "Traceback" not in shown
    assert main([str(library / "in"), str(tmp_path / "out"), "--set", "verdict.blurmin=3"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main([str(library / "in"), str(tmp_path / "out"), "--sources-per-shard", "0"])
    assert not (tmp_path / "out").exists()


def test_a_run_that_failed_in_part_names_its_shards_and_shows_what_it_has(library, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(library / "out", out)
    spoiled = sorted((out / "steps" / "verdict").glob("picture*"))[-1]
    spoiled.unlink()
    spoiled.mkdir()  # a result that is there and cannot be read
    for made_of_it in (out / "steps" / "clips").glob("picture*"):
        made_of_it.unlink()
    assert main([str(library / "in"), str(out), "--sources-per-shard", "1"]) == 1
    shown = capfd.readouterr()
    shard = spoiled.name.rpartition("-")[0]
    assert f"{shard} at clips" in shown.err
    assert "1 shard failed" in shown.err
    assert "sources found" in shown.out
    assert json.loads((out / "run.json").read_text())["status"] == "failed in part"
    assert main(["clean", str(out)]) == 2, "what the failed shard has done would go"
    state = curate_videos(str(library / "in"), str(out), sources_per_shard=1, return_state=True)
    assert (state.type.value, state.name) == ("FAILED", "Failed in part")
    assert shard in state.message


def test_errors_are_made_again_when_asked_and_not_before(library, tmp_path, capsys):
    """A source that is given up because of a limit of this machine is kept as an error, which a larger limit mends."""
    (tmp_path / "in").mkdir()
    build(tmp_path / "library", quick=True)
    shutil.copy(tmp_path / "library" / "videos" / "pan.mp4", tmp_path / "in" / "pan.mp4")
    picture(tmp_path / "in" / "picture.png", 7)
    run = [str(tmp_path / "in"), str(tmp_path / "out")]
    assert main([*run, "--set", "scan.memory_max_gib=0.0001"]) == 1
    assert main(run) == 1, "what is kept is an error until somebody asks"
    assert main([*run, "--retry-errors"]) == 0
    assert main(["explain", str(tmp_path / "out"), "pan.mp4"]) == 0
    assert "verdict    kept" in capsys.readouterr().out


def test_clean_removes_what_no_run_uses(library, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(library / "out", out)
    assert main(["clean", str(out), "--dry-run"]) == 0
    assert "0 files" in capsys.readouterr().out
    assert main([str(library / "in"), str(out), "--sources-per-shard", "1", "--set", "verdict.blur_min=50"]) == 0
    assert main(["clean", str(out)]) == 0
    assert "verdict" in capsys.readouterr().out
    assert main(["clean", str(library / "in")]) == 2
