import pytest

from tasks.tables.checks import PreflightError
from tasks.tables.found import Source, table_of
from tasks.tables.sample import estimate, take_part
from tasks.tables.shards import shards_of


def library(count: int = 10_000):
    return table_of([Source(f"/v/{i // 100:03d}/{i:05d}.mp4", 1 + i, "1") for i in range(count)])


def taken(**part) -> set[str]:
    return set(take_part(library(), **part)["source_uri"].to_pylist())


def test_without_limit_and_sample_all_are_taken():
    assert take_part(library()) is not None and take_part(library()).equals(library())


@pytest.mark.parametrize("sample", ["10%", "0.1", 0.1, " 10 % "])
def test_a_sample_is_about_its_part_and_comes_from_all_folders(sample):
    found = taken(sample=sample)
    assert 900 < len(found) < 1100
    assert len({uri.split("/")[2] for uri in found}) > 95


def test_smaller_parts_lie_inside_larger_ones():
    assert taken(sample="1%") < taken(sample="10%") < taken(sample="100%")
    assert taken(limit=10) < taken(limit=100)
    assert len(taken(limit=10)) == 10
    assert taken(limit=10, sample="50%") == taken(limit=10)
    assert taken(limit=9_000, sample="1%") == taken(sample="1%")


def test_a_limit_takes_no_folder_before_others():
    assert len({uri.split("/")[2] for uri in taken(limit=50)}) > 30


def test_new_sources_leave_a_sample_as_it_was():
    small, large = library(9_000), library(10_000)
    before = set(take_part(small, sample="5%")["source_uri"].to_pylist())
    assert before == set(take_part(large, sample="5%")["source_uri"].to_pylist()) & set(small["source_uri"].to_pylist())


def test_a_sample_takes_at_least_one_source():
    assert take_part(library(3), sample="0.01%").num_rows == 1


def test_a_part_is_in_order_and_makes_shards_of_the_usual_size():
    part = take_part(library(), sample="20%")
    assert part["source_uri"].to_pylist() == sorted(part["source_uri"].to_pylist())
    assert part.num_rows / 64 / 2 <= len(list(shards_of(part, 64))) <= part.num_rows / 64 * 2


@pytest.mark.parametrize("part", [{"limit": 0}, {"sample": "0%"}, {"sample": 2}, {"sample": "some"}, {"sample": "nan"}])
def test_what_takes_nothing_or_is_no_part_is_refused(part):
    with pytest.raises(PreflightError, match=r"takes no source|is no part"):
        take_part(library(3), **part)


def test_the_estimate_grows_with_bytes():
    assert estimate((10, 1 << 30), (1000, 64 << 30), 600, 3 << 29) == (
        "10 of 1000 sources (1.0 GiB of 64.0 GiB) took 10 min and 1.5 GiB of disk; all of them would take about "
        "10 h 40 min and 96.0 GiB, by bytes."
    )


def test_the_estimate_grows_with_the_number_where_sizes_are_unknown():
    assert "about 1 d 3 h and 2.0 MiB, by number" in estimate((10, 0), (1000, 0), 1000, 20 << 10)
