"""PDF: pages as prose, with pypdf.

Only a page and its neighbours are in memory. The neighbours tell the header and footer of the page from its text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pypdf import PdfReader
from pypdf.errors import DependencyError
from pypdf.generic import Destination

from ...errors import DamagedSource, EncryptedSource, SourceError
from ...text.sentences import CELLS
from ..page import Visits
from ..prose import tidy
from ..table import parts_of
from .annotations import annotations_of
from .hyphens import Words
from .layout import Block, Line, LineCollector, blocks_of
from .running import RunningLines
from .side_by_side import joined

_NEIGHBOURS = 3
# pypdf keeps every object it has read. A new PdfReader after this number of pages, or more, keeps memory flat.
_PAGES_PER_READER = 64
# The time to open a PdfReader grows with the pages of the whole file.
_MOST_READERS = 16
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_COMBINING = {
    "¨": "\u0308", "´": "\u0301", "ˆ": "\u0302", "˜": "\u0303", "ˇ": "\u030c",
    "˘": "\u0306", "˚": "\u030a", "˝": "\u030b",
}  # fmt: skip
_LOOSE_ACCENT = re.compile(f"([{''.join(_COMBINING)}])([A-Za-zı])")
_BROKEN_AT_END = re.compile(r"[^\W\d_][-\u2010]\Z")
# Mathematical fonts map glyphs to control characters, some of which would count as line ends and tear the text.
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
_LEADERS = re.compile(r"(?:\s?[.·]){5,}\s*")


def page_count(path: Path) -> int:
    """Return the number of pages. Raises DamagedSource, or EncryptedSource where the file needs a password."""
    with path.open("rb") as file:
        return _pages_in(_opened(file, path.name), path.name)


def pdf_pages(path: Path, visits: Visits) -> Iterator[tuple[int, str, str | None]]:
    """Yield (number, text, title) for the pages that have text."""
    words, running = Words(), RunningLines()
    with path.open("rb") as file:
        titles = _titles(_opened(file, path.name))
        waiting: tuple[int, str] | None = None
        beside: dict[int, list[str]] = {}
        for number, lines, neighbours in _with_neighbours(_lines_by_page(file, path.name, visits, beside), words):
            text = _prose(blocks_of(running.without(number, lines, neighbours)), words)
            text = "\n\n".join(filter(None, (text, *beside.pop(number, ()))))
            if not text:
                continue
            if waiting is not None:
                whole, text = _whole_word(waiting[1], text, words)
                yield waiting[0], whole, _title_of(waiting[0], titles)
            waiting = (number, text) if text else None
        if waiting is not None:
            yield waiting[0], waiting[1], _title_of(waiting[0], titles)


def _with_neighbours(
    pages: Iterable[tuple[int, list[Line]]], words: Words
) -> Iterator[tuple[int, list[Line], list[tuple[int, list[Line]]]]]:
    """Yield each page with the pages around it; `words` learns the words of all of them first."""
    before: deque[tuple[int, list[Line]]] = deque(maxlen=_NEIGHBOURS)
    after: deque[tuple[int, list[Line]]] = deque()
    for page in pages:
        words.learn(line.text for line in page[1])
        after.append(page)
        if len(after) > _NEIGHBOURS:
            number, lines = after.popleft()
            yield number, lines, [*before, *after]
            before.append((number, lines))
    while after:
        number, lines = after.popleft()
        yield number, lines, [*before, *after]
        before.append((number, lines))


def _whole_word(text: str, following: str, words: Words) -> tuple[str, str]:
    """Where the end of a page breaks a word, move the rest of the word back to that page; return both texts."""
    if not _BROKEN_AT_END.search(text) or not following[0].islower():
        return text, following
    rest = following.split(None, 1)[0]
    return words.join(text, rest), following[len(rest) :].lstrip()


def _opened(file: BinaryIO, name: str) -> PdfReader:
    try:
        file.seek(0)
        reader = PdfReader(file)
        locked = reader.is_encrypted and not reader.decrypt("")
    except DependencyError as error:
        raise EncryptedSource(
            f"'{name}' is encrypted with AES; install the package 'cryptography' or save it without encryption"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # A broken file can make a parser fail in any way.
        raise _damaged(name) from error
    if locked:
        raise EncryptedSource(f"'{name}' needs a password; save a copy without one (for example qpdf --decrypt)")
    return reader


def _damaged(name: str) -> DamagedSource:
    return DamagedSource(f"'{name}' is a damaged PDF; get a fresh copy or repair it (for example qpdf or mutool clean)")


def _pages_in(reader: PdfReader, name: str) -> int:
    try:
        count = len(reader.pages)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(name) from error
    if count == 0:
        raise _damaged(name)
    return count


def _lines_by_page(
    file: BinaryIO, name: str, visits: Visits, beside: dict[int, list[str]]
) -> Iterator[tuple[int, list[Line]]]:
    """Yield the numbers and lines of all pages, and put what is written beside the text of a page into `beside`."""
    reader = _opened(file, name)
    count = _pages_in(reader, name)
    renewed = max(_PAGES_PER_READER, count // _MOST_READERS)
    for index in range(count):
        if index and index % renewed == 0:
            reader = _opened(file, name)
        number = index + 1
        if number in visits.left_out:
            continue
        visits.begun(number)
        try:
            lines = _lines(reader, index, name, visits)
            beside[number] = _beside(reader, index)
            visits.check_size(number, sum(map(len, beside[number])), name)
        except SourceError as error:
            visits.give_up(number, error)
            continue
        for line in lines:
            line.text = _letters(line.text)
        yield number, joined([line for line in lines if line.text])


def _lines(reader: PdfReader, index: int, name: str, visits: Visits) -> list[Line]:
    """The lines of a page as pypdf finds them."""
    collector, characters = LineCollector(), 0

    def collect(text: str, *rest: Any) -> None:
        nonlocal characters
        characters += len(text)
        visits.check_size(index + 1, characters, name)
        collector.add(text, *rest)

    try:
        reader.pages[index].extract_text(visitor_operand_before=collector.operate, visitor_text=collect)
    except (OSError, MemoryError, SourceError):
        raise
    except Exception as error:
        # A broken file can make a parser fail in any way.
        raise DamagedSource(
            f"page {index + 1} of '{name}' is damaged; repair the file (for example qpdf or mutool clean)"
        ) from error
    # pypdf suppresses errors that are raised inside a form, so the size is checked again.
    visits.check_size(index + 1, characters, name)
    collector.end_line()
    return collector.lines


def _beside(reader: PdfReader, index: int) -> list[str]:
    try:
        return annotations_of(reader.pages[index])
    except (OSError, MemoryError):
        raise
    except Exception:
        # A parser can fail in any way on broken annotations; the page can be read without them.
        return []


def _letters(text: str) -> str:
    """Expand ligatures, and join accents to letters where a font prints them side by side."""
    end = "\u00ad" if text.endswith("\u00ad") else ""
    # A cedilla is printed after its letter, unlike the accents above.
    text = re.sub("(?<=[cCsStT])¸", "\u0327", text)
    text = _LOOSE_ACCENT.sub(_accented, text.translate(_CONTROLS).translate(_LIGATURES))
    return tidy(_LEADERS.sub(" ..... ", text).replace("c©", "©")) + end


def _accented(match: re.Match[str]) -> str:
    letter = match.group(2).replace("ı", "i")
    composed = unicodedata.normalize("NFC", letter + _COMBINING[match.group(1)])
    return composed if len(composed) == 1 else match.group()


def _prose(blocks: list[Block], words: Words) -> str:
    return "\n\n".join(filter(None, (_paragraph(block, words) for block in blocks)))


def _paragraph(block: Block, words: Words) -> str:
    if block.kind == "code":
        margin = min(line.x for line in block.lines)
        # A letter of a typewriter font is three fifths as wide as it is high.
        indents = (round((line.x - margin) / (0.6 * max(line.size, 1))) for line in block.lines)
        text = "\n".join(" " * min(indent, 40) + line.text for indent, line in zip(indents, block.lines, strict=True))
        return tidy(text, verbatim=True)
    if block.kind == "row":
        rows = [line.text.split(CELLS) for line in block.lines]
        return "\n\n".join(tidy(part) for part in parts_of(rows, _heads(block.lines)))
    text = block.lines[0].text
    for line in block.lines[1:]:
        text = words.join(text, line.text)
    return tidy(text)


def _heads(lines: list[Line]) -> int:
    """How many of the first rows of a table hold the names of its columns: one that looks unlike the rows below."""
    first, *rest = lines
    if CELLS not in first.text or not rest:
        return 0
    bold = first.bold and not any(line.bold for line in rest)
    plain = not any(map(str.isdigit, first.text)) and any(map(str.isdigit, "".join(line.text for line in rest)))
    return int(bold or plain)


def _titles(reader: PdfReader) -> list[tuple[int, str]]:
    """Return (page number, title) for the entries of the outline that lead to a page."""
    found: list[tuple[int, str]] = []
    try:
        waiting: list[Any] = list(reversed(reader.outline))
        while waiting:
            entry = waiting.pop()
            if isinstance(entry, list):
                waiting.extend(reversed(entry))
            elif isinstance(entry, Destination):
                index = reader.get_destination_page_number(entry)
                title = tidy(str(entry.title or "")).replace("\n", " ")
                if index is not None and index >= 0 and title:
                    found.append((index + 1, title))
    except (OSError, MemoryError):
        raise
    except Exception:
        # A parser can fail in any way on a broken outline; the pages can be read without an outline.
        return []
    return sorted(found, key=lambda entry: entry[0])


def _title_of(number: int, titles: list[tuple[int, str]]) -> str | None:
    return next((title for page, title in reversed(titles) if page <= number), None)
