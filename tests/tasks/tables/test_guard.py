"""The one guard: what goes wrong for one file is the error of its rows, and the others go on."""

import errno
from pathlib import Path
from typing import Any

import pytest

from tasks.curation import buckets as buckets_module
from tasks.curation import caption as caption_module
from tasks.curation import cut as cut_module
from tasks.curation import dedup_clips as dedup_clips_module
from tasks.curation import embed as embed_module
from tasks.curation import verdict as verdict_module
from tasks.curation.dedup_sources import DedupSourcesConfig, dedup_sources
from tasks.curation.verdict import VerdictConfig
from tasks.tables import storage
from tasks.tables.guard import Faults, guarded, words_of
from tasks.tables.keys import UNFINISHED
from tasks.tables.rows import joined
from tests.tasks.rows import clip, half_bright, read, store, tables, write

ROWS = [
    clip(clip_id=f"{name}{part}", source_uri=f"/videos/{name}.mp4", source_id=name, frames_uri=f"frames/{name}")
    | {"start_s": 5.0 * part, "end_s": 5.0 * part + 5}
    for name in "abc"
    for part in (0, 1)
]


@pytest.mark.parametrize("problem", [ValueError("odd"), KeyError("odd"), RecursionError("odd"), StopIteration("odd")])
def test_any_exception_is_the_error_of_its_rows_with_step_and_file(problem: Exception) -> None:
    rows, faults = [clip(), clip()], Faults()
    with guarded(rows, "blur", faults):
        raise problem
    assert {row["error"] for row in rows} == {f"blur: a.mp4: {problem}"}
    assert not faults.passed


def test_an_exception_without_words_is_known_by_its_class_and_odd_characters_are_written() -> None:
    assert words_of(AssertionError()) == "AssertionError"
    row = clip(source_uri="/videos/caf\udce9.mp4")
    with guarded([row], "scan", Faults()):
        raise ValueError("caf\udce9")
    row["error"].encode()
    assert row["error"] == "scan: caf\\udce9.mp4: caf\\udce9"


def test_failing_output_goes_on_and_a_fault_that_may_pass_is_remembered() -> None:
    faults = Faults()
    with pytest.raises(storage.OutputError), guarded([clip()], "cut", faults):
        raise storage.OutputError(errno.ENOSPC, "No space left on device")
    assert not faults.passed
    with guarded([clip()], "cut", faults):
        raise ConnectionResetError
    assert faults.passed


def test_what_a_program_is_stopped_by_is_no_error_of_a_row() -> None:
    with pytest.raises(KeyboardInterrupt), guarded([clip()], "cut", Faults()):
        raise KeyboardInterrupt


def embed_of(root: Path) -> str:
    sources = [row for row in ROWS if row["clip_id"].endswith("0")]
    for row in sources:
        store(root, half_bright(), row["frames_uri"])
    return embed_module.embed.fn(write(root, "scan", sources))


def cut_of(root: Path) -> str:
    return cut_module.cut.fn(tables(root, "dedup sources", ROWS))[-1]


def dedup_clips_of(root: Path) -> str:
    return dedup_clips_module.dedup_clips.fn(tables(root, "cut", ROWS))[-1]


def verdict_of(root: Path) -> str:
    return verdict_module.verdict.fn(tables(root, "aesthetics", ROWS), VerdictConfig(), [])[-1]


def caption_of(root: Path) -> str:
    return caption_module.caption.fn(tables(root, "verdict", ROWS))[-1]


def buckets_of(root: Path) -> str:
    return buckets_module.buckets.fn(tables(root, "caption", ROWS))[-1]


# The work that each step does for one source or clip; the rows it is given first.
WORK: dict[str, tuple[Any, str, Any]] = {
    "embed": (embed_module, "signature_of", embed_of),
    "cut": (cut_module, "clips_of", cut_of),
    "dedup clips": (dedup_clips_module, "tracks_of", dedup_clips_of),
    "verdict": (verdict_module, "judge", verdict_of),
    "buckets": (buckets_module, "bucket", buckets_of),
}


