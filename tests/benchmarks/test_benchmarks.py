"""Every benchmark can still be started: few are run by tests, and what they call must not change under them."""

from importlib import import_module
from pathlib import Path

import pytest

import benchmarks

MODULES = sorted(path.stem for path in Path(benchmarks.__file__).parent.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", MODULES)
def test_what_it_calls_is_there(name: str) -> None:
    assert import_module(f"benchmarks.{name}").__doc__
