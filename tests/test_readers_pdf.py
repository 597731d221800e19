"""PDF: pages as prose, and files that must be refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nasty_pdfs
import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject, TextStringObject
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

from infinimem.errors import DamagedSource, EncryptedSource, NoTextInSource
from infinimem.readers.page import Page
from infinimem.readers.pdf.hyphens import Words
from infinimem.readers.pdf.pages import _letters
from infinimem.readers.source import open_source, read_pages
from infinimem.text.passages import LIMIT, cut

LEFT = """Dynamic languages are more dif-
ficult to compile than others, and
the compilers need to emit code for
every case that can happen at run-
time. We present another way here
that finds the hot loops of a pro-
gram and compiles them.""".splitlines()
RIGHT = """of the state-of-the-
art in this field, where a program
is read line by line. The method is
cheap, and what it gains is worth
the time that the compiler takes.""".splitlines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "paper.pdf"


def draw(path: Path, *pages: Callable[[Canvas], None]) -> Path:
    canvas = Canvas(str(path), pagesize=A4)
    for page in pages:
        canvas.setFont("Times-Roman", 10)
        page(canvas)
        canvas.showPage()
    canvas.save()
    return path


def column(canvas: Canvas, lines: list[str], x: float = 72, top: float = 700, leading: float = 12) -> None:
    for number, line in enumerate(lines):
        canvas.drawString(x + 10 * (len(line) - len(line.lstrip(">"))), top - leading * number, line.lstrip(">"))


def pages_of(path: Path) -> list[Page]:
    return list(read_pages(open_source(path)))


def lines_page(*lines: str, **options: float) -> Callable[[Canvas], None]:
    return lambda canvas: column(canvas, list(lines), **options)


def text_of(path: Path, *lines: str) -> str:
    return pages_of(draw(path, lines_page(*lines)))[0].text


def test_two_columns_read_as_prose(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        column(canvas, [*LEFT[:-1], "gram and compiles them by the rules"])
        column(canvas, RIGHT, x=320)

    assert pages_of(draw(path, page))[0].text == (
        "Dynamic languages are more difficult to compile than others, and the compilers need to emit code for every "
        "case that can happen at runtime. We present another way here that finds the hot loops of a program and "
        "compiles them by the rules of the state-of-the-art in this field, where a program is read line by line. The "
        "method is cheap, and what it gains is worth the time that the compiler takes."
    )


def test_an_indented_line_starts_a_paragraph(path: Path) -> None:
    text = text_of(path, *LEFT[:-1], "gram.", ">" + "A second paragraph starts in", *RIGHT[1:])
    first, second = text.split("\n\n")
    assert first.endswith("hot loops of a program.")
    assert second.startswith("A second paragraph starts in art in this field")


def test_a_gap_starts_a_paragraph(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        column(canvas, LEFT)
        column(canvas, RIGHT, top=700 - 12 * len(LEFT) - 10)

    assert pages_of(draw(path, page))[0].text.count("\n\n") == 1


def test_a_heading_stands_alone(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        canvas.setFont("Times-Bold", 14)
        canvas.drawString(72, 720, "1 Introduction")
        canvas.setFont("Times-Roman", 10)
        column(canvas, LEFT)

    assert pages_of(draw(path, page))[0].text.startswith("1 Introduction\n\nDynamic languages")


def test_a_footnote_does_not_tear_a_sentence(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        column(canvas, [*LEFT[:-1], "gram and compiles them by the rules"])
        canvas.setFont("Times-Roman", 7)
        column(canvas, ["Copies of this work may be made for free by anyone."], top=80)
        canvas.setFont("Times-Roman", 10)
        column(canvas, RIGHT, x=320)

    body, note = pages_of(draw(path, page))[0].text.split("\n\n")
    assert "by the rules of the state" in body
    assert note.startswith("Copies of this work")


def test_code_in_a_typewriter_font_keeps_its_lines_and_indents(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        column(canvas, LEFT)
        canvas.setFont("Courier", 10)
        for number, (x, line) in enumerate([(72, "if (x) {"), (84, "return 1;"), (72, "}")]):
            canvas.drawString(x, 600 - 12 * number, line)

    assert pages_of(draw(path, page))[0].text.endswith("\n\nif (x) {\n  return 1;\n}")


def test_a_typescript_reads_as_prose(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        canvas.setFont("Courier", 10)
        column(canvas, LEFT)

    assert "\n" not in pages_of(draw(path, page))[0].text


def test_rows_of_a_table_stay_on_their_lines(path: Path) -> None:
    text = text_of(path, "Model A 36.4 7.6 15.3", "Model B 36.8 8.3 15.7", "Model C 38.6 7.2 15.6")
    assert text == "Model A 36.4 7.6 15.3\nModel B 36.8 8.3 15.7\nModel C 38.6 7.2 15.6"


def test_items_of_a_list_are_paragraphs(path: Path) -> None:
    text = text_of(path, "1. The first item is so long that", ">it is wrapped.", "2. The second item is short.")
    assert text == "1. The first item is so long that it is wrapped.\n\n2. The second item is short."


def test_ligatures_soft_hyphens_and_controls_are_resolved() -> None:
    # Called directly, since the standard fonts that a test can draw with have no such glyphs.
    assert _letters("e\ufb03cient \ufb02ow\u00ader na¨ıve Franc¸ois \x0ex²") == "efficient flower naïve François x²"


def numbered(number: int, *, odd: str = "A Short Title", even: str = "I. Author") -> Callable[[Canvas], None]:
    def page(canvas: Canvas) -> None:
        canvas.drawString(72, 800, f"{number} {odd if number % 2 else even}")
        column(
            canvas, [f"Story {chr(64 + number)} starts here and goes", *LEFT, f"And so ends story {chr(64 + number)}."]
        )
        canvas.drawString(290, 40, f"{number + 4}")

    return page


def test_of_running_lines_the_first_of_each_wording_stays(path: Path) -> None:
    draw(path, *(numbered(number) for number in range(1, 9)))
    first, second, *others = pages_of(path)
    assert first.text.startswith("1 A Short Title\n\nStory A starts here")
    assert second.text.startswith("2 I. Author\n\nStory B starts here")
    for page in others:
        assert page.text.startswith(f"Story {chr(64 + page.number)} starts here")
    for page in (first, second, *others):
        # The page number at the foot is on no page.
        assert page.text.endswith(f"And so ends story {chr(64 + page.number)}.")


def with_lines(number: int, *lines: tuple[str, float], body: float = 10) -> Callable[[Canvas], None]:
    """A page with lines of these sizes on top, above text of its own."""

    def page(canvas: Canvas) -> None:
        for place, (line, size) in enumerate(lines):
            canvas.setFont("Times-Roman", size)
            canvas.drawString(72, 800 - 20 * place, line)
        canvas.setFont("Times-Roman", body)
        column(canvas, [f"Story {chr(64 + number)} starts here and goes", *LEFT, "And so it ends."])

    return page


def test_what_changes_in_a_running_line_stays(path: Path) -> None:
    for label in ("Invoice no. {}", "Chapter {}: of salt", "Account: {}", "Date 3.{}.2021"):
        draw(path, *(with_lines(number, (label.format(1000 + 7 * number), 10)) for number in (1, 2, 3)))
        assert [label.format(1000 + 7 * page.number) in page.text for page in pages_of(path)] == [True] * 3


def test_a_number_with_a_label_is_no_page_number(path: Path) -> None:
    draw(path, *(with_lines(number, (f"Invoice No. {1000 + number}", 10)) for number in (1, 2, 3)))
    assert [page.text.split("\n")[0] for page in pages_of(path)] == [f"Invoice No. {1000 + n}" for n in (1, 2, 3)]


def test_titles_in_large_letters_stay_on_every_page(path: Path) -> None:
    draw(path, *(with_lines(number, ("Results", 18)) for number in (1, 2, 3)))
    assert all(page.text.startswith("Results\n\nStory") for page in pages_of(path))


def test_words_for_page_numbers_are_removed(path: Path) -> None:
    for line in ("Page {}", "{} of 3", "- {} -", "Seite {} von 3"):
        draw(path, *(with_lines(number, (line.format(number), 10)) for number in (1, 2, 3)))
        assert all(page.text.startswith("Story") for page in pages_of(path)), line


CELLS = [["Station", "Opened", "Depth"], ["Alder", "1931", "14 m"], ["Birch", "", "22 m"], ["Cedar", "1962", ""]]


def in_cells(canvas: Canvas, rows: list[list[str]], *, align: str = "left", top: float = 700) -> None:
    write = {"left": canvas.drawString, "right": canvas.drawRightString, "middle": canvas.drawCentredString}[align]
    for number, row in enumerate(rows):
        for place, cell in enumerate(row):
            if cell:
                write(150 + 120 * place, top - 18 * number, cell)


@pytest.mark.parametrize("align", ["left", "right", "middle"])
def test_the_cells_of_a_table_are_lines_by_row_with_empty_cells_in_their_place(path: Path, align: str) -> None:
    text = pages_of(draw(path, lambda canvas: in_cells(canvas, CELLS, align=align)))[0].text
    assert text.split("\n") == ["Station | Opened | Depth", "Alder | 1931 | 14 m", "Birch | | 22 m", "Cedar | 1962 |"]


def test_each_passage_of_a_long_table_names_its_columns(path: Path) -> None:
    rows = [[f"Village{n}", str(1500 + n), f"{n} m"] for n in range(34)]
    text = pages_of(draw(path, lambda canvas: in_cells(canvas, [CELLS[0], *rows], top=750)))[0].text
    passages = cut(text, "table")
    assert len(passages) > 1
    for name, year, depth in rows:
        (found,) = [one.text for one in passages if f"{name} | {year} | {depth}" in one.text]
        assert found.startswith("Station | Opened | Depth") and len(found) <= LIMIT


def test_the_head_of_a_table_stays_on_every_page(path: Path) -> None:
    tables = [[CELLS[0], *([f"Place{n}", str(n), f"{n} m"] for n in range(s, s + 5))] for s in (10, 20, 30)]
    draw(path, *(lambda canvas, rows=rows: in_cells(canvas, rows) for rows in tables))
    assert [page.text.split("\n")[0] for page in pages_of(path)] == ["Station | Opened | Depth"] * 3


def test_columns_of_prose_that_are_drawn_row_by_row_are_read_one_by_one(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        for number, (left, right) in enumerate(zip(LEFT, RIGHT, strict=False)):
            canvas.drawString(60, 700 - 14 * number, left)
            canvas.drawString(330, 700 - 14 * number, right)

    text = pages_of(draw(path, page))[0].text
    assert text.index("every case that can happen") < text.index("in this field, where a program")


@pytest.mark.parametrize(
    ("before", "small", "rise", "expected"),
    [
        ("opened in 1931", "2", 4, "opened in 1931 [2]"),
        ("cost 5,400", "3", 4, "cost 5,400 [3]"),
        ("carries 10", "26", 4, "carries 10^26"),
        ("an area of 40 km", "2", 4, "an area of 40 km^2"),
        ("on the 21", "st", 4, "on the 21st"),
        ("water is H", "2", -2, "water is H2"),
        ("the value x", "i", -2, "the value x_i"),
        ("as the city says.", "12", 4, "as the city says. [12]"),
    ],
)
def test_raised_and_lowered_letters_are_not_glued_to_what_is_before(
    path: Path, before: str, small: str, rise: float, expected: str
) -> None:
    def page(canvas: Canvas) -> None:
        text = canvas.beginText(60, 700)
        for part, size, up in ((before, 11, 0), (small, 7, rise), (" and more", 11, 0)):
            text.setFont("Times-Roman", size)
            text.setRise(up)
            text.textOut(part)
        canvas.drawText(text)

    assert pages_of(draw(path, page))[0].text.startswith(expected)


def test_marks_of_two_notes_stay_two(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        text = canvas.beginText(60, 700)
        for part, size, up in (
            ("as the city says", 11, 0),
            ("2", 7, 4),
            (" ", 7, 4),
            ("3", 7, 4),
            (" and more", 11, 0),
        ):
            text.setFont("Times-Roman", size)
            text.setRise(up)
            text.textOut(part)
        canvas.drawText(text)

    assert pages_of(draw(path, page))[0].text == "as the city says [2 3] and more"


def test_text_that_is_drawn_twice_for_boldness_is_read_once(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        for x in (72.0, 72.3):
            canvas.drawString(x, 700, "Emergency exit: door seven")
        canvas.drawString(72, 680, "The hall has twelve doors.")

    assert pages_of(draw(path, page))[0].text.count("Emergency exit: door seven") == 1


@pytest.mark.parametrize("copies", [1, 2])
def test_letters_that_are_set_one_by_one_are_words(path: Path, copies: int) -> None:
    def page(canvas: Canvas) -> None:
        x = 60.0
        for letter in "Emergency exit: door seven":
            for copy in range(copies):
                canvas.drawString(x + 0.3 * copy, 700, letter)
            x += stringWidth(letter, "Times-Roman", 10)

    assert pages_of(draw(path, page))[0].text == "Emergency exit: door seven"


def test_a_page_number_on_a_single_page_is_removed(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        column(canvas, LEFT)
        canvas.drawString(290, 40, "- 1 -")

    assert pages_of(draw(path, page))[0].text.endswith("compiles them.")


def test_numbers_in_the_text_are_not_taken_for_page_numbers(path: Path) -> None:
    assert text_of(path, "The answer is", "42") == "The answer is 42"


def test_a_word_broken_by_the_end_of_a_page_is_whole_on_the_first(path: Path) -> None:
    first, second = pages_of(draw(path, lines_page(*LEFT[:-1]), lines_page("gram and compiles them.")))
    assert first.text.endswith("hot loops of a program")
    assert second.text == "and compiles them."


def test_page_numbers_are_physical_and_pages_without_text_are_left_out(path: Path) -> None:
    pages = pages_of(draw(path, lambda _: None, lines_page(*LEFT), lambda _: None, lines_page(*RIGHT)))
    assert [page.number for page in pages] == [2, 4]


def test_a_heading_in_the_middle_of_a_page_is_the_title_of_what_follows(path: Path) -> None:
    def page(*names: str, words: bool = True) -> Callable[[Canvas], None]:
        def draw_page(canvas: Canvas) -> None:
            for number, name in enumerate(names):
                top = 700 - 200 * number
                canvas.bookmarkHorizontal(name, 0, top + 12)
                canvas.addOutlineEntry(f"{number + 1} {name}", name)
                canvas.drawString(72, top, name if words else "")
                column(canvas, [f"Of the {name} the report says little here."], top=top - 30)

        return draw_page

    rest = lines_page("The report goes on and on about this.")
    first, second, third = pages_of(draw(path, page("mill", "pond"), rest, page("barn", "yard", words=False)))
    assert [title for title, _ in first.sections()] == ["1 mill", "2 pond"]
    assert [text.split("\n")[0] for _, text in first.sections()] == ["mill", "pond"]
    assert second.title == "2 pond" and not second.headings
    # Where the words of a heading are not printed, it stands where the outline leads to.
    assert [(title, text.split()[2]) for title, text in third.sections()] == [("1 barn", "barn"), ("2 yard", "yard")]


def test_the_number_that_is_printed_on_a_page_is_known(path: Path) -> None:
    def page(printed: int) -> Callable[[Canvas], None]:
        def draw_page(canvas: Canvas) -> None:
            column(
                canvas,
                [f"Story of the {['north', 'east', 'south', 'west'][printed]} in some words."],
            )
            canvas.drawString(290, 30, f"Harbour ledger, page {printed}" if printed else "")

        return draw_page

    pages = pages_of(draw(path, *map(page, range(4))))
    assert [page.label for page in pages] == [None, "1", "2", "3"]
    assert [dict(page.left_out) for page in pages] == [{}, {}, {"running lines": 1}, {"running lines": 1}]


def test_page_labels_name_the_numbers_of_pages(path: Path) -> None:
    draw(path, *(lines_page(f"Story {number}.") for number in range(4)))
    writer = pypdf.PdfWriter(clone_from=path)
    writer.set_page_label(0, 1, "/r")
    writer.set_page_label(2, 3, "/D", start=1)
    writer.write(path)
    assert [page.label for page in pages_of(path)] == ["i", "ii", "1", "2"]


def test_a_pdf_says_who_wrote_it(path: Path) -> None:
    canvas = Canvas(str(path), pagesize=A4, lang="sv")
    canvas.setTitle("The Beekeeper of Lund")
    canvas.setAuthor("Sigrid Falk")
    canvas.drawString(72, 700, "The hives stand on the southern slope.")
    canvas.save()
    (page,) = pages_of(path)
    assert {name: page.about[name] for name in ("title", "author", "language")} == {
        "title": "The Beekeeper of Lund",
        "author": "Sigrid Falk",
        "language": "sv",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", page.about["date"])
    assert page.text.startswith("Title: The Beekeeper of Lund\nAuthor: Sigrid Falk\nDate: ")


XMP = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title><rdf:Alt><rdf:li xml:lang="x-default">Hives</rdf:li></rdf:Alt>
</dc:title><dc:creator><rdf:Seq><rdf:li>Sigrid Falk</rdf:li><rdf:li>Per Lind</rdf:li></rdf:Seq></dc:creator>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


@pytest.mark.parametrize(
    ("xmp", "expected"), [(XMP, {"title": "Hives", "author": "Sigrid Falk; Per Lind"}), ("<broken", {})]
)
def test_xmp_says_what_the_information_does_not(path: Path, xmp: str, expected: dict[str, str]) -> None:
    draw(path, lines_page("The hives stand on the southern slope."))
    writer = pypdf.PdfWriter(clone_from=path)
    stream = pypdf.generic.StreamObject()
    stream.set_data(xmp.encode())
    writer.root_object[NameObject("/Metadata")] = writer._add_object(stream)
    writer.write(path)
    (page,) = pages_of(path)
    assert {name: value for name, value in page.about.items() if name in ("title", "author")} == expected


def test_titles_come_from_the_outline(path: Path) -> None:
    def entry(title: str, level: int) -> Callable[[Canvas], None]:
        def page(canvas: Canvas) -> None:
            canvas.bookmarkPage(title)
            canvas.addOutlineEntry(title, title, level)
            column(canvas, [f"Text of {title}."])

        return page

    plain = lines_page("Text without an entry.")
    pages = pages_of(draw(path, plain, entry("Chapter", 0), entry("Section", 1), plain))
    assert [page.title for page in pages] == [None, "Chapter", "Section", "Section"]


def test_the_pages_are_counted_when_opened(path: Path) -> None:
    assert open_source(draw(path, lines_page(*LEFT), lines_page(*RIGHT))).page_count == 2


def test_pages_are_extracted_only_when_they_are_needed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(path, *(numbered(number) for number in range(1, 31)))
    extracted = []
    extract = pypdf.PageObject.extract_text

    def counted(page: pypdf.PageObject, **options: object) -> str:
        extracted.append(page)
        return extract(page, **options)

    monkeypatch.setattr(pypdf.PageObject, "extract_text", counted)
    assert next(read_pages(open_source(path))).number == 1
    assert len(extracted) < 10


def test_many_pages_are_read_in_order(path: Path) -> None:
    draw(path, *(lines_page(f"This is page {number}.") for number in range(1, 151)))
    assert [page.text for page in pages_of(path)] == [f"This is page {number}." for number in range(1, 151)]


def encrypted(path: Path, password: str) -> Path:
    writer = pypdf.PdfWriter(clone_from=draw(path, lines_page(*LEFT)))
    writer.encrypt(password, "owner", algorithm="RC4-128")
    writer.write(path)
    return path


def test_a_pdf_with_a_password_is_refused_when_opened(path: Path) -> None:
    with pytest.raises(EncryptedSource, match=r"'paper\.pdf' needs a password"):
        open_source(encrypted(path, "secret"))


def test_a_pdf_with_an_empty_password_is_read(path: Path) -> None:
    assert pages_of(encrypted(path, ""))[0].text.startswith("Dynamic languages")


def test_a_pdf_without_a_text_layer_says_that_it_may_be_a_scan(path: Path) -> None:
    def page(canvas: Canvas) -> None:
        canvas.rect(100, 100, 200, 200, fill=1)

    source = open_source(draw(path, page, page))
    with pytest.raises(
        NoTextInSource, match=r"'paper\.pdf' has 2 pages but no text layer; if they are scans, recognize"
    ):
        list(read_pages(source))


def test_a_damaged_pdf_is_refused_when_opened_and_nothing_is_printed(
    path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    path.write_bytes(b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog\n")
    with pytest.raises(DamagedSource, match=r"'paper\.pdf' is a damaged PDF"):
        open_source(path)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_a_pdf_with_a_broken_table_of_objects_is_read_silently(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = draw(path, lines_page(*LEFT)).read_bytes()
    path.write_bytes(content[: content.rindex(b"startxref")] + b"startxref\n1\n%%EOF\n")
    assert pages_of(path)[0].text.startswith("Dynamic languages")
    assert not caplog.records


def test_a_page_that_cannot_be_extracted_is_named(path: Path) -> None:
    path.write_bytes(nasty_pdfs.texts(nasty_pdfs.WORDS, b"BT /F1 12 Tf " + b"[" * 5000 + b"]" * 5000 + b" TJ ET"))
    with pytest.raises(DamagedSource, match=r"page 2 of 'paper\.pdf' is damaged"):
        pages_of(path)


def test_a_broken_outline_costs_only_the_titles(path: Path) -> None:
    broken = [b"<< /First 7 0 R /Last 7 0 R /Count 1 >>", b"<< /Title (One) /A 5 >>"]
    page, content = nasty_pdfs.page(5), nasty_pdfs.deflated(nasty_pdfs.WORDS)
    path.write_bytes(nasty_pdfs.pdf([*nasty_pdfs.tree([4], 1, b"/Outlines 6 0 R"), page, content, *broken]))
    with path.open("rb") as file, pytest.raises(Exception):  # noqa: B017  what pypdf raises is no part of the test
        _ = pypdf.PdfReader(file).outline
    assert [page.title for page in pages_of(path)] == [None]


@settings(max_examples=25, deadline=None)
@given(words=st.lists(st.text(alphabet="abcdefghij", min_size=2, max_size=9), min_size=1, max_size=120))
def test_the_words_of_a_page_come_out_in_order(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = [" ".join(words[start : start + 8]) for start in range(0, len(words), 8)]
    path = draw(tmp_path_factory.mktemp("pdf") / "a.pdf", lines_page(*lines))
    assert pages_of(path)[0].text.split() == words


@pytest.mark.parametrize(
    ("known", "left", "right", "joined"),
    [
        ("", "the exam-", "ple", "the example"),
        ("a run-time error", "at run-", "time", "at run-time"),
        ("the runtime", "at run-", "time", "at runtime"),
        ("", "state-of-the-", "art", "state-of-the-art"),
        ("", "Mittel-", "Europa", "Mittel-Europa"),
        ("TraceMonkey", "Trace-", "Monkey", "TraceMonkey"),
        ("", "self-", "evident", "self-evident"),
        ("", "1990-", "1995", "1990-1995"),
        ("", "Ein-", "und Ausgabe", "Ein- und Ausgabe"),
        ("", "soft\u00ad", "ware", "software"),
        ("", "no hyphen", "here", "no hyphen here"),
        ("trace tree, trace tree, type type", "trace-", "type", "trace-type"),
    ],
)
def test_hyphens_at_line_ends(known: str, left: str, right: str, joined: str) -> None:
    words = Words()
    words.learn([known])
    assert words.join(left, right) == joined


def test_words_broken_at_line_ends_are_not_learned() -> None:
    words = Words()
    words.learn(["an exam-", "ple of it"])
    assert words.join("exam-", "ple") == "example"


def test_a_pdf_is_known_behind_junk_in_front_of_it(path: Path) -> None:
    path.write_bytes(b"\n" * 500 + draw(path, lines_page(*RIGHT)).read_bytes())
    assert open_source(path).kind == "pdf"


def filled(path: Path, *annotations: dict[str, object]) -> Path:
    """A page of text with these annotations."""
    writer = pypdf.PdfWriter(clone_from=draw(path, lines_page("The application was received.")))
    parent = writer._add_object(dictionary({"/T": "person", "/FT": "/Tx"}))
    for one in annotations:
        extra = {"/Parent": parent} if one.get("/Subtype") == "/Widget" else {}
        writer.pages[0].setdefault(NameObject("/Annots"), ArrayObject()).append(  # type: ignore[no-untyped-call]
            writer._add_object(dictionary({"/Type": "/Annot", "/Rect": [0, 0, 9, 9], **one, **extra}))
        )
    with path.open("wb") as file:
        writer.write(file)
    return path


def dictionary(values: dict[str, object]) -> DictionaryObject:
    def of(value: object) -> object:
        if isinstance(value, str):
            return NameObject(value) if value.startswith("/") else TextStringObject(value)
        if isinstance(value, list):
            return ArrayObject(map(of, value))
        return NumberObject(value) if isinstance(value, int) else value

    return DictionaryObject({NameObject(name): of(value) for name, value in values.items()})


def test_form_fields_and_what_is_written_on_a_page_follow_its_text(path: Path) -> None:
    filled(
        path,
        {"/Subtype": "/Widget", "/T": "name", "/V": "Runa Lindqvist"},
        {"/Subtype": "/Widget", "/T": "town", "/TU": "Town of birth", "/V": "Turku"},
        {"/Subtype": "/Widget", "/T": "member", "/V": "/Yes"},
        {"/Subtype": "/Widget", "/T": "ship", "/V": "/Off"},
        {"/Subtype": "/Widget", "/T": "empty"},
        {"/Subtype": "/Widget", "/T": "ports", "/V": ["Oslo", "Riga"]},
        {"/Subtype": "/FreeText", "/Contents": "Approved on 9 April."},
        {"/Subtype": "/Text", "/Contents": "The sum must be 5,000."},
        {"/Subtype": "/Link", "/Contents": "no words of the page"},
    )
    assert pages_of(path)[0].text.split("\n\n") == [
        "The application was received.",
        "person.name: Runa Lindqvist\nTown of birth: Turku\nperson.member: Yes\nperson.ports: Oslo, Riga",
        "Approved on 9 April.",
        "The sum must be 5,000.",
    ]


@pytest.mark.parametrize("broken", [{"/Subtype": "/Widget", "/V": ["/V", ["x"]]}, {"/Subtype": "/FreeText"}, {}])
def test_broken_annotations_leave_the_text_of_the_page(path: Path, broken: dict[str, object]) -> None:
    assert "The application was received." in pages_of(filled(path, broken))[0].text
