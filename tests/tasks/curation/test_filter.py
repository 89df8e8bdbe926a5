"""A filter of the user's own: a file beside their work, a column, a limit."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.curation.filter import ALLOWED, OwnFilter, declared
from tasks.curation.measure import chosen, measure
from tasks.curation.preflight import check_filters
from tasks.curation.scores import SCORES
from tasks.curation.settings import CurationConfig
from tasks.curation.verdict import VerdictConfig, verdict
from tasks.tables.rows import joined
from tasks.tables.sources import PreflightError
from tests.tasks.rows import clip, half_bright, read, store, tables

MODULE = """
    import numpy as np
    import pyarrow as pa
    from tasks.curation.filter import Filter
    from tasks.tables.score import Column, Score, Threshold, plain

    calls = []

    def darkness(clip):
        calls.append(clip.row["clip_id"])
        return 255 - float(np.mean([frame.image.mean() for frame in clip.frames(2)]))

    dark = Filter(column="darkness", meaning="255 less the mean level", score=darkness)
    number = 3
    clash = Filter(column="blur", meaning="", score=darkness)
    taken = Filter(column="duration_s", meaning="", score=darkness)
    twice = Filter(column="darkness", meaning="", score=darkness)
    both = Score("light and dark", needs=("overlays",), columns=(Column("dark", ""), Column("light", "")),
        scorers={"own": plain(lambda clip, _: {"dark": 155.0, "light": 100.0})})
    named = Score("named", columns=(Column("label", "", pa.string()),), scorers=both.scorers)
    step = Score("verdict", columns=(Column("x", ""),), scorers=both.scorers)
    bare = Score("bare", columns=(), scorers=both.scorers)
    limited = Score("limited", columns=(Column("y", ""),), scorers=both.scorers,
        limits=(Threshold("r", "y", "y_min", "low", 1.0, "", ""),))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's working folder, with their module in it, which Python's path does not know."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "my_filters.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def shard(tmp_path: Path) -> list[str]:
    store(tmp_path, half_bright())
    return tables(tmp_path, "aesthetics", [clip() | {"width": 64, "height": 36, "crop_w": 64, "crop_h": 36}])


def limited(name: str, **limit: Any) -> Any:
    return VerdictConfig.model_validate({"filters": [{"filter": name, **limit}], "blur_min": None})


def measured(shard: list[str], own: list[OwnFilter]) -> list[str]:
    return measure.fn(
        shard, [each.score.name for each in chosen(CurationConfig(), own)[len(SCORES) :]], CurationConfig(), own
    )


def test_a_filter_of_ones_own_adds_its_column_and_rejects_by_its_limit(shard, folder):
    own = check_filters(limited("my_filters:dark"))
    scored = measured(shard, own)
    assert joined(scored)[0]["darkness"] == pytest.approx(155, abs=3)
    judged = verdict.fn(scored, limited("my_filters:dark", high=100), own)
    assert read(judged[-1])[0]["rejected_by"] == ["my_filters:dark"]
    assert read(verdict.fn(scored, limited("my_filters:dark", low=100), own)[-1])[0]["keep"]


def test_another_limit_scores_nothing_again(shard, folder):
    own = check_filters(limited("my_filters:dark"))
    first = measured(shard, own)
    (folder / "my_filters.py").write_text("raise AssertionError('measured again')")
    assert measured(shard, own) == first  # what travels is the text of the start of the run


def test_a_changed_module_is_another_filter_to_a_process_that_goes_on(shard, folder, tmp_path):
    first = measured(shard, check_filters(limited("my_filters:dark")))
    text = (folder / "my_filters.py").read_text()
    (folder / "my_filters.py").write_text(text.replace("score=darkness)", "score=lambda clip: 7.0, version=2)", 1))
    second = measured(shard, check_filters(limited("my_filters:dark")))
    assert first[-1] != second[-1]
    assert joined(second)[0]["darkness"] == 7.0


def test_a_filter_may_have_several_columns(shard, folder):
    own = check_filters(limited("my_filters:both"))
    scored = measured(shard, own)
    assert (joined(scored)[0]["dark"], joined(scored)[0]["light"]) == (155.0, 100.0)
    assert read(verdict.fn(scored, limited("my_filters:both", low=200), own)[-1])[0]["rejected_by"] == [
        "my_filters:both"
    ]


