import pyarrow as pa
import pytest

from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tasks.tables.found import Source, table_of
from tasks.tables.shards import BYTES_PER_SOURCE, shard_name, shards_of, write_shards


def listing(count: int, size: int = 1) -> pa.Table:
    return table_of([Source(f"/videos/{i:05d}.mp4", size, "1") for i in range(count)])


def uris(shards) -> list[tuple[str, ...]]:
    return [tuple(shard["source_uri"].to_pylist()) for shard in shards]


def test_shards_hold_every_source_once_and_about_as_many_as_asked():
    sources = listing(5000)
    shards = list(shards_of(sources, 64))
    assert pa.concat_tables(shards).equals(sources)
    assert 5000 / 64 / 2 <= len(shards) <= 5000 / 64 * 2
    assert all(shard.num_rows <= 128 for shard in shards)


def test_large_sources_make_small_shards():
    films = listing(100, 160 * BYTES_PER_SOURCE)
    assert all(shard.num_rows == 1 for shard in shards_of(films, 64))
    halves = list(shards_of(listing(3000, 8 * BYTES_PER_SOURCE), 64))
    assert all(shard.num_rows * 8 <= 2 * 64 for shard in halves)
    assert 3000 * 8 / 64 / 2 <= len(halves) <= 3000 * 8 / 64 * 2


def test_a_film_among_images_does_not_fill_their_shard():
    rows = [Source(f"/v/{i:04d}.jpg", 1000, "1") for i in range(200)]
    rows[100] = Source("/v/0100.mp4", 500 * BYTES_PER_SOURCE, "1")
    film = next(shard for shard in shards_of(table_of(rows), 64) if "/v/0100.mp4" in shard["source_uri"].to_pylist())
    assert film.num_rows == 1


@pytest.mark.parametrize("size", [1, 5 * BYTES_PER_SOURCE])
def test_a_new_source_changes_few_shards(size):
    sources = listing(5000, size)
    new = table_of([Source("/videos/02500b.mp4", size, "1")])
    grown = pa.concat_tables([sources.slice(0, 2501), new, sources.slice(2501)])
    assert len(set(uris(shards_of(grown, 64))) - set(uris(shards_of(sources, 64)))) <= 4


@pytest.mark.parametrize("about", [0, -3])
def test_a_shard_of_no_sources_is_refused(about):
    with pytest.raises(PreflightError, match="at least 1"):
        list(shards_of(listing(3), about))


def test_a_touched_file_gets_another_list(tmp_path):
    first = write_shards(listing(3), str(tmp_path), 64)
    assert write_shards(listing(3), str(tmp_path), 64) == first
    changed = table_of([Source(f"/videos/{i:05d}.mp4", 1, "2") for i in range(3)])
    assert write_shards(changed, str(tmp_path), 64) != first
    assert storage.read_table(first[0]).to_pylist() == listing(3).to_pylist()


def test_shards_are_called_alike_only_where_they_begin_with_the_same_source():
    same = [table_of([Source(f"/{folder}/clip.mp4", 1, "1")]) for folder in range(120_000)]
    assert len({shard_name(shard) for shard in same}) == len(same)
    assert shard_name(same[0]).startswith("clip_")
