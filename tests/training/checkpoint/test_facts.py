"""Two runs are the same run only if their facts say so; what an upgrade adds takes its default."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import CheckpointError
from tests.training.small_data import small_recipe
from training.checkpoint.facts import changed_by_branch, check_facts, read_facts, run_digest, write_facts
from training.checkpoint.names import hidden, step_folders, step_name, step_of, unfinished

RECIPE = small_recipe().model_dump(mode="json")
FACTS: dict[str, Any] = {"recipe": RECIPE, "seed": 3, "manifest": "m", "weights": "w", "encoder": "e"}
FACTS |= {"model": {"num_layers": 2, "position": "absolute"}, "branch_from": None}


def without(facts: dict[str, Any], *path: str) -> dict[str, Any]:
    copy = json.loads(json.dumps(facts))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return copy


@pytest.mark.parametrize("field", ["seed", "manifest", "weights", "encoder"])
def test_another_seed_manifest_start_or_encoder_is_another_run(field: str) -> None:
    with pytest.raises(CheckpointError, match=rf"OUT is of another run:\n  {field} is .* there and 'other' here"):
        check_facts(FACTS, FACTS | {field: "other"}, "OUT")
    assert run_digest(FACTS) != run_digest(FACTS | {field: "other"})


def test_step_loss_and_layout_are_not_of_the_run() -> None:
    later = FACTS | {"step": 500, "loss": 0.1, "layout": {"world": 8}}
    check_facts(later, FACTS, "OUT")
    assert run_digest(later) == run_digest(FACTS)


@pytest.mark.parametrize("name", [name for name in RECIPE if name not in ("name", "phases", "learning_rate")])
def test_a_field_of_the_recipe_that_an_upgrade_adds_takes_its_default(name: str) -> None:
    field = type(small_recipe()).model_fields[name]
    old = without(FACTS, "recipe", name)
    if field.is_required() or json.loads(json.dumps(RECIPE[name])) != json.loads(json.dumps(field.default)):
        with pytest.raises(CheckpointError, match=rf"recipe\.{name}"):
            check_facts(old, FACTS, "OUT")
    else:
        check_facts(old, FACTS, "OUT")


def test_a_size_that_an_upgrade_adds_takes_its_default() -> None:
    check_facts(without(FACTS, "model", "position"), FACTS, "OUT")


def test_a_field_that_this_release_does_not_know_is_a_difference() -> None:
    newer = FACTS | {"recipe": RECIPE | {"of_tomorrow": 1}}
    with pytest.raises(CheckpointError, match="of_tomorrow"):
        check_facts(newer, FACTS, "OUT")


def test_checkpoints_of_before_do_not_say_where_they_started_and_are_gone_on_from(caplog) -> None:
    check_facts(without(without(FACTS, "weights"), "encoder"), FACTS, "OUT")
    assert "'weights'" in caplog.text and "'encoder'" in caplog.text


def test_a_branch_may_change_rate_warm_up_clipping_and_steps() -> None:
    phases = [{"data": "videos", "steps": 20}]
    here = FACTS | {"recipe": RECIPE | {"learning_rate": 5e-4, "clip_norm": 0.5, "phases": phases}, "branch_from": "x"}
    changed = changed_by_branch(FACTS | {"step": 6}, here, "OUT")
    assert changed == {"learning_rate": [1e-3, 5e-4], "clip_norm": [1.0, 0.5], "phases": [RECIPE["phases"], phases]}
    with pytest.raises(CheckpointError, match="branch_from"):
        check_facts(FACTS, here | {"branch_from": None}, "OUT")


@pytest.mark.parametrize("change", [{"seed": 4}, {"recipe": RECIPE | {"caption_drop": 0.5}}, {"weights": "other"}])
def test_a_branch_may_change_nothing_else(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="a branch may change learning_rate, warmup_steps"):
        changed_by_branch(FACTS, FACTS | change, "OUT")


def test_facts_that_are_not_what_was_written_are_refused(tmp_path: Path) -> None:
    write_facts(tmp_path, FACTS)
    assert read_facts(tmp_path) == FACTS
    file = tmp_path / "facts.json"
    file.write_text(file.read_text().replace('"seed": 3', '"seed": 7'))
    with pytest.raises(CheckpointError, match="damaged"):
        read_facts(tmp_path)


def test_names_of_steps_are_read_as_they_are_written(tmp_path: Path) -> None:
    assert [step_of(step_name(step)) for step in (0, 500, 123_456_789)] == [0, 500, 123_456_789]
    others = [
        "step-500",
        "step-00000004-keep",
        "step-0000000x",
        "step-00000004.bak",
        "xstep-00000004",
        "step-000000004",
    ]
    assert [step_of(name) for name in others] == [None] * len(others)
    for name in [*others, "step-00000004", ".step-00000005", ".step-00000006-old", ".step-00000007-mine"]:
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000009").write_text("a file")
    assert list(step_folders(tmp_path)) == [(4, tmp_path / "step-00000004")]
    assert sorted(unfinished(tmp_path)) == [tmp_path / ".step-00000005", tmp_path / ".step-00000006-old"]
    assert hidden(tmp_path / "step-00000005") == tmp_path / ".step-00000005"
    assert list(step_folders(tmp_path / "nowhere")) == []
