"""A file's content is hashed once, and again when it changes."""

import hashlib
import os
from pathlib import Path

import pytest

from media import digest
from media.digest import file_digest


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    return path


def test_it_is_the_sha256_of_the_content(file: Path) -> None:
    assert file_digest(file) == hashlib.sha256(b"one").hexdigest() == file_digest(str(file))


def test_a_file_that_does_not_change_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = file_digest(file)
    monkeypatch.setattr(digest.hashlib, "file_digest", None)  # would raise where it is called
    assert file_digest(file) == first
    link = file.with_name("link")
    link.symlink_to(file)
    assert file_digest(link) == first


def test_another_content_of_the_same_size_and_time_has_another_digest(file: Path) -> None:
    before, stat = file_digest(file), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(file) == hashlib.sha256(b"two").hexdigest() != before


def test_what_others_may_write_is_not_believed(file: Path) -> None:
    memory = file.parent / f"contentv-digests-{os.getuid()}"
    file_digest(file)
    (known,) = memory.iterdir()
    known.write_text("0" * 64)
    assert file_digest(file) == "0" * 64  # remembered
    memory.chmod(0o777)
    assert file_digest(file) == hashlib.sha256(b"one").hexdigest()


def test_a_memory_that_is_damaged_is_made_again(file: Path) -> None:
    file_digest(file)
    (known,) = (file.parent / f"contentv-digests-{os.getuid()}").iterdir()
    known.write_text("half")
    assert file_digest(file) == hashlib.sha256(b"one").hexdigest()
