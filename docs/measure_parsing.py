"""Compare the words that infinimem reads in PDF files with those that pypdfium2 reads, in number and order.

pip install pypdfium2
python docs/measure_parsing.py FILE_OR_FOLDER ...

- found: the share of pypdfium2's words that infinimem has, each as often
- order: the longest run of words in the same order, as a share of pypdfium2's words (of the first 20,000)
- more: words of infinimem that pypdfium2 does not have, as a share of pypdfium2's words

Words are runs of letters and digits in lower case, after NFKC; words broken at the end of a line are joined in both.
"""

from __future__ import annotations

import argparse
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from make_memory_report import table

from infinimem.errors import InfinimemError
from infinimem.readers.formats import pages_of

MOST = 20_000


def main() -> None:
    """Print a table with one row for each file that both can read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    given = parser.parse_args()
    rows = []
    for path in sorted(file for one in given.paths for file in ([one] if one.is_file() else one.glob("*.pdf"))):
        try:
            started = time.perf_counter()
            ours = words("\n\n".join(page.text for page in pages_of(path, "pdf")))
            seconds = time.perf_counter() - started
            theirs = words(by_pdfium(path))
        except (InfinimemError, RuntimeError) as error:
            print(f"{path.name}: {error}")
            continue
        if not theirs:
            continue
        shared = (Counter(ours) & Counter(theirs)).total()
        order = common(ours[:MOST], theirs[:MOST]) / len(theirs[:MOST])
        more = (len(ours) - shared) / len(theirs)
        shares = (f"{share:.1%}" for share in (shared / len(theirs), order, more))
        rows.append([path.name, f"{len(theirs):,}", *shares, f"{seconds:.1f}"])
    print(table(["file", "words", "found", "order", "more", "seconds"], rows))


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


if __name__ == "__main__":
    main()
