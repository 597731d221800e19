"""Directories that the user has named: kept, and nobody else's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infinimem.model import directories


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(directories.VARIABLE, str(tmp_path / "cache" / "known.jsonl"))
    monkeypatch.setattr(directories, "_named", set())
    return tmp_path / "cache" / "known.jsonl"


def test_what_was_named_is_known_to_a_later_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not directories.is_trusted(tmp_path)
    directories.trust(tmp_path)
    monkeypatch.setattr(directories, "_named", set())
    assert (
        directories.is_trusted(tmp_path)
        and not directories.is_trusted(tmp_path / "below")
        and not directories.is_trusted(tmp_path.parent)
    )


def test_a_directory_is_known_by_every_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    directories.trust(Path("link"))
    assert directories.is_trusted(tmp_path / "model") and directories.is_trusted(Path("model/../model"))


def test_naming_a_directory_again_writes_nothing(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        directories.trust(tmp_path)
        monkeypatch.setattr(directories, "_named", set())
    assert kept.read_text().split() == [json.dumps(str(tmp_path))]


def test_where_nothing_can_be_written_it_holds_for_the_process(tmp_path: Path, kept: Path) -> None:
    kept.parent.write_text("a file")
    directories.trust(tmp_path)
    assert directories.is_trusted(tmp_path)


def test_a_line_that_was_cut_off_does_not_swallow_the_next(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.parent.mkdir()
    kept.write_text('"/some/dir')
    directories.trust(tmp_path)
    monkeypatch.setattr(directories, "_named", set())
    assert directories.is_trusted(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}\n[1]\nnull\n", b'"/cut', b"\n\n"])
def test_a_damaged_list_names_nothing(tmp_path: Path, kept: Path, content: bytes) -> None:
    kept.parent.mkdir()
    kept.write_bytes(content)
    assert not directories.is_trusted(tmp_path)
