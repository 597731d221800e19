"""Compare the words that infinimem reads in PDF files with those that pypdfium2 reads, in number and order.

pip install pypdfium2
python docs/measure_parsing.py FILE_OR_FOLDER ...
pip install pdfplumber
python docs/measure_parsing.py --parsers FILE_OR_FOLDER ...    infinimem beside pypdf and pdfplumber

- found: the share of pypdfium2's words that infinimem has, each as often
- order: the longest run of words in the same order, as a share of pypdfium2's words (of the first 20,000)
- more: words of infinimem that pypdfium2 does not have, as a share of pypdfium2's words
- doubted: pages whose text may not be what is printed

Words are runs of letters and digits in lower case, after NFKC; words broken at the end of a line are joined in both.
"""

from __future__ import annotations

import argparse
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from make_memory_report import table

from infinimem.errors import InfinimemError
from infinimem.readers.formats import pages_of

MOST = 20_000
Parser = Callable[[Path], tuple[str, str]]


def main() -> None:
    """Print a table with one row for each file that both can read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--parsers", action="store_true", help="compare parsers")
    given = parser.parse_args()
    rows = []
    for path in sorted(file for one in given.paths for file in ([one] if one.is_file() else one.glob("*.pdf"))):
        try:
            theirs = words(by_pdfium(path))
            read = {name: measured(by, path, theirs) for name, by in PARSERS.items() if given.parsers or by is by_us}
        except (InfinimemError, RuntimeError) as error:
            print(f"{path.name}: {error}")
            continue
        if not theirs:
            continue
        if given.parsers:
            each = [cell for one in read.values() for cell in (one.found, one.order, one.seconds)]
            rows.append([path.name, f"{len(theirs):,}", *each])
        else:
            (us,) = read.values()
            rows.append([path.name, f"{len(theirs):,}", us.found, us.order, us.more, us.seconds, us.doubted])
    if given.parsers:
        heads = [f"{what}, {name}" for name in PARSERS for what in ("found", "order", "seconds")]
    else:
        heads = ["found", "order", "more", "seconds", "doubted"]
    print(table(["file", "words", *heads], rows))


class Measured(NamedTuple):
    """What one parser read of one file, as cells of the table."""

    found: str
    order: str
    more: str
    seconds: str
    doubted: str


def measured(by: Parser, path: Path, theirs: Sequence[str]) -> Measured:
    """Compare the words of a parser with those of pypdfium2."""
    started = time.perf_counter()
    text, doubted = by(path)
    seconds = time.perf_counter() - started
    ours = words(text)
    shared = (Counter(ours) & Counter(theirs)).total()
    size = max(1, len(theirs))
    order = common(ours[:MOST], theirs[:MOST]) / max(1, len(theirs[:MOST]))
    return Measured(
        f"{shared / size:.1%}", f"{order:.1%}", f"{(len(ours) - shared) / size:.1%}", f"{seconds:.1f}", doubted
    )


def by_us(path: Path) -> tuple[str, str]:
    """The text by infinimem, without what the file says about itself, and the number of pages that are doubted."""
    pages = list(pages_of(path, "pdf"))
    doubted = sum(1 for page in pages if page.doubt is not None)
    begins = (page.headings[0][0] if page.text.startswith(("Title: ", "Author: ")) else 0 for page in pages)
    text = "\n\n".join(page.text[begin:] for page, begin in zip(pages, begins, strict=True))
    return text, f"{doubted} of {len(pages)}"


def by_pypdf(path: Path) -> tuple[str, str]:
    """The text by pypdf alone."""
    from pypdf import PdfReader

    return "\n\n".join(page.extract_text() for page in PdfReader(path).pages), ""


def by_pdfplumber(path: Path) -> tuple[str, str]:
    """The text by pdfplumber."""
    import pdfplumber

    with pdfplumber.open(path) as document:
        return "\n\n".join(page.extract_text() or "" for page in document.pages), ""


def words(text: str) -> list[str]:
    """The words of a text."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"[^\W_]+", re.sub(r"[-\u00ad\u2010\ufffe]\s*\n\s*|\u00ad|\ufffe", "", plain))


def by_pdfium(path: Path) -> str:
    """The text of all pages by pypdfium2."""
    import pypdfium2

    document = pypdfium2.PdfDocument(path)
    return "\n\n".join(page.get_textpage().get_text_bounded() for page in document)


def common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """The length of the longest common subsequence, by bit vectors (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for number, word in enumerate(theirs):
        places[word] = places.get(word, 0) | 1 << number
    mask = (1 << len(theirs)) - 1
    row = mask
    for word in ours:
        same = row & places.get(word, 0)
        row = (row + same | row - same) & mask
    return len(theirs) - row.bit_count()


PARSERS = {"infinimem": by_us, "pypdf": by_pypdf, "pdfplumber": by_pdfplumber}

if __name__ == "__main__":
    main()
