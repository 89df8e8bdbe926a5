"""Results are named by what decides them, found again, and retried where only the storage failed."""

import errno

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from prefect import flow
from pydantic import ValidationError

from tasks.curation.buckets import buckets
from tasks.tables import storage
from tasks.tables.keys import key_in, result_uri, root_of, shard_of, step_of, unfinished
from tasks.tables.rows import narrow
from tasks.tables.schema import fields_of
from tasks.tables.step import RETRIES, Made, StepConfig, cores, kept, side_by_side, step_task
from tests.tasks.rows import clip, read, write


class Config(StepConfig):
    level: float = 1.0


@pytest.fixture
def table(tmp_path) -> str:
    return write(tmp_path, "cut", [clip()])


def made(**changes) -> Made:
    return Made(narrow([clip()], fields_of("verdict")), **changes)


def test_a_result_that_is_there_is_not_made_again(table):
    def tripwire() -> Made:
        raise AssertionError("made again")

    first = kept([table], "verdict", [1, Config()], made)
    assert kept([table], "verdict", [1, Config()], tripwire) == first
    assert read(first) == [{"clip_id": "c0", "keep": True, "error": None, "rejected_by": []}]


def test_a_result_that_misses_something_for_a_passing_reason_is_never_found_again(table):
    calls = []

    def broken_off() -> Made:
        calls.append("")
        return made(finished=False)

    first, second = (kept([table], "verdict", [1], broken_off) for _ in range(2))
    assert len(calls) == 2
    assert len({first, second, result_uri([table], "verdict", 1)}) == 3
    assert (shard_of(first), step_of(first), root_of(first)) == ("shard", "verdict", root_of(table))
    later = [result_uri([uri], "caption", 1) for uri in (first, second)]
    assert later[0] != later[1]  # nor is what was made of it


def test_a_make_that_fails_leaves_nothing(table, tmp_path):
    def fails() -> Made:
        raise ValueError

    with pytest.raises(ValueError):
        kept([table], "verdict", [1], fails)
    assert not (tmp_path / "steps" / "verdict").exists()


def test_the_name_of_a_result_depends_on_tables_step_version_and_config(table):
    uris = {
        result_uri([table], "blur", Config(), 1),
        result_uri([table], "blur", Config(), 2),
        result_uri([table], "blur", Config(level=2), 1),
        result_uri([table], "motion", Config(), 1),
        result_uri([table.replace("0123", "0124")], "blur", Config(), 1),
        result_uri([table, table], "blur", Config(), 1),
    }
    assert len(uris) == 6


def test_a_table_knows_its_root_its_shard_its_step_and_its_key(tmp_path, table):
    assert (root_of(table), shard_of(table), step_of(table)) == (str(tmp_path), "shard", "cut")
    assert key_in(table) == "0123"
    assert key_in(unfinished(table)) != "0123"


def test_a_misspelt_option_and_a_number_that_is_none_are_errors():
    for settings in ({"levle": 1.0}, {"level": float("nan")}, {"level": float("inf")}):
        with pytest.raises(ValidationError):
            Config(**settings)


def test_a_task_that_was_given_one_core_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    bound = cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert cores() == bound


def test_work_side_by_side_keeps_its_order():
    assert list(side_by_side(lambda n: n * n, range(50))) == [n * n for n in range(50)]


def run(problem_at: list[Exception | None], prefect_api: str) -> tuple[int, object]:
    """How often a task is tried whose storage raises the problems in turn, and what the flow run ends with."""
    tries: list[int] = []

    @step_task("tried")
    def tried(table: str) -> str:
        tries.append(1)
        if problem := problem_at[len(tries) - 1] if len(tries) <= len(problem_at) else None:
            try:
                raise problem
            except Exception as cause:
                raise storage.OutputError(getattr(cause, "errno", None), str(cause), table) from cause
        return table

    assert tried.retry_delay_seconds == [2, 4, 8]

    @flow
    def curation() -> str:
        return tried.with_options(retry_delay_seconds=0)("/out/steps/scan/a-1.parquet")

    state = curation(return_state=True)
    return len(tries), state


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def test_a_task_whose_storage_fails_twice_ends_well(prefect_api):
    tries, state = run([full_disk(), ConnectionError("reset")], prefect_api)
    assert (tries, state.is_completed()) == (3, True)


def test_a_task_whose_storage_goes_on_failing_ends_with_its_words(prefect_api):
    tries, state = run([full_disk() for _ in range(9)], prefect_api)
    assert tries == 1 + RETRIES
    with pytest.raises(storage.OutputError, match="No space left"):
        state.result()


def test_a_step_goes_on_when_an_object_store_answers_again(prefect_api, monkeypatch):
    row = clip()
    uris = [f"memory://retried/steps/{step}/s-{step}.parquet" for step in ("cut", "verdict")]
    for uri, step in zip(uris, ("cut", "verdict"), strict=True):
        storage.write_table(narrow([row], fields_of(step)), uri)
    info, failed = MemoryFileSystem.info, []

    def down_twice(self, path, **kwargs):
        if "/steps/buckets/" in path and len(failed) < 2:
            failed.append(path)
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return info(self, path, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "info", down_twice)

    @flow
    def curation() -> list[str]:
        return buckets.with_options(retry_delay_seconds=0)(uris)

    assert read(curation()[-1])[0]["bucket_aspect"] == "16x9"
    assert len(failed) == 2


def test_what_would_only_repeat_itself_is_not_tried_again(prefect_api):
    assert run([PermissionError(errno.EACCES, "Permission denied")] * 2, prefect_api)[0] == 1
