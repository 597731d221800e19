"""PDF: pages as prose, with pypdf.

Only a page and its neighbours are in memory. The neighbours tell the header and footer of the page from its text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pypdf import PdfReader
from pypdf.errors import DependencyError

from ...errors import DamagedSource, EncryptedSource, SourceError
from ..doubt import doubt_of
from ..page import Page, Visits
from ..prose import tidy
from .annotations import Beside, annotations_of, has_image
from .hyphens import Words
from .layout import Line, LineCollector, blocks_of
from .outline import Heading, about_of, headings_of, labels_of, places_of
from .paragraphs import prose_of
from .running import RunningLines
from .side_by_side import joined

if TYPE_CHECKING:
    from .scan import Scans

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


def pdf_pages(path: Path, visits: Visits) -> Iterator[Page]:
    """Yield the pages that have text."""
    words, running = Words(), RunningLines()
    with path.open("rb") as file:
        reader = _opened(file, path.name)
        headings, labels, about = headings_of(reader), labels_of(reader), about_of(reader)
        del reader
        by_page: dict[int, list[Heading]] = {}
        for heading in headings:
            by_page.setdefault(heading.page, []).append(heading)
        title: str | None = None
        left_out: Counter[str] = Counter()
        images: list[int] = []
        waiting: Page | None = None
        beside: dict[int, Beside] = {}
        for number, lines, neighbours in _with_neighbours(_lines_by_page(file, path, visits, beside), words):
            blocks = blocks_of(running.without(number, lines, neighbours))
            text, starts = prose_of(blocks, words)
            places = places_of(by_page.pop(number, ()), blocks, starts)
            rest = beside.pop(number, Beside())
            text = "\n\n".join(filter(None, (text, *rest.paragraphs)))
            left_out += running.left_out
            left_out["annotations"] += rest.left_out
            images += [number] if rest.image else []
            if waiting is not None and text:
                whole, following = _whole_word(waiting.text, text, words)
                places = [(max(0, place - (len(text) - len(following))), title) for place, title in places]
                yield replace(waiting, text=whole)
                waiting, text = None, following
            # A page that has no text may still begin a section.
            if places and (not text or not places[0][0]):
                title = places[0][1] if text else places[-1][1]
                places = places[1:]
            if text:
                waiting = Page(
                    number,
                    text,
                    title,
                    labels.get(number) if labels else running.label,
                    tuple(places),
                    about,
                    dict(+left_out),
                    doubt_of(text),
                    rest.confidence,
                    tuple(images),
                )
                about, left_out, images, title = {}, Counter(), [], places[-1][1] if places else title
        if waiting is not None:
            left_out += Counter(waiting.left_out)
            yield replace(waiting, left_out=dict(left_out), images=(*waiting.images, *images))


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
    file: BinaryIO, path: Path, visits: Visits, beside: dict[int, Beside]
) -> Iterator[tuple[int, list[Line]]]:
    """Yield the numbers and lines of all pages, and put what is written beside the text of a page into `beside`."""
    name = path.name
    reader = _opened(file, name)
    scans = _scans(path) if visits.ocr else None
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
            if not lines or (scans is not None and doubt_of("\n".join(line.text for line in lines)) is not None):
                if scans is None:
                    beside[number] = replace(beside[number], image=has_image(reader.pages[index]))
                else:
                    lines, confidence = scans.lines(index)
                    beside[number] = replace(beside[number], confidence=confidence if lines else None)
            visits.check_size(number, sum(map(len, beside[number].paragraphs)), name)
        except SourceError as error:
            visits.give_up(number, error)
            continue
        for line in lines:
            line.text = _letters(line.text)
        yield number, joined([line for line in lines if line.text])


def _scans(path: Path) -> Scans:
    from .scan import Scans

    try:
        return Scans(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(path.name) from error


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


def _beside(reader: PdfReader, index: int) -> Beside:
    try:
        return annotations_of(reader.pages[index])
    except (OSError, MemoryError):
        raise
    except Exception:
        # A parser can fail in any way on broken annotations; the page can be read without them.
        return Beside([], 1)


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
