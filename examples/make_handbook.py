"""Typeset and check the sample document of infinimem, *The Kelderay Handbook*.

The handbook is written in a small subset of Markdown, one file per chapter, in ``examples/handbook/``.  This script
turns it into ``examples/handbook.pdf`` with ReportLab, using only the fonts that every PDF reader has built in, so
that nothing is downloaded.  The output is deterministic: building twice with the same ReportLab gives the same bytes.

Usage::

    python examples/make_handbook.py                  # build examples/handbook.pdf
    python examples/make_handbook.py --output FILE    # build somewhere else
    python examples/make_handbook.py --check          # check handbook_questions.jsonl against the built PDF

The subset of Markdown: ``#`` and ``##`` headings, paragraphs, ``-`` and ``1.`` lists, ``**bold**``, ``*italic*``, pipe
tables, and ``![caption](figure:NAME)`` for the figures that are drawn in this file.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reportlab.graphics.shapes import Drawing

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "handbook"
PDF = HERE / "handbook.pdf"
QUESTIONS = HERE / "handbook_questions.jsonl"

TITLE = "The Kelderay Handbook"
SUBTITLE = "How a Tidal Observatory Is Run"
EDITION = "Seventh edition, 2023"
PUBLISHER = "Kelderay Observatory Society, Port Ansel"
LICENCE = "Kelderay and everybody on it are invented. Text and figures: Apache License 2.0."

SERIF, SERIF_BOLD, SERIF_ITALIC, SANS = "Times-Roman", "Times-Bold", "Times-Italic", "Helvetica"
NAVY, SEA, ROCK, MUTED = "#1d3a52", "#cfe0ea", "#cdc8c0", "#5f6b73"

MIN_WORDS = 12_500
PAGE_RANGE = (25, 35)
MAX_BYTES = 500_000
QUESTION_COUNT = 30

# Where these words may be divided at the end of a line.  A short list made by hand: a wide column needs no more.
HYPHENATION = """
Sep-tem-ber milli-metres milli-metre centi-metres centi-metre pas-sen-gers pas-sen-ger every-body every-thing
in-stru-ments in-stru-ment kilo-metres kilo-grams kilo-watts kilo-newtons lev-el-ling cor-rec-tion cor-rec-tions
cor-rected tele-phone some-thing pub-lished other-wise for-bid-den emer-gency emer-gen-cies ecol-o-gist dif-fer-ence
dif-fer-ent dif-fer-en-tial build-ings ba-rom-eter at-ten-dant visi-bil-ity seis-mom-eter sand-stone reg-u-la-tor
quar-an-tine pre-dicted pre-dic-tions over-night ob-ser-va-tions ob-ser-va-tion ob-ser-va-tory fol-low-ing
ex-cep-tion elec-tric-ity elec-tronic elec-tri-cal con-stants coast-guard ane-mom-eter after-wards after-noon
tight-ened ther-mom-eters ther-mom-eter there-fore tem-per-a-ture strong-est storm-bound shut-tered sev-en-teenth
re-open-ing re-cord-ing qual-i-fied pro-por-tion prin-ci-ple prin-ci-pal per-ma-nent par-tic-u-lar nav-i-ga-tion
main-te-nance ma-chin-ery lis-ten-ing light-ning in-stalled in-spec-tor in-clud-ing heli-cop-ter gen-er-a-tor
drift-wood di-rec-tion de-scribes de-scribed de-liv-ered com-plaint cat-a-logue cal-li-pers break-fast al-low-ance
ac-ci-dents anti-foul-ing ap-point-ments ar-range-ment cal-i-bra-tion cer-tifi-cate com-mis-sioned con-ven-tions
con-ver-sa-tion counter-signed counter-weight dem-on-stra-tion dem-on-stra-tions dis-cour-ages earth-quakes
en-ter-tain-ing ex-am-i-na-tion ex-pe-ri-enced ex-tin-guish-ers fore-tell-ing hecto-pas-cals house-holder
hy-drog-ra-pher life-jackets mea-sure-ment mea-sure-ments neigh-bour-ing out-num-bered photo-graphed photo-graphs
pre-de-ces-sor proof-reader pub-li-ca-tion re-frig-er-a-tor re-search-ers res-to-ra-tion school-chil-dren
school-teacher ultra-vio-let under-ground un-nec-es-sary
"""
SOFT_HYPHEN = "\u00ad"
_SOFT = {w.replace("-", "").lower(): w for w in HYPHENATION.split()}

_INLINE_MARKS = re.compile(r"\*\*|\*|^#+ |^- |^\d+\. ", re.MULTILINE)
_FIGURE = re.compile(r"^!\[(?P<caption>.*)\]\(figure:(?P<name>\w+)\)$")
_TABLE_RULE = re.compile(r"^\|[\s:|-]+\|$")


# ---------------------------------------------------------------------------------------------------------- source


def read_blocks(text: str) -> Iterator[list[str]]:
    """Yield the blocks of a chapter: runs of lines separated by blank lines."""
    for block in re.split(r"\n\s*\n", text.strip()):
        yield block.splitlines()


def chapter_files(source: Path = SOURCE) -> list[Path]:
    """Return the chapter files in reading order."""
    files = sorted(source.glob("*.md"))
    if not files:
        raise SystemExit(f"no chapters found in {source}")
    return files


def count_words(source: Path = SOURCE) -> int:
    """Count the words of the body text, without markup, table rules and figure references."""
    words = 0
    for path in chapter_files(source):
        for line in path.read_text(encoding="utf-8").splitlines():
            if _TABLE_RULE.match(line):
                continue
            figure = _FIGURE.match(line)
            plain = figure["caption"] if figure else _INLINE_MARKS.sub("", line).replace("|", " ")
            words += sum(1 for token in plain.split() if re.search(r"\w", token))
    return words


def _soften(match: re.Match[str]) -> str:
    """Put soft hyphens into one word, keeping its capitals."""
    word = match[0]
    pattern = _SOFT.get(word.lower())
    if pattern is None:
        return word
    letters = iter(word)
    return "".join(SOFT_HYPHEN if c == "-" else next(letters) for c in pattern)


def inline(text: str, hyphenate: bool = True) -> str:
    """Convert inline Markdown to the mark-up that ReportLab paragraphs understand."""
    text = escape(text)
    if hyphenate:
        text = re.sub(r"[A-Za-z]{7,}", _soften, text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"\*(.+?)\*", r"<i>\1</i>", text)


# --------------------------------------------------------------------------------------------------------- figures


def _label(
    d: Drawing, x: float, y: float, text: str, size: float = 8.5, anchor: str = "start", font: str = SANS
) -> None:
    """Write a label on a drawing."""
    from reportlab.graphics.shapes import String
    from reportlab.lib.colors import HexColor

    d.add(String(x, y, text, fontName=font, fontSize=size, textAnchor=anchor, fillColor=HexColor(NAVY)))


def figure_map(width: float) -> Drawing:
    """Draw the sketch map of the island."""
    from reportlab.graphics.shapes import Circle, Drawing, Line, Polygon, PolyLine, Rect
    from reportlab.lib.colors import HexColor, white

    navy = HexColor(NAVY)
    d = Drawing(width, 208)
    d.add(Rect(0, 0, width, 208, fillColor=HexColor(SEA), strokeColor=None))
    k = width / 400
    shore = [
        (52, 96), (58, 124), (82, 142), (118, 150), (150, 143), (176, 149), (214, 146), (252, 138), (290, 128),
        (326, 112), (350, 92), (338, 84), (306, 82), (280, 70), (250, 62), (226, 66), (196, 56), (160, 58), (122, 52),
        (84, 62), (60, 78),
    ]  # fmt: skip
    low = [(200 + (x - 200) * 1.09, 100 + (y - 100) * (1.24 if y < 100 else 1.1)) for x, y in shore]

    def flat(points: Sequence[tuple[float, float]]) -> list[float]:
        return [c for x, y in points for c in (round(x * k, 2), round(y, 2))]

    d.add(Polygon(flat(low), fillColor=None, strokeColor=navy, strokeWidth=0.5, strokeDashArray=[2, 2]))
    d.add(Polygon(flat(shore), fillColor=HexColor(ROCK), strokeColor=navy, strokeWidth=1))
    calf = [(172, 188), (190, 195), (212, 193), (218, 185), (196, 180)]
    d.add(Polygon(flat(calf), fillColor=HexColor(ROCK), strokeColor=navy, strokeWidth=1))
    harrow = [(150, 20), (190, 26), (236, 23), (250, 16), (200, 12), (160, 13)]
    d.add(Polygon(flat(harrow), fillColor=None, strokeColor=navy, strokeWidth=0.8, strokeDashArray=[2, 2]))
    d.add(Line(216 * k, 68, 216 * k, 100, strokeColor=navy, strokeWidth=1.4))
    d.add(Rect(196 * k, 100, 46 * k, 12, fillColor=white, strokeColor=navy, strokeWidth=0.8))
    for x, y in [(66, 98), (215, 63), (202, 59), (262, 136), (118, 88)]:
        d.add(Circle(x * k, y, 2, fillColor=navy, strokeColor=None))
    _label(d, 72 * k, 95, "Cairn Head")
    _label(d, 219 * k, 103, "The Plat", 7.5, "middle")
    _label(d, 223 * k, 86, "Incline", 7.5)
    _label(d, 222 * k, 70, "South Slip", 7.5)
    _label(d, 206 * k, 66, "Well House", 7.5, "end")
    _label(d, 256 * k, 124, "North Steps", 7.5, "end")
    _label(d, 124 * k, 85, "The Pulpit", 7.5)
    _label(d, 128 * k, 124, "Signal Ridge", 8.5, "middle")
    _label(d, 104 * k, 160, "The Pantries", 8.5, "middle", "Helvetica-Oblique")
    _label(d, 336 * k, 93, "The Strand", 8.5, "end")
    _label(d, 196 * k, 184, "The Calf", 7.5, "middle")
    _label(d, 196 * k, 164, "The Gullet", 8.5, "middle", "Helvetica-Oblique")
    _label(d, 200 * k, 16, "The Harrow", 7.5, "middle", "Helvetica-Oblique")
    _label(d, 396 * k, 60, "to Port Ansel", 7.5, "end", "Helvetica-Oblique")
    d.add(PolyLine([352 * k, 54, 394 * k, 44, 388 * k, 49], strokeColor=navy, strokeWidth=0.7))
    d.add(Line(394 * k, 44, 387 * k, 42, strokeColor=navy, strokeWidth=0.7))
    d.add(Line(24 * k, 160, 24 * k, 186, strokeColor=navy, strokeWidth=1))
    d.add(Polygon([24 * k - 4, 184, 24 * k + 4, 184, 24 * k, 194], fillColor=navy, strokeColor=None))
    _label(d, 24 * k, 197, "N", 8.5, "middle")
    scale = 500 * (298 / 1900) * k
    d.add(Line(14 * k, 12, 14 * k + scale, 12, strokeColor=navy, strokeWidth=2))
    _label(d, 14 * k, 17, "500 metres", 7.5)
    return d


def figure_tide(width: float) -> Drawing:
    """Draw a day of tide at springs and neaps; the quarter-daily wave makes the flat crest."""
    from reportlab.graphics.shapes import Drawing, Line, PolyLine, Rect
    from reportlab.lib.colors import HexColor

    navy = HexColor(NAVY)
    d = Drawing(width, 158)
    left, bottom, top = 34.0, 24.0, 150.0
    span = width - left - 8

    def px(hour: float) -> float:
        return left + span * hour / 24

    def py(metres: float) -> float:
        return bottom + (top - bottom) * metres / 10

    d.add(Rect(left, bottom, span, top - bottom, fillColor=None, strokeColor=navy, strokeWidth=0.8))
    for metres in range(0, 11, 2):
        d.add(Line(left, py(metres), left + span, py(metres), strokeColor=HexColor(SEA), strokeWidth=0.6))
        _label(d, left - 5, py(metres) - 3, str(metres), 8, "end")
    for hour in range(0, 25, 6):
        _label(d, px(hour), bottom - 12, f"{hour:02d}:00", 8, "middle")
    _label(d, 4, top - 3, "m", 8)
    curves: list[tuple[float, float, float, float, list[int] | None]] = [
        (5.40, 3.40, 0.50, 1.4, None),
        (4.95, 1.45, 0.10, 1.0, [4, 2]),
    ]
    for mean, half, quarter, stroke, dash in curves:
        points: list[float] = []
        for step in range(24 * 6 + 1):
            hours = step / 6
            phase = 2 * math.pi * (hours - 5.0) / 12.42
            points += [round(px(hours), 2), round(py(mean + half * math.cos(phase) - quarter * math.cos(2 * phase)), 2)]
        d.add(PolyLine(points, strokeColor=navy, strokeWidth=stroke, strokeDashArray=dash))
    _label(d, px(5), py(8.3) + 5, "Long Stand", 8, "middle")
    _label(d, px(13.0), py(2.0), "springs", 8)
    _label(d, px(10.6), py(3.7), "neaps", 8)
    return d


def figure_well(width: float) -> Drawing:
    """Draw the section through the well."""
    from reportlab.graphics.shapes import Circle, Drawing, Line, Polygon, PolyLine, Rect
    from reportlab.lib.colors import HexColor, white

    navy, sea, rock = HexColor(NAVY), HexColor(SEA), HexColor(ROCK)
    d = Drawing(width, 288)
    scale, zero = 13.5, 62.0

    def y(metres: float) -> float:
        return round(zero + metres * scale, 2)

    shaft, shaft_w, face = 112.0, 34.0, 290.0
    water = 6.2
    d.add(Rect(0, 0, width, y(water), fillColor=sea, strokeColor=None))
    d.add(
        Polygon(
            [0, 0, face + 44, 0, face + 14, y(-2.6), face, y(-2.2), face, y(-1.3), face - 4, y(3), face - 30, y(7),
             face - 52, y(10), 0, y(10)],
            fillColor=rock, strokeColor=navy, strokeWidth=0.8,
        )
    )  # fmt: skip
    d.add(Rect(shaft, y(-3.2), shaft_w, y(10) - y(-3.2), fillColor=white, strokeColor=None))
    d.add(Rect(shaft, y(-3.2), shaft_w, y(water) - y(-3.2), fillColor=sea, strokeColor=None))
    d.add(Rect(shaft, y(-3.2), shaft_w, 5, fillColor=HexColor(MUTED), strokeColor=None))
    d.add(Rect(shaft + shaft_w - 1, y(-2.2), face - shaft - shaft_w + 1, 0.9 * scale, fillColor=sea, strokeColor=None))
    right = shaft + shaft_w
    for line in (
        [shaft, y(10), shaft, y(-3.2), right, y(-3.2), right, y(-2.2), face, y(-2.2)],
        [right, y(10), right, y(-1.3), face, y(-1.3)],
    ):
        d.add(PolyLine(line, strokeColor=navy, strokeWidth=0.8))
    d.add(Line(face, y(-2.2), face, y(-1.88), strokeColor=navy, strokeWidth=3))
    d.add(Line(face, y(-1.3), face, y(-1.62), strokeColor=navy, strokeWidth=3))
    # the Well House
    d.add(Polygon([76, y(10), 76, y(13.6), 129, y(15.9), 182, y(13.6), 182, y(10)], fillColor=white, strokeColor=navy))
    d.add(Line(shaft, y(10), right, y(10), strokeColor=white, strokeWidth=1.6))
    d.add(Circle(127, y(13), 9, fillColor=white, strokeColor=navy, strokeWidth=0.9))
    d.add(Rect(143, y(12.2), 26, 10, fillColor=white, strokeColor=navy, strokeWidth=0.9))
    # wire, float and counterweight
    d.add(Line(118, y(13), 118, y(water), strokeColor=navy, strokeWidth=0.6))
    d.add(Rect(114, y(water) - 3, 9, 9, fillColor=HexColor("#b5722d"), strokeColor=navy, strokeWidth=0.6))
    d.add(Line(136, y(13), 136, y(8.2), strokeColor=navy, strokeWidth=0.6))
    d.add(Rect(133.5, y(7.6), 5, 9, fillColor=HexColor(MUTED), strokeColor=navy, strokeWidth=0.6))
    # the sea surface with waves
    wave: list[float] = []
    start = face - 24
    for i in range(0, int(width - start) + 1, 2):
        wave += [start + i, round(y(water) + 2.6 * math.sin(i / 7), 2)]
    d.add(PolyLine(wave, strokeColor=navy, strokeWidth=0.9))

    def note(x0: float, y0: float, x1: float, y1: float, text: str, anchor: str = "start") -> None:
        d.add(Line(x0, y0, x1, y1, strokeColor=navy, strokeWidth=0.4))
        _label(d, x1 + (3 if anchor == "start" else -3), y1 - 3, text, 8.5, anchor)

    note(136, y(13), 196, y(15.2), "wheel")
    note(169, y(12.5), 196, y(13.2), "recorder")
    note(182, y(10), 204, y(11.2), "doorstep, with Mark A")
    note(114, y(water) + 2, 92, y(6.9), "float", "end")
    note(138, y(8), 168, y(8.4), "counterweight")
    note(130, y(2.4), 168, y(3.4), "shaft")
    note(118, y(-3.0), 92, y(-3.0), "sump", "end")
    note(214, y(-1.75), 214, y(0.2), "tunnel")
    note(face + 2, y(-1.75), face + 42, y(0.4), "bronze plate")
    _label(d, width - 6, y(water) + 8, "the sea", 8.5, "end", "Helvetica-Oblique")
    _label(d, 40, y(2.4), "dolerite", 8.5, "middle", "Helvetica-Oblique")
    # scale of heights
    d.add(Line(14, y(-3), 14, y(10), strokeColor=navy, strokeWidth=0.7))
    for metres in (-2, 0, 2, 4, 6, 8, 10):
        d.add(Line(14, y(metres), 18, y(metres), strokeColor=navy, strokeWidth=0.7))
        _label(d, 20, y(metres) - (8 if metres == 10 else 3), f"{metres} m" if metres in (0, 10) else str(metres), 7)
    return d


FIGURES: dict[str, Callable[[float], Any]] = {"map": figure_map, "tide": figure_tide, "well": figure_well}


# ------------------------------------------------------------------------------------------------------ typesetting


def make_styles() -> dict[str, Any]:
    """Return the paragraph styles by name."""
    from reportlab.lib.colors import HexColor
    from reportlab.lib.enums import TA_CENTER, TA_JUSTIFY
    from reportlab.lib.styles import ParagraphStyle

    navy, muted = HexColor(NAVY), HexColor(MUTED)
    body = ParagraphStyle(
        "body", fontName=SERIF, fontSize=10.5, leading=14.25, alignment=TA_JUSTIFY, spaceAfter=6, allowWidows=0,
        allowOrphans=0, hyphenationMinWordLength=7,
    )  # fmt: skip
    item = ParagraphStyle(
        "item", parent=body, leftIndent=20, bulletFontName=SERIF, bulletFontSize=10.5, spaceAfter=3, keepWithNext=1
    )
    cell = ParagraphStyle("cell", parent=body, fontSize=9.5, leading=12, alignment=0, spaceAfter=0)
    styles = [
        body,
        cell,
        ParagraphStyle("lead", parent=body, keepWithNext=1),
        ParagraphStyle("cell_right", parent=cell, alignment=2),
        ParagraphStyle("cell_center", parent=cell, alignment=1),
        ParagraphStyle("cell_head", parent=cell, fontName=SERIF_BOLD, textColor=navy),
        item,
        ParagraphStyle("item_last", parent=item, keepWithNext=0, spaceAfter=9),
        ParagraphStyle("chapter", fontName=SERIF_BOLD, fontSize=21, leading=25, spaceBefore=6, spaceAfter=14,
                       textColor=navy, keepWithNext=1),
        ParagraphStyle("section", fontName=SERIF_BOLD, fontSize=12.5, leading=16, spaceBefore=8, spaceAfter=4,
                       textColor=navy, keepWithNext=1),
        ParagraphStyle("caption", fontName=SERIF_ITALIC, fontSize=9.5, leading=12, alignment=TA_CENTER, spaceBefore=4,
                       spaceAfter=10, textColor=muted),
        ParagraphStyle("title", fontName=SERIF_BOLD, fontSize=34, leading=40, alignment=TA_CENTER, textColor=navy),
        ParagraphStyle("subtitle", fontName=SERIF_ITALIC, fontSize=16, leading=22, alignment=TA_CENTER,
                       textColor=navy, spaceBefore=8),
        ParagraphStyle("imprint", fontName=SERIF, fontSize=11, leading=16, alignment=TA_CENTER, textColor=muted),
        ParagraphStyle("toc_title", fontName=SERIF_BOLD, fontSize=21, leading=25, spaceBefore=6, spaceAfter=14,
                       textColor=navy),
        ParagraphStyle("toc", fontName=SERIF, fontSize=12, leading=22, textColor=navy),
    ]  # fmt: skip
    return {style.name: style for style in styles}


def make_table(lines: list[str], width: float, styles: dict[str, Any]) -> Any:
    """Convert a pipe table to a ReportLab table as wide as the text."""
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Paragraph, Table, TableStyle

    rows = [[c.strip() for c in line.strip().strip("|").split("|")] for line in lines if not _TABLE_RULE.match(line)]
    rule = next(line for line in lines if _TABLE_RULE.match(line))
    marks = [c.strip() for c in rule.strip("|").split("|")]
    kinds = ["cell_center" if m[0] == m[-1] == ":" else "cell_right" if m[-1] == ":" else "cell" for m in marks]
    # A column's share of the width grows with its longest cell, but less than in proportion.
    weights = [max(len(row[i]) for row in rows) ** 0.75 for i in range(len(marks))]
    col_widths = [width * w / sum(weights) for w in weights]
    data: list[list[Any]] = []
    for r, row in enumerate(rows):
        cells: list[Any] = []
        for text, kind in zip(row, kinds, strict=True):
            content = f"<b>{inline(text, False)}</b>" if r == 0 else inline(text, False)
            cells.append(Paragraph(content, styles[kind]))
        data.append(cells)
    navy = HexColor(NAVY)
    table = Table(data, colWidths=col_widths, repeatRows=1, spaceBefore=6, spaceAfter=12)
    table.setStyle(
        TableStyle(
            [
                ("LINEABOVE", (0, 0), (-1, 0), 1, navy),
                ("LINEBELOW", (0, 0), (-1, 0), 0.6, navy),
                ("LINEBELOW", (0, -1), (-1, -1), 1, navy),
                ("ROWBACKGROUNDS", (0, 1), (-1, -1), [HexColor("#ffffff"), HexColor("#f1f5f8")]),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("TOPPADDING", (0, 0), (-1, -1), 3),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 4),
            ]
        )
    )
    return table


def make_story(source: Path, width: float, height: float) -> list[Any]:
    """Read the chapters and return the flowables of the whole book."""
    from reportlab.lib.units import mm
    from reportlab.platypus import CondPageBreak, KeepTogether, PageBreak, Paragraph, Spacer
    from reportlab.platypus.tableofcontents import TableOfContents

    styles = make_styles()
    toc = TableOfContents(levelStyles=[styles["toc"]], dotsMinLevel=0)
    story: list[Any] = [
        Spacer(1, height * 0.22),
        Paragraph(TITLE, styles["title"]),
        Paragraph(SUBTITLE, styles["subtitle"]),
        Spacer(1, height * 0.38),
        Paragraph(EDITION, styles["imprint"]),
        Paragraph(PUBLISHER, styles["imprint"]),
        Spacer(1, 8 * mm),
        Paragraph(LICENCE, styles["imprint"]),
        PageBreak(),
        Paragraph("Contents", styles["toc_title"]),
        toc,
        PageBreak(),
    ]
    figures = 0
    for number, path in enumerate(chapter_files(source), start=1):
        blocks = list(read_blocks(path.read_text(encoding="utf-8")))
        for block, following in zip(blocks, [*blocks[1:], [""]], strict=True):
            first, text = block[0], " ".join(block)
            figure = _FIGURE.match(text)
            if first.startswith("# "):
                if number > 1:
                    story += [CondPageBreak(height * 0.3), Spacer(1, 7 * mm)]
                heading = Paragraph(f"{number}&nbsp;&nbsp;{inline(text[2:], False)}", styles["chapter"])
                heading.outline = (0, f"{number}  {text[2:]}")
                story.append(heading)
            elif first.startswith("## "):
                heading = Paragraph(inline(text[3:], False), styles["section"])
                heading.outline = (1, text[3:])
                story.append(heading)
            elif figure:
                figures += 1
                caption = Paragraph(f"Figure {figures}. {inline(figure['caption'], False)}", styles["caption"])
                story.append(KeepTogether([Spacer(1, 4), FIGURES[figure["name"]](width), caption]))
            elif first.startswith("|"):
                story.append(make_table(block, width, styles))
            elif re.match(r"- |\d+\. ", first):
                for n, line in enumerate(block, start=1):
                    item = re.sub(r"^(- |\d+\. )", "", line)
                    bullet = "\u2022" if first.startswith("- ") else f"{n}."
                    style = styles["item" if n < len(block) else "item_last"]
                    story.append(Paragraph(inline(item), style, bulletText=bullet))
            else:
                # The sentence that introduces a list or a table stays on the same page with it.
                leads = re.match(r"\||- |\d+\. ", following[0]) is not None
                story.append(Paragraph(inline(text), styles["lead" if leads else "body"]))
    return story


def build(output: Path, source: Path = SOURCE) -> int:
    """Typeset the handbook to *output* and return the number of pages."""
    from reportlab.lib.colors import HexColor
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate

    page_width, page_height = A4
    side, foot, head = 32 * mm, 25 * mm, 29 * mm
    width, height = page_width - 2 * side, page_height - foot - head

    class Book(BaseDocTemplate):
        """A document that keeps the running header, the outline and the table of contents up to date."""

        chapter = ""
        opens_at_top = False

        def beforeDocument(self) -> None:
            self.chapter = ""
            self.marks = 0

        def beforePage(self) -> None:
            self.running = self.chapter
            self.opens_at_top = False

        def afterFlowable(self, flowable: Any) -> None:
            outline = getattr(flowable, "outline", None)
            if outline is None:
                return
            level, text = outline
            key = f"mark{self.marks}"
            self.marks += 1
            top = self.frame._y + flowable.height
            self.canv.bookmarkPage(key, fit="XYZ", left=0, top=top + 12, zoom=0)
            self.canv.addOutlineEntry(text, key, level=level, closed=level == 0)
            if level == 0:
                self.notify("TOCEntry", (0, text.replace("  ", "&nbsp;&nbsp;"), self.page, key))
                self.chapter = text.split("  ", 1)[1]
                if top > self.frame._y2 - 20 * mm:
                    self.opens_at_top = True

        def afterPage(self) -> None:
            if self.page == 1:
                return
            canvas = self.canv
            canvas.saveState()
            canvas.setFillColor(HexColor(MUTED))
            canvas.setStrokeColor(HexColor(MUTED))
            canvas.setFont(SERIF, 9.5)
            canvas.drawCentredString(page_width / 2, 14 * mm, str(self.page))
            # A page that opens with a chapter heading does not need its name a second time above it.
            if self.running and not self.opens_at_top:
                baseline = page_height - head + 7 * mm
                canvas.setFont(SERIF_ITALIC, 9.5)
                canvas.drawString(side, baseline, TITLE)
                canvas.drawRightString(page_width - side, baseline, self.running)
                canvas.setLineWidth(0.4)
                canvas.line(side, baseline - 4, page_width - side, baseline - 4)
            canvas.restoreState()

    frame = Frame(side, foot, width, height, leftPadding=0, rightPadding=0, topPadding=0, bottomPadding=0)
    book = Book(
        str(output),
        pagesize=A4,
        title=TITLE,
        author=PUBLISHER.split(",")[0],
        subject=SUBTITLE,
        creator="make_handbook.py",
        invariant=1,
        pageCompression=1,
        lang="en-GB",
    )
    book.addPageTemplates([PageTemplate(id="page", frames=[frame])])
    output.parent.mkdir(parents=True, exist_ok=True)
    book.multiBuild(make_story(source, width, height))
    return int(book.page)


# --------------------------------------------------------------------------------------------------------- checking


def normalise(text: str) -> str:
    """Join words divided at line ends, drop soft hyphens and reduce every run of white space to one space."""
    text = text.replace(SOFT_HYPHEN, "")
    text = re.sub(r"(?<=[A-Za-z])-\s*\n\s*(?=[a-z])", "", text)
    return re.sub(r"\s+", " ", text).strip()


def page_texts(pdf: Path = PDF) -> list[str]:
    """Return the normalised text of each page of *pdf*."""
    from pypdf import PdfReader

    return [normalise(page.extract_text()) for page in PdfReader(str(pdf)).pages]


def check(pdf: Path = PDF, questions: Path = QUESTIONS) -> list[str]:
    """Check the PDF and the questions against each other and return a list of problems, empty if all is well."""
    problems: list[str] = []
    for path in (pdf, questions):
        if not path.is_file():
            return [f"{path} does not exist"]
    pages = page_texts(pdf)
    if not PAGE_RANGE[0] <= len(pages) <= PAGE_RANGE[1]:
        problems.append(f"the PDF has {len(pages)} pages, not {PAGE_RANGE[0]} to {PAGE_RANGE[1]}")
    if pdf.stat().st_size > MAX_BYTES:
        problems.append(f"the PDF has {pdf.stat().st_size} bytes, more than {MAX_BYTES}")
    words = count_words()
    if words < MIN_WORDS:
        problems.append(f"the handbook has {words} words, fewer than {MIN_WORDS}")

    records: list[dict[str, Any]] = []
    for number, line in enumerate(questions.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            problems.append(f"line {number} of {questions.name} is not JSON: {error}")
    if len(records) != QUESTION_COUNT:
        problems.append(f"there are {len(records)} questions, not {QUESTION_COUNT}")
    for number, record in enumerate(records, start=1):
        name = str(record.get("id", f"line {number}"))
        if name != f"hb{number:02d}":
            problems.append(f"{name}: the id should be hb{number:02d}")
        if not str(record.get("question", "")).strip().endswith("?"):
            problems.append(f"{name}: the question does not end with a question mark")
        answers = record.get("answers")
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
            problems.append(f"{name}: 'answers' must be a list of texts")
            continue
        page = record.get("page")
        listed = record.get("pages", [page])
        if not isinstance(page, int) or page not in listed:
            problems.append(f"{name}: 'page' must be a number, and one of 'pages' if those are given")
            continue
        for p in listed:
            if not isinstance(p, int) or not 1 <= p <= len(pages):
                problems.append(f"{name}: there is no page {p}")
            elif not any(normalise(answer) in pages[p - 1] for answer in answers):
                problems.append(f"{name}: none of {answers} is on page {p}")
    if len({str(r.get("question", "")).lower() for r in records}) != len(records):
        problems.append("two questions are the same")

    # The questions must be spread over the book: about a third of them in each third of the pages.
    numbers = [r["page"] for r in records if isinstance(r.get("page"), int)]
    for part in range(3):
        low, high = len(pages) * part / 3, len(pages) * (part + 1) / 3
        here = sum(1 for n in numbers if low < n <= high)
        if here < QUESTION_COUNT // 5:
            problems.append(f"only {here} questions fall in part {part + 1} of 3 of the book")
    if len(set(numbers)) < QUESTION_COUNT // 2:
        problems.append(f"the questions use only {len(set(numbers))} different pages")
    return problems


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Typeset the sample handbook, or check its questions.")
    parser.add_argument("--output", type=Path, default=PDF, metavar="FILE", help="where to write, or find, the PDF")
    parser.add_argument("--check", action="store_true", help="check the questions against the built PDF")
    args = parser.parse_args(argv)
    if args.check:
        problems = check(args.output)
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        if not problems:
            print(f"{args.output}: {QUESTION_COUNT} questions checked, all answers found")
        return 1 if problems else 0
    pages = build(args.output)
    print(f"{args.output}: {pages} pages, {count_words()} words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
