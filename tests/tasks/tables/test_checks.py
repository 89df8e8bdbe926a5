"""What a machine allows runs to read and write."""

from pathlib import Path

import pytest

from tasks.curation.inputs import inputs_of
from tasks.tables.checks import ROOTS, PreflightError, check_roots


def test_without_a_setting_every_place_may_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ROOTS, raising=False)
    check_roots([str(tmp_path), "s3://bucket/videos"], "source")


def test_a_place_outside_of_the_roots_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ROOTS, f"{tmp_path}/data, s3://bucket/videos")
    check_roots([f"{tmp_path}/data", f"{tmp_path}/data/a.mp4", "s3://bucket/videos/b.mp4"], "source")
    for outside in (
        f"{tmp_path}/database",
        f"{tmp_path}/data/../secret",
        "s3://bucket/videos2",
        "s3://other",
        "/",
        "s3://bucket/videos/../secret",
    ):
        with pytest.raises(PreflightError, match="outside of what this machine allows"):
            check_roots([outside], "source")


def test_neither_a_link_nor_an_input_list_leads_out_of_the_roots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.mp4").write_bytes(b"x")
    monkeypatch.setenv(ROOTS, str(inside))
    (inside / "list.csv").write_text(f"uri\n{outside / 'secret.mp4'}\n")
    (inside / "videos").mkdir()
    (inside / "videos" / "link.mp4").symlink_to(outside / "secret.mp4")
    for source in ("list.csv", "videos"):
        with pytest.raises(PreflightError, match="outside of what this machine allows"):
            inputs_of(str(inside / source), str(inside / "out"), 64, 2.0)
