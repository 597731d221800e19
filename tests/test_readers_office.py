"""Office files, mail, notebooks, tables of values and source code."""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from email.message import EmailMessage
from pathlib import Path

import docx
import odfdo
import openpyxl
import pptx
import pytest
from docx.enum.text import WD_BREAK
from openpyxl.comments import Comment
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from infinimem.errors import DamagedSource, EncryptedSource, ReaderMissing, SourceError, SourceTooLarge
from infinimem.readers import Page, ReaderLimits, open_source, read_pages
from infinimem.readers.lines import looks_like_code

ROWS = [["Station", "Opened", "Depth"], ["Alder", "1931", "14 m"], ["Birch", "1940", ""]]
LINES = "Station | Opened | Depth\nAlder | 1931 | 14 m\nBirch | 1940 |"


def pages_of(path: Path, limits: ReaderLimits | None = None) -> list[Page]:
    return list(read_pages(open_source(path, limits), limits=limits))


def text_of(path: Path) -> str:
    return "\n\n".join(page.text for page in pages_of(path))


def fill(table: object, rows: Sequence[Sequence[str]] = ROWS) -> None:
    for number, row in enumerate(rows):
        for column, value in enumerate(row):
            table.cell(number, column).text = value  # type: ignore[attr-defined]


def word_file(path: Path) -> Path:
    document = docx.Document()
    document.core_properties.title, document.core_properties.author = "Harbour Rules", "Ida Holm"
    document.sections[0].header.paragraphs[0].text = "Contract 4711"
    document.sections[0].footer.paragraphs[0].text = "7"
    document.add_heading("Lights", 1)
    document.add_paragraph("Boats must show a light.")
    fill(document.add_table(3, 3))
    document.add_heading("Mooring", 1)
    document.add_paragraph("Ropes", style="List Bullet")
    paragraph = document.add_paragraph("About 10")
    paragraph.add_run("26").font.superscript = True
    paragraph.add_run(" ropes").add_break(WD_BREAK.PAGE)
    document.save(str(path))
    return path


def test_a_word_file_has_sections_tables_and_what_its_headers_say(tmp_path: Path) -> None:
    pages = pages_of(word_file(tmp_path / "a.docx"))
    assert pages[0].about["title"] == "Harbour Rules" and pages[0].about["author"] == "Ida Holm"
    sections = [section for page in pages for section in page.sections()]
    assert sections[1:] == [
        ("Lights", f"Lights\n\nBoats must show a light.\n\n{LINES}"),
        ("Mooring", "Mooring\n\n- Ropes\n\nAbout 10^26 ropes"),
        (None, "Contract 4711"),
    ]


def test_slides_have_titles_tables_charts_and_notes(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "The dams"
    fill(slide.shapes.add_table(3, 3, Inches(1), Inches(2), Inches(6), Inches(2)).table)
    slide.shapes.add_textbox(Inches(1), Inches(1.5), Inches(4), Inches(0.4)).text_frame.text = "Above the table."
    slide.notes_slide.notes_text_frame.text = "Say it slowly."
    deck.slides.add_slide(deck.slide_layouts[6])
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    data = CategoryChartData()
    data.categories = ["Alder", "Birch"]
    data.add_series("Depth", (14, 2.5))
    slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, 0, Inches(2), Inches(4), Inches(3), data)
    deck.save(str(tmp_path / "a.pptx"))
    first, third = pages_of(tmp_path / "a.pptx")
    assert (first.number, third.number) == (1, 3), "the second slide is empty"
    assert first.text.endswith(f"The dams\n\nAbove the table.\n\n{LINES}\n\nNotes: Say it slowly.")
    assert third.text.endswith("| Depth\nAlder | 14\nBirch | 2.5")


