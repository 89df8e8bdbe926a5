import json
from pathlib import Path

import pytest

from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tasks.tables.owner import MARK, check_owner, claim, read_mark


def written(root: str, name: str, text: str) -> None:
    with storage.writing(storage.join(root, name)) as file:
        file.write(text.encode())


@pytest.fixture(params=["local", "local ::", "memory", "s3"])
def root(request, tmp_path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/out"
    return {"local": f"{tmp_path}/out", "local ::": f"{tmp_path}/out a::b"}.get(
        request.param, f"memory://owner-{tmp_path.name}"
    )


def test_a_new_output_gets_a_mark_once(root):
    assert read_mark(root) is None
    claim(root)
    mark = storage.read_bytes(storage.join(root, MARK))
    claim(root)
    assert storage.read_bytes(storage.join(root, MARK)) == mark
    assert read_mark(root)["kind"] == "curation" and read_mark(root)["format"] == 1


@pytest.mark.parametrize("name", ["clips/part-0.parquet", "manifest/aspect=1x1/x.parquet", "run.json"])
def test_a_dataset_without_a_mark_is_somebody_elses(root, name):
    written(root, name, "{}")
    with pytest.raises(PreflightError, match=rf"holds {name.split('/')[0]} that no curation run .* wrote"):
        claim(root)
    assert read_mark(root) is None


def test_other_files_do_not_make_an_output_somebody_elses(root):
    written(root, "notes.txt", "mine")
    claim(root)
    written(root, "clips/a.parquet", "")
    check_owner(root)


def test_the_output_of_another_kind_of_run_is_refused(root):
    claim(root, "generation")
    with pytest.raises(PreflightError, match="of kind 'generation', not 'curation'"):
        check_owner(root)
    check_owner(root, "generation")


def test_the_output_of_a_later_release_is_refused(root):
    written(root, MARK, json.dumps({"kind": "curation", "format": 2, "written_by": "contentv 9"}))
    with pytest.raises(PreflightError, match=r"format 2.*contentv 9"):
        check_owner(root)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"kind": "curation"}'])
def test_a_mark_that_says_nothing_is_refused(tmp_path, text):
    Path(tmp_path, MARK).write_text(text)
    with pytest.raises(PreflightError):
        check_owner(str(tmp_path))
