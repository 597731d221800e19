"""Readers: what is found, what kind it is, and what is said about files that cannot be read."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinimem.errors import (
    DamagedSource,
    EmptySource,
    SourceError,
    SourceNotFound,
    SourceUnreadable,
    UnsupportedSource,
)
from infinimem.readers.find import find_files, find_sources
from infinimem.readers.source import open_source, read_pages

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def write(path: Path, text: str = "Some words.") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_importing_the_readers_loads_no_heavy_library() -> None:
    check = (
        "import sys, infinimem.readers; "
        "heavy = {'torch', 'numpy', 'pypdf', 'bs4', 'lxml', 'markdown_it', 'charset_normalizer'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_file_is_found_as_given(tmp_path: Path) -> None:
    path = write(tmp_path / "notes.log")
    assert find_sources(path) == [path]


def test_a_directory_is_walked_in_sorted_order_without_hidden_files_and_what_is_no_document(tmp_path: Path) -> None:
    names = ["b.md", "a.txt", "main.py", "sub/c.html", "sub/deep/d.pdf", ".hidden.txt", ".git/e.txt", "Makefile"]
    for name in names:
        write(tmp_path / name)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = [str(path.relative_to(tmp_path)) for path in find_sources(str(tmp_path))]
    assert found == ["Makefile", "a.txt", "b.md", "main.py", "sub/c.html", "sub/deep/d.pdf"]
    assert [one.path.name for one in find_files(tmp_path) if one.path not in find_sources(tmp_path)] == ["image.png"]


def test_a_glob_pattern_is_expanded_recursively_and_sorted(tmp_path: Path) -> None:
    for name in ["z.md", "sub/a.md", "sub/b.txt"]:
        write(tmp_path / name)
    found = find_sources(str(tmp_path / "**" / "*.md"))
    assert found == sorted([tmp_path / "z.md", tmp_path / "sub" / "a.md"])


def test_a_pattern_with_a_suffix_finds_files_of_that_suffix_whatever_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "server.log")
    assert find_sources(str(tmp_path / "*.log")) == [path]


def test_a_pattern_without_a_suffix_finds_documents_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    assert find_sources(str(tmp_path / "*")) == [path]


def test_a_file_named_like_a_pattern_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "part [1].txt")
    assert find_sources(path) == [path]


def test_a_file_named_twice_is_found_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    assert find_sources([path, tmp_path, str(tmp_path / "*.txt")]) == [path]


@pytest.mark.parametrize("names", ["", ["a.txt", ""]])
def test_no_name_is_not_the_directory_that_the_program_runs_in(names: str | list[str]) -> None:
    with pytest.raises(SourceNotFound, match="there is no name of a document; name a file"):
        find_sources(names)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"nowhere\.txt"):
        find_sources(tmp_path / "nowhere.txt")


def test_a_pattern_without_matches_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"\*\.md"):
        find_sources(str(tmp_path / "*.md"))


def test_a_directory_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UnsupportedSource, match=r"no document in it; infinimem reads PDF"):
        find_sources(tmp_path)


def test_a_source_knows_its_name_size_and_checksum(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "Straße")
    source = open_source(path)
    assert (source.name, source.kind, source.size, source.page_count) == ("a.txt", "text", 7, None)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.txt", "Words.", "text"),
        ("a.md", "# Words", "markdown"),
        ("a.html", "<p>Words.", "html"),
        ("README", "Words.", "text"),
        ("saved.txt", "<!DOCTYPE html><html><body>Words.", "html"),
        ("notes.md", "<html>Words.</html>", "markdown"),
    ],
)
def test_the_kind_comes_from_content_then_suffix(tmp_path: Path, name: str, text: str, kind: str) -> None:
    assert open_source(write(tmp_path / name, text)).kind == kind


def test_opening_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="check the spelling"):
        open_source(tmp_path / "nowhere.txt")


def test_opening_a_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSource, match="is a directory"):
        open_source(tmp_path)


def test_a_file_without_permission_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceUnreadable, match=r"a\.txt.*permission denied"):
        open_source(path)


def test_a_file_that_vanishes_before_reading_is_not_found(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.txt"))
    source.path.unlink()
    with pytest.raises(SourceNotFound):
        list(read_pages(source))


def test_an_empty_file_is_refused_when_opened(tmp_path: Path) -> None:
    with pytest.raises(EmptySource, match="0 bytes"):
        open_source(write(tmp_path / "a.txt", ""))


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
def test_white_space_is_refused_at_the_end_of_reading(tmp_path: Path, name: str) -> None:
    source = open_source(write(tmp_path / name, " \n\t\n\u00a0\n"))
    with pytest.raises(EmptySource, match="only white space"):
        list(read_pages(source))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "a JPEG image"),
        (b"\x1f\x8b\x08" + bytes(50), "a gzip archive"),
        (b"abc\0\0\1\2def" * 20, "a binary file"),
    ],
)
def test_a_binary_file_is_refused_by_its_content(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "picture.txt"
    path.write_bytes(content)
    with pytest.raises(UnsupportedSource, match=f"picture.txt' is {what}.*convert"):
        open_source(path)


def test_a_memory_file_is_no_document(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(UnsupportedSource, match="is a memory file or the weights of a model"):
        open_source(path)


def test_a_zip_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "Words.")
    with pytest.raises(UnsupportedSource, match="is a ZIP file"):
        open_source(path)


@pytest.mark.parametrize("name", ["a.pdf", "a.epub"])
def test_a_page_saved_under_the_name_of_a_book_is_damaged(tmp_path: Path, name: str) -> None:
    with pytest.raises(DamagedSource, match="whatever its name says"):
        open_source(write(tmp_path / name, "<html>404 Not Found</html>"))


@quick
@given(
    content=st.one_of(
        st.binary(max_size=400),
        st.builds(
            bytes.__add__,
            st.sampled_from([b"%PDF-1.7\n", b"PK\x03\x04", b"<html>", b"\xff\xfe", b"# "]),
            st.binary(max_size=300),
        ),
    ),
    suffix=st.sampled_from([".txt", ".md", ".html", ".pdf", ".epub", ""]),
)
def test_any_bytes_give_clean_pages_or_a_source_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    try:
        pages = list(read_pages(open_source(path)))
    except SourceError as error:
        assert "\n" not in str(error)
        assert "any" in str(error)
        return
    assert pages
    for page in pages:
        assert page.text.strip()
        assert unicodedata.is_normalized("NFC", page.text)
        assert "\0" not in page.text
        assert "\n\n\n" not in page.text
        assert all(line == line.rstrip() for line in page.text.split("\n"))
        page.text.encode("utf-8")