def test_sheets_have_rows_values_merged_cells_formulas_and_comments(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Stations"
    sheet["B2"] = "Our stations"
    for number, row in enumerate(ROWS, start=4):
        for column, value in enumerate(row, start=2):
            sheet.cell(number, column, value or None)
    sheet["B9"], sheet["C9"], sheet["D9"] = "Sum", "=C5+C6", 0.1
    sheet.merge_cells("B10:C10")
    sheet["B10"], sheet["D10"] = "Both", True
    sheet["B5"].comment = Comment("closed in 1950", "Ida")
    other = book.create_sheet("Empty")
    other.sheet_state = "hidden"
    book.save(tmp_path / "a.xlsx")
    (page,) = pages_of(tmp_path / "a.xlsx")
    assert page.title == "Stations" and page.text == (
        f"Our stations\n\n{LINES}\n\nSum | =C5+C6 | 0.1\nBoth | Both | TRUE\n\nB5: closed in 1950"
    )


def test_an_opendocument_text_has_headings_tables_and_notes(tmp_path: Path) -> None:
    document = odfdo.Document("text")
    document.body.clear()
    document.body.append(odfdo.Header(1, "Rules"))
    paragraph = odfdo.Paragraph("Boats must show a light.")
    document.body.append(paragraph)
    table = odfdo.Table("Stations", width=3, height=3)
    table.set_values(ROWS)
    document.body.append(table)
    paragraph.insert_note(after="light", note_id="n1", citation="1", body="A white one.")
    document.meta.title, document.meta.creator = "Harbour Rules", "Ida Holm"
    document.save(str(tmp_path / "a.odt"))
    (page,) = pages_of(tmp_path / "a.odt")
    assert page.about["title"] == "Harbour Rules" and page.about["author"] == "Ida Holm"
    ((_, _), (title, text)) = page.sections()
    assert title == "Rules" and LINES in text and "A white one." in text


def test_rtf_has_its_text_the_rows_of_tables_and_information(tmp_path: Path) -> None:
    rows = "".join(
        "\\trowd" + "".join(f"\\cellx{n} {cell}\\cell" for n, cell in enumerate(row)) + "\\row" for row in ROWS
    )
    (tmp_path / "a.rtf").write_text(
        r"{\rtf1\ansi{\info{\title Harbour Rules}{\author Ida Holm}{\revtim\yr2020\mo3\dy4}}"
        rf"Boats must show a l\'efght.\par {rows}\pard End.\par}}"
    )
    (page,) = pages_of(tmp_path / "a.rtf")
    assert page.about == {"title": "Harbour Rules", "author": "Ida Holm", "date": "2020-03-04"}
    assert page.text.endswith(f"Boats must show a lïght.\n\n{LINES}\n\nEnd.")


def test_a_mail_has_its_heads_its_text_and_what_is_attached(tmp_path: Path) -> None:
    inner = EmailMessage()
    inner["From"], inner["Subject"] = "Per <per@example.org>", "Ropes"
    inner.set_content("Bring two ropes.")
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "Ida <ida@example.org>", "Per <per@example.org>", "Harbour rules"
    mail["Date"] = "Wed, 4 Mar 2020 10:00:00 +0000"
    mail.set_content("plain")
    mail.add_alternative("<h1>Lights</h1><p>Boats must show a light.", subtype="html")
    mail.add_attachment(inner)
    mail.add_attachment("a,b", filename="list.csv")
    mail.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="plan.pdf")
    (tmp_path / "a.eml").write_bytes(mail.as_bytes())
    pages = pages_of(tmp_path / "a.eml")
    assert pages[0].about == {"title": "Harbour rules", "author": "Ida <ida@example.org>", "date": "2020-03-04"}
    assert pages[0].left_out == {"attachments": 1} and "Attached: plan.pdf" in pages[0].text
    text = "\n\n".join(page.text for page in pages)
    assert "plain" in text and "Subject: Ropes" in text and "Bring two ropes." in text and "a,b" in text


def test_a_mail_is_known_by_its_heads(tmp_path: Path) -> None:
    (tmp_path / "message").write_text("From: a@example.org\nSubject: Hello\n\nWords.\n")
    assert open_source(tmp_path / "message").kind == "mail"


