"""Numbers of the published programs. They are large and not part of the project: tests that compare with them are
skipped where they are not beside it."""

import os
from pathlib import Path

import pytest

PLACES = (os.environ.get("CONTENTV_REFERENCE", ""), "../shared/reference", "../../shared/reference")


def golden(name: str) -> Path:
    """A file of the reference folder; the test is skipped where there is none."""
    house = Path(__file__).parents[3]
    for place in filter(None, PLACES):
        if (file := house / place / name).is_file():
            return file
    pytest.skip(f"{name} is not beside the project; CONTENTV_REFERENCE names the folder that has it")
