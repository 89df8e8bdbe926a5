import sys
import types

import numpy as np
import pytest

from tasks.curation.filter import Filter, apply_filter, load_filter
from tasks.curation.verdict import VerdictConfig, verdict
from tasks.tables.step import Clip
from tests.tasks.rows import clip, read, write
from tests.tasks.tables.test_step import table  # noqa: F401

calls: list[str] = []


def darkness(seen: Clip) -> float:
    calls.append(seen.row["clip_id"])
    return 255 - float(np.mean([frame.image.mean() for frame in seen.frames(2)]))


dark = Filter(column="darkness", meaning="255 less the mean level", score=darkness)


@pytest.fixture(autouse=True)
def own_module(monkeypatch):
    """The filters above as a module that a user would write."""
    module = types.ModuleType("my_filters")
    module.dark = dark
    module.number = 3
    module.clash = Filter(column="blur", meaning="", score=darkness)
    monkeypatch.setitem(sys.modules, "my_filters", module)
    calls.clear()


def test_a_filter_of_ones_own_adds_its_column_and_rejects_by_its_limit(table, tmp_path):  # noqa: F811
    scored = apply_filter.fn(write(tmp_path, "aesthetics", [clip(clip_id="good")]), "my_filters:dark")
    assert read(scored)[0]["darkness"] == pytest.approx(155, abs=3)
    limit = {"filter": "my_filters:dark", "high": 100}
    judged = verdict.fn(scored, VerdictConfig.model_validate({"filters": [limit]}))
    assert read(judged)[0]["rejected_by"] == ["my_filters:dark"]


def test_another_limit_scores_nothing_again(table):  # noqa: F811
    first = apply_filter.fn(table, "my_filters:dark")
    assert calls == ["good"]
    assert apply_filter.fn(table, "my_filters:dark") == first
    assert calls == ["good"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:dark", "cannot be loaded"),
        ("my_filters:light", "cannot be loaded"),
        ("my_filters", "cannot be loaded"),
        ("my_filters:number", "is a int"),
        ("my_filters:clash", "would overwrite the column 'blur'"),
    ],
)
def test_a_filter_that_cannot_be_used_says_why(name, words):
    with pytest.raises(ValueError, match=words):
        load_filter(name)
