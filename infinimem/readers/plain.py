"""Plain text: find the encoding, decode in blocks, re-join wrapped lines, cut into pages."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

from .prose import PAGE_LIMIT, PAGE_TARGET, cut_head, is_list_item, join_lines, paginate, tidy

_BLOCK = 1 << 18
_SAMPLE = 1 << 16
_NARROWEST, _WIDEST = 40, 110
_MOST_LINES = 2_000
_BREAKS = re.compile(r"\r\n|\n|\r|\x0b|\x85|\u2028|\u2029")
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The characters above ASCII in Western European text. Any other such character inside a word speaks against cp1252.
_WESTERN = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüŒœ‘’“”„–—…«»")


def looks_binary(head: bytes) -> bool:
    """Tell whether the first bytes of a file cannot be text in any encoding."""
    if any(head.startswith(mark) for mark, _ in _BOMS) or _utf16_without_mark(head):
        return False
    controls = sum(head.count(byte) for byte in (*range(1, 8), *range(14, 27), 28, 29, 30, 31, 127))
    return b"\0" in head or controls * 50 > len(head)


def _utf16_without_mark(head: bytes) -> str | None:
    """Name the byte order of UTF-16 text that lacks its mark: one byte of each pair is mostly zero."""
    pairs = len(head) // 2
    if pairs < 4:
        return None
    even, odd = head[0 : 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    if odd * 2 > pairs and even * 20 < pairs:
        return "utf-16-le"
    if even * 2 > pairs and odd * 20 < pairs:
        return "utf-16-be"
    return None


def detect_encoding(path: Path) -> str:
    """Name the encoding of a text file: by its byte order mark, else UTF-8 if it is valid, else by its letters."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    with path.open("rb") as file:
        head = file.read(_SAMPLE)
        for mark, name in _BOMS:
            if head.startswith(mark):
                return name
        wide = _utf16_without_mark(head)
        if wide is not None:
            return wide
        block = head
        try:
            while block:
                decoder.decode(block)
                block = file.read(_BLOCK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            file.seek(0)
            return guess_encoding(_telling_lines(file))
    return "utf-8"


def _telling_lines(file: Iterable[bytes]) -> bytes:
    """Collect lines with bytes above ASCII: the others say nothing about the encoding."""
    found: list[bytes] = []
    size = 0
    read = 0
    for line in _bounded_lines(file):
        read += len(line)
        if not line.isascii():
            found.append(line)
            size += len(line)
        if size > _SAMPLE // 4 or read > 64 * _BLOCK:
            break
    return b"".join(found)


def _bounded_lines(file: Iterable[bytes]) -> Iterator[bytes]:
    readline = getattr(file, "readline", None)
    if readline is None:
        yield from file
        return
    while line := readline(4096):
        yield line


def guess_encoding(sample: bytes) -> str:
    """Name the likeliest encoding of `sample`, which is not valid UTF-8 as a whole."""
    lenient = sample.decode("utf-8", "replace")
    bad = lenient.count("\ufffd")
    good = sum(1 for letter in lenient if ord(letter) > 127) - bad
    if good >= 4 * bad:
        # A UTF-8 file with a few broken bytes: any other encoding would spoil all the rest.
        return "utf-8"
    if _reads_western(sample):
        return "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return best.encoding if best is not None else "cp1252"


def _reads_western(sample: bytes) -> bool:
    text = sample.decode("cp1252", "replace")
    letters = sum(1 for letter in text if letter.isalpha())
    high = sum(1 for letter in text if ord(letter) > 127)
    strange = len(re.findall(r"(?<=[^\W\d_])[^\x00-\x7f](?=[^\W\d_])", text)) - len(
        re.findall(rf"(?<=[^\W\d_])[{''.join(_WESTERN)}](?=[^\W\d_])", text)
    )
    return high * 4 < letters and strange * 20 < max(high, 1)


def read_text(path: Path) -> str:
    """Return a whole text file decoded, for the readers of markup that need all of it."""
    encoding = detect_encoding(path)
    return path.read_bytes().decode(encoding, "replace")


def _decoded(path: Path, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Split decoded blocks into lines; a form feed is a line of its own, and a giant line comes in pieces."""
    rest = ""
    for block in blocks:
        rest += block
        # A carriage return at the end may be half of a line end whose other half is in the next block.
        held = "\r" if rest.endswith("\r") else ""
        *whole, rest = _BREAKS.split(rest[: len(rest) - len(held)].replace("\f", "\n\f\n"))
        yield from whole
        if len(rest) > 4 * PAGE_LIMIT:
            pieces, rest = cut_head(rest, PAGE_TARGET, keep=PAGE_TARGET)
            for piece in pieces:
                yield piece
                yield ""
        rest += held
    yield from _BREAKS.split(rest)


def wrap_width(lines: Iterable[str]) -> int:
    """Return the column at which the lines were wrapped, or 0 where they were not."""
    lengths: list[int] = []
    previous = ""
    for line in lines:
        if previous and line.strip():
            lengths.append(len(previous))
        previous = line.rstrip()
    if not lengths:
        return 0
    lengths.sort()
    width = lengths[int(len(lengths) * 0.95)] if len(lengths) > 1 else lengths[0]
    return width if _NARROWEST <= width <= _WIDEST else 0


def unwrap(lines: list[str], width: int) -> list[str]:
    """Turn the lines between two blank lines into paragraphs: wrapped prose is joined, other lines stay as they are.

    width: the column at which the lines of the file were wrapped; 0 where they were not.
    """
    if not width or len(lines) < 2 or not _is_wrapped(lines, width):
        if len(lines) == 1:
            return [tidy(lines[0])]
        return [tidy(dedent("\n".join(lines)) if width else "\n".join(lines), verbatim=True)]
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    paragraphs: list[str] = []
    for number, line in enumerate(lines):
        indented = len(line) - len(line.lstrip()) > margin
        # Old books have no blank line between paragraphs but indent the first line of each.
        starts = indented and len(lines[number - 1].rstrip()) < width - 5
        text = tidy(line)
        if number == 0 or starts or is_list_item(line):
            paragraphs.append(text)
        else:
            paragraphs[-1] = join_lines(paragraphs[-1], text)
    if any(is_list_item(line) for line in lines):
        return ["\n".join(paragraphs)]
    return paragraphs


def _is_wrapped(lines: list[str], width: int) -> bool:
    """Tell whether the lines end where the width made them end: the next word would not have fitted."""
    full = 0
    breaks = 0
    for line, following in pairwise(lines):
        if is_list_item(following):
            continue
        breaks += 1
        word = following.split(None, 1)[0]
        full += len(line.rstrip()) + 1 + len(word) > width - 3
    followers = [line.lstrip()[0] for line in lines[1:]]
    capitals = sum(1 for letter in followers if letter.isupper())
    if len(followers) > 2 and capitals * 5 >= len(followers) * 4 and full < breaks:
        # Verse: every line starts with a capital, whatever its length.
        return False
    return breaks > 0 and full * 5 >= breaks * 3


def paragraphs_of(lines: Iterable[str], width: int) -> Iterator[str]:
    """Group lines into paragraphs; a form feed comes out as a paragraph of its own."""
    block: list[str] = []
    size = 0
    for line in lines:
        if line.strip() and line != "\f":
            block.append(line)
            size += len(line)
            if size < 8 * PAGE_LIMIT and len(block) < _MOST_LINES:
                continue
        if block:
            yield from unwrap(block, width)
            block, size = [], 0
        if line == "\f":
            yield line
    if block:
        yield from unwrap(block, width)


def text_pages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) for the pages of a plain text file; only a few blocks of the file are in memory."""
    encoding = detect_encoding(path)
    sample = next(_decoded(path, encoding), "")[:_SAMPLE]
    width = wrap_width(_BREAKS.split(sample))
    paragraphs = paragraphs_of(_lines(_decoded(path, encoding)), width)
    # A stray form feed in a long text does not mean that the file has pages.
    if sample.count("\f") * PAGE_LIMIT >= len(sample) and "\f" in sample:
        yield from _printed_pages(paragraphs)
    else:
        yield from enumerate(paginate(text for text in paragraphs if text != "\f"), start=1)


def _printed_pages(paragraphs: Iterable[str]) -> Iterator[tuple[int, str]]:
    number = 1
    page: list[str] = []
    size = 0
    for paragraph in paragraphs:
        if paragraph == "\f" or size > 4 * PAGE_LIMIT:
            for text in paginate(page, target=PAGE_LIMIT):
                yield number, text
            page, size = [], 0
        if paragraph == "\f":
            number += 1
        else:
            page.append(paragraph)
            size += len(paragraph)
    for text in paginate(page, target=PAGE_LIMIT):
        yield number, text
