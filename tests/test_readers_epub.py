"""EPUB: chapters in the order of the spine, and books that must be refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from infinimem.errors import DamagedSource, EncryptedSource, NoTextInSource
from infinimem.readers.page import Page
from infinimem.readers.source import open_source, read_pages

CONTAINER = """<?xml version="1.0"?>
<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
NAV = """<html xmlns="http://www.w3.org/1999/xhtml"><body><nav><ol>
<li><a href="text/one.xhtml">The First</a></li><li><a href="text/two%20b.xhtml#start">The Second</a></li>
</ol></nav></body></html>"""
NCX = """<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap><navPoint><navLabel><text>From NCX</text></navLabel>
<content src="text/one.xhtml"/></navPoint></navMap></ncx>"""


def package(items: str, spine: str) -> str:
    return f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest><spine>{spine}</spine></package>'


def item(name: str, href: str, extra: str = 'media-type="application/xhtml+xml"') -> str:
    return f'<item id="{name}" href="{href}" {extra}/>'


def chapter(body: str) -> str:
    return f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body>{body}</body></html>'


ENTRIES = {
    "META-INF/container.xml": CONTAINER,
    "OEBPS/book.opf": package(
        item("two", "text/two%20b.xhtml")
        + item("one", "text/one.xhtml")
        + item("cover", "text/cover.xhtml")
        + item("nav", "nav.xhtml", 'media-type="application/xhtml+xml" properties="nav"'),
        '<itemref idref="cover"/><itemref idref="one"/><itemref idref="two"/>',
    ),
    "OEBPS/nav.xhtml": NAV,
    "OEBPS/text/cover.xhtml": chapter('<img src="cover.jpg"/>'),
    "OEBPS/text/one.xhtml": chapter("<h1>Own heading</h1><p>First words.</p>"),
    "OEBPS/text/two b.xhtml": chapter("<p>Second words.</p>"),
}