def breaks_at(monkeypatch: pytest.MonkeyPatch, step: str, problem: Exception) -> Any:
    """Let the work of ``step`` raise ``problem`` for the source b; returns what runs the step."""
    module, name, run = WORK[step]
    work = getattr(module, name)

    def broken(given: Any, *rest: Any) -> Any:
        row = given[0] if isinstance(given, list) else given
        if step == "embed":
            broken.calls += 1  # type: ignore[attr-defined]
            found = broken.calls == 1  # type: ignore[attr-defined]  # a store does not say whose it is
        else:
            found = row["source_id"] == "b"
        if found:
            raise problem
        return work(given, *rest) if step not in ("cut", "dedup clips") else []

    broken.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(module, name, broken)
    if step == "dedup clips":
        monkeypatch.setattr(module, "find_duplicates", lambda *given: {})
    return run


@pytest.mark.parametrize("step", WORK)
def test_of_every_step_one_odd_row_costs_itself_alone(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = breaks_at(monkeypatch, step, ValueError("odd"))(tmp_path)
    errors = [row["error"] for row in read(uri) if row["error"]]
    assert len(errors) == (1 if step in ("embed", "cut") else 2)
    assert all(error.startswith(f"{step}: ") and error.endswith(".mp4: odd") for error in errors)
    assert UNFINISHED not in uri


@pytest.mark.parametrize("step", WORK)
def test_of_every_step_a_passing_fault_is_not_kept(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = breaks_at(monkeypatch, step, TimeoutError("no answer"))
    first = run(tmp_path)
    assert UNFINISHED in first
    assert run(tmp_path) != first


@pytest.mark.parametrize("step", WORK)
def test_of_every_step_failing_output_ends_it(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = breaks_at(monkeypatch, step, storage.OutputError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(storage.OutputError, match="No space left"):
        run(tmp_path)


def test_tracks_that_are_gone_are_no_error_of_a_source(tmp_path: Path) -> None:
    for run in (cut_of, dedup_clips_of):
        with pytest.raises(FileNotFoundError):
            run(tmp_path)


def test_a_caption_that_fails_is_an_error_of_its_clip_and_the_others_have_theirs(tmp_path, monkeypatch) -> None:
    def describe(row: dict[str, Any]) -> dict[str, Any]:
        if row["clip_id"] == "b1":
            raise LookupError("no words")
        return {"caption_short": row["clip_id"], "caption_detailed": "", "caption_model": "test"}

    monkeypatch.setattr(caption_module, "TEMPLATE", caption_module.Captioner("test", (), describe))
    given = caption_module.caption.fn(tables(tmp_path, "verdict", ROWS))
    rows = {row["clip_id"]: row for row in joined(given)}
    assert rows["b1"]["error"] == "caption: b.mp4: no words"
    assert rows["b1"]["rejected_by"] == ["error"]
    assert all(row["caption_short"] == name for name, row in rows.items() if name != "b1")


def test_a_source_that_could_not_be_embedded_is_an_error_and_not_cut(tmp_path, monkeypatch) -> None:
    embedded = breaks_at(monkeypatch, "embed", ValueError("odd"))(tmp_path)
    scanned = write(tmp_path, "scan", [row for row in ROWS if row["clip_id"].endswith("0")])
    apart = DedupSourcesConfig(similarity_sparse=1, similarity_dense=1)
    given = [scanned, *dedup_sources.fn([scanned], [embedded], apart)]
    monkeypatch.setattr(cut_module, "clips_of", lambda source, *rest: [source | {"clip_id": source["source_id"]}])
    rows = joined(cut_module.cut.fn(given))
    (failed,) = (row for row in rows if row["error"])
    assert failed["error"].startswith("embed: ") and failed["error"].endswith(".mp4: odd")
    assert (failed["clip_id"], failed["rejected_by"]) == (None, ["error"])
    assert [row["source_id"] for row in rows] == ["a", "b", "c"]
