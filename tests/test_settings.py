"""Every field of a training run's config has a test that shows its effect: a new field without one fails here.

The list is made from the pydantic models. Tests are found by their mark, ``@pytest.mark.effect("Model.field")``. The
settings of curation have such a list of their own, in tests/tasks/curation/test_effects.py.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from training.run import TrainingRun

TESTS = Path(__file__).resolve().parent


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models that a field's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def fields_of(model: type[BaseModel]) -> Iterator[str]:
    """The fields of a model and of those that it holds, as Model.field; one that holds models stands for nothing."""
    for name, field in model.model_fields.items():
        nested = list(models_in(field.annotation))
        for each in nested:
            yield from fields_of(each)
        if not nested:
            yield f"{model.__name__}.{name}"


def effects_in(file: Path) -> Iterator[str]:
    """What the marks of a file's test functions name, also those of single parameters."""
    for function in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            for node in (node for decorator in function.decorator_list for node in ast.walk(decorator)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.effect":
                    yield from (ast.literal_eval(argument) for argument in node.args)


def shown() -> set[str]:
    return {effect for file in TESTS.rglob("test_*.py") for effect in effects_in(file)}


def test_every_field_of_a_training_run_has_a_test_of_its_effect() -> None:
    assert set(fields_of(TrainingRun)) - shown() == set()


def test_no_mark_names_a_field_that_is_gone() -> None:
    models = {name.partition(".")[0] for name in fields_of(TrainingRun)}
    known = set(fields_of(TrainingRun)) | {f"Recipe.{name}" for name in ("phases",)}
    assert {name for name in shown() if name.partition(".")[0] in models} - known == set()


def test_a_field_without_a_mark_would_be_found(tmp_path: Path) -> None:
    class Inner(BaseModel):
        depth: int = 1

    class Outer(BaseModel):
        name: str
        inner: Inner | None = None
        several: tuple[Inner, ...] = ()

    assert set(fields_of(Outer)) == {"Outer.name", "Inner.depth"}
    file = tmp_path / "test_some.py"
    file.write_text(
        '@pytest.mark.effect("Outer.name")\ndef test_name(): ...\n'
        '@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.effect("Inner.depth"))])\n'
        "def test_x(x): ...\n"
        '@pytest.mark.effect("Outer.several")\ndef helper(): ...\n'
    )
    assert set(effects_in(file)) == {"Outer.name", "Inner.depth"}