def test_a_limit_names_which_column_of_several_it_is_on(shard, folder):
    own = check_filters(limited("my_filters:both"))
    scored = measured(shard, own)

    def reasons(*asked: dict[str, Any]) -> list[str]:
        filters = [{"filter": "my_filters:both", **each} for each in asked]
        config = VerdictConfig.model_validate({"filters": filters, "blur_min": None})
        return read(verdict.fn(scored, config, own)[-1])[0]["rejected_by"]

    assert reasons({"column": "dark", "high": 120}) == ["my_filters:both dark"]  # it is 155
    assert reasons({"column": "light", "high": 120}) == []  # it is 100
    assert reasons({"column": "light", "low": 120}) == ["my_filters:both light"]
    assert reasons({"column": "dark", "low": 200}, {"column": "light", "high": 50}) == [
        "my_filters:both dark",
        "my_filters:both light",
    ]


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        ("my_filters:both", "grey", "has no column 'grey': it has dark, light"),
        ("my_filters:dark", "dark", "has no column 'dark': it has darkness"),
        ("my_filters:named", "label", "the column 'label' .* holds no numbers: string"),
    ],
)
def test_a_limit_on_no_column_or_on_words_says_so_before_any_work(folder, name, column, words):
    with pytest.raises(PreflightError, match=words):
        check_filters(limited(name, column=column, low=1.0))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["no_such_module:dark"], "cannot be loaded"),
        (["my_filters:light"], "cannot be loaded"),
        (["my_filters"], "cannot be loaded"),
        (["my_filters:number"], "is a int"),
        (["my_filters:clash"], "would write the column 'blur', which is measured by 'blur'"),
        (["my_filters:taken"], "would write the column 'duration_s', which is a column of the tables"),
        (["my_filters:dark", "my_filters:twice"], "would write the column 'darkness', which is measured by"),
        (["my_filters:step"], "is that of a step or another score"),
        (["my_filters:bare"], "has no column"),
        (["my_filters:limited"], "has limits"),
        (["../my_filters:dark"], "is not named as module:name"),
        (["/etc/my_filters:dark"], "is not named as module:name"),
        ([":dark"], "is not named as module:name"),
        (["exits:dark"], "cannot be loaded"),
        (["latin:dark"], "cannot be loaded"),
    ],
)
def test_a_filter_that_cannot_be_used_says_why_before_any_work(folder, names, words):
    (folder / "exits.py").write_text("import sys; sys.exit(3)")
    (folder / "latin.py").write_bytes(b"# caf\xe9")
    config = VerdictConfig.model_validate({"filters": [{"filter": name} for name in names]})
    with pytest.raises(PreflightError, match=words):
        check_filters(config)


def test_two_limits_on_one_filter_are_one_filter_and_one_reason(shard, folder):
    limits = [{"filter": "my_filters:dark", "low": 200}, {"filter": "my_filters:dark", "low": 300}]
    config = VerdictConfig.model_validate({"filters": limits, "blur_min": None})
    own = check_filters(config)
    assert len(own) == 1
    assert read(verdict.fn(measured(shard, own), config, own)[-1])[0]["rejected_by"] == ["my_filters:dark"]


def test_only_modules_that_the_machine_allows_are_run(folder, monkeypatch):
    monkeypatch.setenv(ALLOWED, "others, my_filters")
    assert declared([OwnFilter.of("my_filters:dark")])
    monkeypatch.setenv(ALLOWED, "others")
    with pytest.raises(ValueError, match="not allowed on this machine"):
        declared([OwnFilter.of("my_filters:dark")])
    monkeypatch.setenv(ALLOWED, "")
    with pytest.raises(ValueError, match="not allowed on this machine"):
        declared([OwnFilter.of("my_filters:dark")])


def test_the_text_travels_to_where_there_is_no_such_file(folder, tmp_path, monkeypatch):
    own = OwnFilter.of("my_filters:dark")
    monkeypatch.chdir(tmp_path)
    (score,) = declared([own])
    assert score.columns[0].name == "darkness"
    assert "my_filters" not in sys.modules
    with pytest.raises(ValueError, match="cannot be loaded"):
        replace(own, source=None).declared()


def test_a_module_may_hold_dataclasses_with_late_annotations(folder):
    (folder / "late.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from tasks.curation.filter import Filter\n"
        "@dataclass\nclass Level:\n    at: float\n"
        "dark = Filter('level', '', lambda clip: Level(1.0).at)\n"
    )
    assert declared([OwnFilter.of("late:dark")])


def test_a_fresh_process_finds_the_module_beside_the_users_work(folder):
    """As the installed command runs: Python's path does not have the working folder."""
    program = (
        "import json, sys\n"
        "sys.path[:] = [path for path in sys.path if path not in ('', sys.argv[2])] + [sys.argv[1]]\n"
        "from tasks.curation.preflight import check_filters\n"
        "from tasks.curation.verdict import VerdictConfig\n"
        "own = check_filters(VerdictConfig.model_validate({'filters': [{'filter': 'my_filters:dark'}]}))\n"
        "print(json.dumps([own[0].declared().columns[0].name, 'my_filters' in sys.modules]))\n"
    )
    house = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-P", "-c", program, house, str(folder)]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", ALLOWED)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["darkness", False]