def test_a_notebook_has_text_code_and_output(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Tides\n", "Words."]},
        {
            "cell_type": "code",
            "source": "x = 1\n\nprint(x)",
            "outputs": [
                {"output_type": "stream", "text": ["1\n"]},
                {"data": {"text/html": "<table><tr><th>a<tr><td>1</table>", "text/plain": "no"}},
                {"data": {"image/png": base64.b64encode(b"x").decode()}},
            ],
        },
        {"cell_type": "markdown", "source": "## More"},
        {"cell_type": "raw", "source": "Raw."},
    ]
    book = {"cells": cells, "metadata": {"title": "Tides", "authors": [{"name": "Ida"}]}, "nbformat": 4}
    (tmp_path / "a.ipynb").write_text(json.dumps(book))
    first, second = pages_of(tmp_path / "a.ipynb")
    assert first.text.endswith("Tides\n\nWords.\n\nx = 1\n\nprint(x)\n\n1\n\na\n1")
    assert second.text == "More\n\nRaw." and first.left_out == {"outputs without text": 1}
    assert first.about == {"title": "Tides", "author": "Ida"}


@pytest.mark.parametrize(("suffix", "dialect"), [(".csv", "excel"), (".tsv", "excel-tab"), (".csv", "semicolon")])
def test_values_keep_the_names_of_their_columns(tmp_path: Path, suffix: str, dialect: str) -> None:
    file = io.StringIO()
    style = {"delimiter": ";"} if dialect == "semicolon" else {"dialect": dialect}
    csv.writer(file, **style).writerows([*ROWS, *[[f"Cedar {n}", f"{1950 + n}", f"{n}, or less"] for n in range(40)]])
    (tmp_path / f"a{suffix}").write_text(file.getvalue())
    text = text_of(tmp_path / f"a{suffix}")
    assert text.startswith(LINES)
    assert all(part.startswith("Station | Opened | Depth\n") for part in text.split("\n\n"))
    assert "Cedar 39 | 1989 | 39, or less" in text


CODE = "import os\n\n\ndef area(x: int) -> int:\n    # The square.\n    return x * x\n\n\nclass Dam:\n    depth = 14\n"


def test_code_is_known_by_its_lines_and_none_of_them_is_changed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(CODE)
    source = open_source(tmp_path / "a.py")
    assert source.kind == "code" and [line for line in text_of(tmp_path / "a.py").split("\n") if line] == [
        line for line in CODE.split("\n") if line
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CODE, True),
        ('{\n  "a": 1,\n  "b": [\n    2\n  ]\n}\n', True),
        ("int main() {\n  puts(x);\n  return 0;\n}\n", True),
        ("name: a\nversion: 2\nitems:\n  - b\n", True),
        ("The lighthouse keeper counted the ships.\nThere were seven on Monday;\nnone on Tuesday.\n", False),
        ("To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\nThe slings\n", False),
    ],
)
def test_prose_is_not_code(text: str, expected: bool) -> None:
    assert looks_like_code(text) is expected


# What must be refused


