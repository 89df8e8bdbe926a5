import pytest

from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tasks.tables.clean import USED, clean
from tasks.tables.lock import holding
from tasks.tables.owner import claim

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"

LIVE = [
    f"steps/scan/clip_a-{KEY}.parquet",
    f"steps/sources/clip_a-{KEY}.parquet",
    f"frames/{KEY}-012345/samples.parquet",
    f"frames/{KEY}-012345/source.json",
    f"steps/motion/clip_a-{KEY}~0a1b2c3d.parquet",
    f"steps/motion/clip_a-{KEY}.part0000.parquet",  # the next run goes on there
]
DEAD = [
    f"steps/scan/clip_a-{OTHER}.parquet",
    f"steps/scan/clip-with-dashes-{KEY}.parquet",
    f"steps/blur/clip_a-{KEY}.parquet",
    f"steps/text/clip_a-{KEY}~0a1b2c3d.parquet",
    f"steps/dedup-sources/decided-{OTHER}.json",
    f"steps/motion/clip_a-{OTHER}.part0000.parquet",
    f"steps/text/clip_a-{KEY}.part0012.parquet",
    f"steps/scan/.clip_a-{KEY}.parquet.0a1b2c3d.partial",
    f"frames/{OTHER}-012345/samples.parquet",
    f"frames/{OTHER}-012345/track.parquet",
    f"frames/{OTHER}-012345/source.json",
    f"frames/{KEY}-543210/samples.parquet",
    f"frames/{KEY}-012345/.samples.parquet.0a1b2c3d.partial",
]
UNKNOWN = [
    "steps/notes.txt",
    f"steps/{OTHER}.parquet",
    "steps/scan/mine.parquet",
    f"steps/scan/deeper/clip_a-{OTHER}.parquet",
    f"frames/{OTHER}-012345/holiday.jpg",
    "frames/mine/samples.parquet",
    "clips/clip_a.parquet",
    "manifest/aspect=1x1/part-00000.parquet",
    "report.html",
]


@pytest.fixture(params=["local", "memory", "s3"])
def root(request, tmp_path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/out"
    return f"memory://clean-{tmp_path.name}" if request.param == "memory" else f"{tmp_path}/out a::b"


def output(root: str) -> None:
    claim(root)
    for name in LIVE + DEAD + UNKNOWN:
        with storage.writing(storage.join(root, name)) as file:
            file.write(b"x" * 100)
    used = {
        "tables": [name for name in LIVE if name.startswith("steps") and ".part" not in name],
        "frames": [f"frames/{KEY}-012345"],
    }
    storage.write_json(used, storage.join(root, USED))


def there(root: str) -> set[str]:
    return {name for name in LIVE + DEAD + UNKNOWN if storage.exists(storage.join(root, name))}


def test_what_the_last_run_did_not_use_goes_and_everything_else_stays(root):
    output(root)
    cleaned = clean(root)
    assert there(root) == {*LIVE, *UNKNOWN}
    assert cleaned.files == {"scan": 3, "blur": 1, "text": 2, "motion": 1, "dedup-sources": 1, "frames": 5}
    assert cleaned.bytes == {step: 100 * count for step, count in cleaned.files.items()}
    assert clean(root).files == {}


def test_a_dry_run_says_the_same_and_removes_nothing(root):
    output(root)
    planned = clean(root, dry_run=True)
    assert there(root) == {*LIVE, *DEAD, *UNKNOWN}
    assert "13 files with 1.3 KiB would be removed" in str(planned)
    done = clean(root)
    assert (done.files, done.bytes, done.kept_bytes) == (planned.files, planned.bytes, planned.kept_bytes)


def test_nothing_is_cleaned_before_a_run_has_finished(root):
    output(root)
    storage.remove(storage.join(root, USED))
    with pytest.raises(PreflightError, match="no run has finished"):
        clean(root)
    assert there(root) == {*LIVE, *DEAD, *UNKNOWN}


def test_after_a_run_that_failed_in_part_nothing_is_cleaned(root):
    output(root)
    storage.write_json({"tables": [], "frames": [], "whole": False}, storage.join(root, USED))
    with pytest.raises(PreflightError, match="failed in part"):
        clean(root)
    assert there(root) == {*LIVE, *DEAD, *UNKNOWN}


@pytest.mark.parametrize("used", [[], {"tables": []}, {"tables": None, "frames": []}])
def test_a_list_that_says_nothing_cleans_nothing(root, used):
    output(root)
    storage.write_json(used, storage.join(root, USED))
    with pytest.raises(PreflightError, match="cannot be read"):
        clean(root)
    assert there(root) == {*LIVE, *DEAD, *UNKNOWN}


def test_nothing_is_cleaned_while_a_run_is_at_work_or_where_no_run_was(root):
    with pytest.raises(PreflightError, match="no mark"):
        clean(root)
    output(root)
    with holding(root), pytest.raises(PreflightError, match="in use"):
        clean(root)
    assert there(root) == {*LIVE, *DEAD, *UNKNOWN}


def test_empty_folders_of_removed_results_go(tmp_path):
    output(str(tmp_path))
    clean(str(tmp_path))
    assert not (tmp_path / "steps" / "blur").exists() and not (tmp_path / f"frames/{KEY}-543210").exists()
    assert (tmp_path / f"frames/{OTHER}-012345/holiday.jpg").exists()
