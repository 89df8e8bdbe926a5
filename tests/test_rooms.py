"""The order of imports between the rooms of the house, and that each says what lives in it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1]
FLOORS = ("flows", "tasks", "training", "models", "media")
# What each floor may import; media lies at the bottom, where tasks and training, which do not know each other, meet.
MAY_IMPORT = {
    "flows": {"flows", "tasks", "training", "models", "media"},
    "tasks": {"tasks", "models", "media"},
    "training": {"training", "models", "media"},
    "models": {"models", "media"},
    "media": {"media"},
}
# Inside tasks, from the top: a room imports itself and those below.
ROOMS = {
    "pages": {"pages", "curation", "generation", "selection", "evaluation", "tables"},
    "curation": {"curation", "tables"},
    "generation": {"generation", "tables"},
    "selection": {"selection", "tables"},
    "evaluation": {"evaluation", "tables"},
    "tables": {"tables"},
}
# Inside training, from the top: a room, or a file beside the rooms, imports itself and what lies below its level.
TRAINING = (
    {"launch"},
    {"main"},
    {"loop", "output"},
    {"observe"},
    {"loader"},
    {"encode", "memory"},
    {"data", "run", "checkpoint"},
    {"recipe", "objectives", "distributed", "garbage"},
)


def imported(file: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, also inside of functions."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: an import that is relative"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(floor: str) -> list[Path]:
    return sorted((HOUSE / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_run_from_flows_down(floor: str) -> None:
    found = {(file.name, name) for file in files(floor) for name in imported(file) if name.split(".")[0] in FLOORS}
    assert files(floor)
    assert {(file, name) for file, name in found if name.split(".")[0] not in MAY_IMPORT[floor]} == set()


def test_inside_tasks_they_run_from_pages_to_tables() -> None:
    wrong = []
    for file in files("tasks"):
        room = file.relative_to(HOUSE / "tasks").parts[0]
        for name in imported(file):
            parts = name.split(".")
            if parts[0] == "tasks" and len(parts) > 1 and room in ROOMS and parts[1] not in ROOMS[room]:
                wrong.append((file.name, name))
    assert wrong == []


def test_inside_training_they_run_from_launch_to_recipe_objectives_and_distributed() -> None:
    level = {room: number for number, rooms in enumerate(TRAINING) for room in rooms}
    wrong = []
    for file in files("training"):
        room = file.relative_to(HOUSE / "training").parts[0].removesuffix(".py")
        for name in imported(file):
            parts = name.split(".")
            if parts[0] != "training" or len(parts) == 1 or parts[1] == room:
                continue
            if level[parts[1]] <= level[room]:
                wrong.append((str(file.relative_to(HOUSE)), name))
    assert wrong == []


def test_everything_in_training_has_its_level() -> None:
    there = {path.name for path in (HOUSE / "training").iterdir() if (path / "__init__.py").is_file()}
    there |= {path.stem for path in (HOUSE / "training").glob("[!_]*.py")}
    assert there - set().union(*TRAINING) == set()


def test_every_folder_of_tasks_is_a_room_with_its_place() -> None:
    assert {folder.parent.name for folder in (HOUSE / "tasks").glob("*/__init__.py")} <= set(ROOMS)


@pytest.mark.parametrize(
    "door",
    sorted(
        {file.parent for floor in ("tasks", "training") for file in HOUSE.glob(f"{floor}/*/*.py")} | {HOUSE / "media"}
    ),
    ids=lambda door: f"{door.parent.name}-{door.name}",
)
def test_the_door_of_each_room_says_what_lives_there(door: Path) -> None:
    words = ast.get_docstring(ast.parse((door / "__init__.py").read_text("utf-8")))
    assert words and len(words.split()) >= 15, f"{door.name}: a paragraph of what lives here"


def test_nothing_but_tests_and_benchmarks_imports_them() -> None:
    names = {name.split(".")[0] for floor in FLOORS for file in files(floor) for name in imported(file)}
    assert not names & {"tests", "benchmarks"}