def book(path: Path, changes: dict[str, str | None] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip")
        for name, content in {**ENTRIES, **(changes or {})}.items():
            if content is not None:
                archive.writestr(name, content)
    return path


SVG = 'media-type="image/svg+xml"'
IMAGE = 'media-type="image/png" fallback="{}"'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "book.epub"


def pages_of(path: Path) -> list[Page]:
    return list(read_pages(open_source(path)))


def test_chapters_come_in_the_order_of_the_spine_with_the_titles_of_the_contents(path: Path) -> None:
    assert pages_of(book(path)) == [
        Page(2, "Own heading\n\nFirst words.", "The First"),
        Page(3, "Second words.", "The Second"),
    ]


def test_the_chapters_are_counted_when_opened(path: Path) -> None:
    source = open_source(book(path))
    assert (source.kind, source.page_count) == ("epub", 3)


def test_an_epub_is_known_by_its_content(tmp_path: Path) -> None:
    assert open_source(book(tmp_path / "book.zip")).kind == "epub"


def test_titles_come_from_an_ncx(path: Path) -> None:
    opf = package(
        item("one", "text/one.xhtml") + item("ncx", "toc.ncx", 'media-type="application/x-dtbncx+xml"'),
        '<itemref idref="one"/>',
    )
    assert pages_of(book(path, {"OEBPS/book.opf": opf, "OEBPS/toc.ncx": NCX}))[0].title == "From NCX"


def test_a_chapter_without_an_entry_has_the_title_of_its_heading(path: Path) -> None:
    opf = package(item("one", "text/one.xhtml"), '<itemref idref="one"/>')
    assert pages_of(book(path, {"OEBPS/book.opf": opf}))[0].title == "Own heading"


ANCHORED = """<html><body><nav><ol><li><a href="text/one.xhtml#a">I. The Reeds</a></li>
<li><a href="text/one.xhtml#b">II. The Ice</a></li></ol></nav>
<nav xmlns:epub="http://www.idpf.org/2007/ops" epub:type="page-list"><a href="text/one.xhtml#c">17</a></nav>
</body></html>"""
DUBLIN_CORE = """<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Heron Diaries</dc:title>
<dc:creator>Lotte Amsel</dc:creator><dc:creator>Per Lind</dc:creator><dc:date>1911</dc:date>
<dc:language>en</dc:language></metadata>"""


def test_chapters_in_one_file_are_told_apart_by_their_anchors(path: Path) -> None:
    body = (
        "<p>Before.</p><h2 id='a'>I</h2><p>Reeds.</p><div><p><a id='b'></a>II</p></div><p>Ice.</p><p id='c'>Ring.</p>"
    )
    changes = {"OEBPS/nav.xhtml": ANCHORED, "OEBPS/text/one.xhtml": chapter(body)}
    one, two = pages_of(book(path, changes))
    assert list(one.sections()) == [
        (None, "Before.\n\n"),
        ("I. The Reeds", "I\n\nReeds.\n\n"),
        ("II. The Ice", "II\n\nIce.\n\nRing."),
    ]
    assert two.title == "II. The Ice", "a file without a title goes on with the section before"


def test_a_book_says_who_wrote_it_and_what_could_not_be_read_of_it(path: Path) -> None:
    content = ENTRIES["OEBPS/book.opf"].replace("<manifest>", f"{DUBLIN_CORE}<manifest>")
    content = content.replace("<spine>", '<spine><itemref idref="picture"/>')
    first, second = pages_of(book(path, {"OEBPS/book.opf": content}))
    assert first.about == {
        "title": "The Heron Diaries",
        "author": "Lotte Amsel; Per Lind",
        "date": "1911",
        "language": "en",
    }
    assert first.text.startswith("Title: The Heron Diaries\nAuthor: Lotte Amsel; Per Lind\nDate: 1911\n\nOwn heading")
    assert first.left_out == {"items without text": 1} and not second.about and not second.left_out


def test_a_book_of_images_has_no_text(path: Path) -> None:
    opf = package(item("cover", "text/cover.xhtml"), '<itemref idref="cover"/>')
    with pytest.raises(NoTextInSource, match="book of images"):
        pages_of(book(path, {"OEBPS/book.opf": opf}))


def test_a_missing_container_is_damage(path: Path) -> None:
    with pytest.raises(DamagedSource, match=r"'book\.epub' is a damaged EPUB.*container\.xml' is missing"):
        open_source(book(path, {"META-INF/container.xml": None}))


def test_a_missing_chapter_is_damage(path: Path) -> None:
    with pytest.raises(DamagedSource, match=r"one\.xhtml' is missing"):
        pages_of(book(path, {"OEBPS/text/one.xhtml": None}))


def test_a_book_without_chapters_is_damage(path: Path) -> None:
    with pytest.raises(DamagedSource, match="lists no chapters"):
        open_source(book(path, {"OEBPS/book.opf": package("", "")}))


def test_a_package_that_is_not_xml_is_damage(path: Path) -> None:
    with pytest.raises(DamagedSource):
        open_source(book(path, {"OEBPS/book.opf": "no markup at all"}))


def test_a_truncated_archive_is_damage(path: Path) -> None:
    content = book(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedSource, match=r"book\.epub"):
        open_source(path)


def test_bytes_changed_in_a_chapter_are_damage(path: Path) -> None:
    content = bytearray(book(path, {"OEBPS/text/one.xhtml": chapter("<p>" + "words " * 500)}).read_bytes())
    position = content.index(b"OEBPS/text/one.xhtml") + 30
    content[position : position + 10] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(DamagedSource, match="cannot be unpacked"):
        pages_of(path)


def test_a_book_with_drm_is_refused(path: Path) -> None:
    encryption = (
        '<encryption xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData>'
        '<enc:EncryptionMethod Algorithm="http://www.w3.org/2001/04/xmlenc#aes128-cbc"/></enc:EncryptedData></encryption>'
    )
    with pytest.raises(EncryptedSource, match="DRM"):
        open_source(book(path, {"META-INF/encryption.xml": encryption}))


def test_a_book_with_obfuscated_fonts_is_read(path: Path) -> None:
    encryption = (
        '<encryption xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData>'
        '<enc:EncryptionMethod Algorithm="http://www.idpf.org/2008/embedding"/></enc:EncryptedData></encryption>'
    )
    assert len(pages_of(book(path, {"META-INF/encryption.xml": encryption}))) == 2


def test_a_path_out_of_the_archive_reads_no_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.xhtml").write_text(chapter("<p>secret</p>"))
    opf = package(item("out", "../../secret.xhtml"), '<itemref idref="out"/>')
    with pytest.raises(DamagedSource, match="is missing"):
        pages_of(book(path, {"OEBPS/book.opf": opf}))


def test_external_entities_are_not_read(path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("OEBPS/book.opf")
    hostile = CONTAINER.replace(
        '<?xml version="1.0"?>', f'<?xml version="1.0"?><!DOCTYPE c [<!ENTITY x SYSTEM "{secret.as_uri()}">]>'
    ).replace("OEBPS/book.opf", "&x;")
    with pytest.raises(DamagedSource):
        open_source(book(path, {"META-INF/container.xml": hostile}))


def test_entities_in_a_chapter_are_not_expanded(path: Path) -> None:
    bomb = (
        '<?xml version="1.0"?><!DOCTYPE h [<!ENTITY a "lolz"><!ENTITY b "&a;&a;&a;&a;">]>'
        "<html><body><p>Words &b;.</p></body></html>"
    )
    text = "".join(page.text for page in pages_of(book(path, {"OEBPS/text/one.xhtml": bomb})))
    assert "Words" in text
    assert "lolzlolz" not in text


def test_an_entry_that_unpacks_to_too_much_is_refused(path: Path) -> None:
    with pytest.raises(DamagedSource, match="more than 50 MB"):
        pages_of(book(path, {"OEBPS/text/one.xhtml": chapter("<p>" + "a" * (50 << 20))}))


def test_drawings_in_the_spine_have_words_and_images_their_fallback(path: Path) -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><text>The heron nests here.</text></svg>'
    items = item("d", "d.svg", SVG) + item("i", "i.png", IMAGE.format("t")) + item("t", "t.xhtml")
    spine = '<itemref idref="d"/><itemref idref="i"/>'
    files = {"OEBPS/book.opf": package(items, spine), "OEBPS/d.svg": svg, "OEBPS/t.xhtml": chapter("<p>In words.</p>")}
    assert [page.text for page in pages_of(book(path, {**files}))] == ["The heron nests here.", "In words."]


def test_fallbacks_that_lead_to_each_other_end(path: Path) -> None:
    items = (
        item("a", "a.png", IMAGE.format("b")) + item("b", "b.png", IMAGE.format("a")) + item("one", "text/one.xhtml")
    )
    spine = '<itemref idref="a"/><itemref idref="one"/>'
    assert len(pages_of(book(path, {"OEBPS/book.opf": package(items, spine)}))) == 1