def archive(path: Path, entries: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def changed(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(path) as file:
        entries = {name: change(name, file.read(name)) for name in file.namelist()}
    return archive(path, entries)


def excel_file(path: Path) -> Path:
    book = openpyxl.Workbook()
    for row in ROWS:
        book.active.append(row)
    book.save(path)
    return path


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    for path, entry in (
        (word_file(tmp_path / "a.docx"), "word/media/image1.png"),
        (excel_file(tmp_path / "a.xlsx"), "xl/worksheets/sheet2.xml"),
    ):
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file, file.open(entry, "w", force_zip64=True) as bomb:
            for _ in range(600):
                bomb.write(bytes(1 << 20))
        with pytest.raises(SourceTooLarge, match="unpacks to more than"):
            pages_of(path)


def test_a_sheet_that_claims_every_cell_there_is_costs_no_more_than_the_limits(tmp_path: Path) -> None:
    path = excel_file(tmp_path / "a.xlsx")

    def huge(name: str, content: bytes) -> bytes:
        return content.replace(b'r="C3"', b'r="XFD1048576"').replace(b'r="3"', b'r="1048576"')

    with pytest.raises(SourceError, match="was given up"):
        pages_of(changed(path, huge), ReaderLimits(page_seconds=3, memory=600_000_000))


def test_files_that_a_document_links_to_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret that must not be read")
    path = word_file(tmp_path / "a.docx")
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "{secret.as_uri()}">]>'.encode()

    def hostile(name: str, content: bytes) -> bytes:
        if name == "word/document.xml":
            content = content.replace(b"Boats must", b"&e;Boats must")
            return content.replace(b"?>", b"?>" + entity, 1)
        if name == "word/_rels/document.xml.rels":
            link = f'<Relationship Id="r99" Type="http://x/image" Target="{secret.as_uri()}" TargetMode="External"/>'
            return content.replace(b"</Relationships>", link.encode() + b"</Relationships>")
        return content

    try:
        text = text_of(changed(path, hostile))
    except DamagedSource:
        return
    assert "secret" not in text


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">{lol}]><x>&l11;</x>'
    for path, entry in (
        (word_file(tmp_path / "a.docx"), "word/document.xml"),
        (excel_file(tmp_path / "a.xlsx"), "xl/workbook.xml"),
    ):
        changed(path, lambda name, content, entry=entry: bomb.encode() if name == entry else content)  # type: ignore[misc]
        with pytest.raises(SourceError):
            pages_of(path, ReaderLimits(page_seconds=10))


def test_macros_are_not_run_and_cost_nothing(tmp_path: Path) -> None:
    path = word_file(tmp_path / "a.docx")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("word/vbaProject.bin", b"Sub AutoOpen()")
    path = path.rename(tmp_path / "a.docm")
    assert "Boats must show a light." in text_of(path) and "AutoOpen" not in text_of(path)


@pytest.mark.parametrize("suffix", [".docx", ".xlsx", ".pptx", ".odt"])
@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"PK\x03\x04broken", DamagedSource),
        (b"words", DamagedSource),
        (b"\xd0\xcf\x11\xe0" + bytes(600), EncryptedSource),
    ],
    ids=["cut off", "text", "encrypted"],
)
def test_broken_office_files_are_refused(tmp_path: Path, suffix: str, content: bytes, error: type[SourceError]) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(error):
        pages_of(tmp_path / f"a{suffix}")


def test_every_changed_byte_of_a_part_gives_text_or_a_named_error(tmp_path: Path) -> None:
    path = word_file(tmp_path / "a.docx")
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    body = entries["word/document.xml"]
    for place in range(0, len(body), len(body) // 6):
        archive(path, {**entries, "word/document.xml": body[:place] + b"<" + body[place + 1 :]})
        try:
            pages_of(path)
        except SourceError as error:
            assert "a.docx" in str(error)


@pytest.mark.parametrize(
    "content", ["{}", '{"cells": 3}', '{"cells": [{"source": 3}]}', "{" * 5000, '{"worksheets": 0}']
)
def test_broken_notebooks_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.ipynb").write_text(content)
    with pytest.raises(SourceError, match=r"a\.ipynb"):
        pages_of(tmp_path / "a.ipynb")


def test_a_mail_whose_parts_are_broken_gives_what_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(
        b"From: \xff<\nSubject: =?utf-8?q?=E4=F?=\nDate: never\nMIME-Version: 1.0\n"
        b"Content-Type: multipart/mixed; boundary=B\n\n--B\n"
        b"Content-Type: text/plain; charset=nonsense\n\nW\xf6rds.\n--B"
    )
    pages = pages_of(tmp_path / "a.eml")
    assert "rds." in pages[-1].text and "date" not in pages[0].about


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = word_file(tmp_path / "a.docx")
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "mammoth.py").write_text("raise ImportError")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "without"), *sys.path])
    with pytest.raises(ReaderMissing, match=r"is a Word file; to read it, install: pip install 'infinimem\[office\]'"):
        open_source(path)
