"""Read the sample handbook from a scan of its pages, and compare with its text.

pip install rapidfuzz 'infinimem[ocr]'
python docs/measure_scan.py [--pages N]

The pages are drawn at 150 dots an inch, kept as JPEG images in a PDF without text, and read with ocr=True. The word
error rate is the number of words to insert, delete or replace, over the number of words of the handbook as it is read
from its own text, page by page. Ten of its questions are searched in both.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import pypdfium2
from rapidfuzz.distance import Levenshtein
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from infinimem import DocumentMemory, ReaderLimits, open_source, read_pages

EXAMPLES = Path(__file__).parents[1] / "examples"
DPI = 150
QUESTIONS = 10


def scan(source: Path, target: Path, most: int) -> None:
    """Write the pages of a PDF as images."""
    document = pypdfium2.PdfDocument(source)
    canvas = Canvas(str(target))
    for page in list(document)[:most]:
        image, data = page.render(scale=DPI / 72).to_pil().convert("RGB"), io.BytesIO()
        image.save(data, "JPEG", quality=85)
        canvas.setPageSize(page.get_size())
        canvas.drawImage(ImageReader(data), 0, 0, *page.get_size())
        canvas.showPage()
    canvas.save()


def texts(path: Path, limits: ReaderLimits) -> dict[int, list[str]]:
    """The words of each page."""
    pages = read_pages(open_source(path, limits), limits=limits)
    # What the file says about itself is no part of the scan.
    return {page.number: page.text[page.headings[0][0] if page.about else 0 :].split() for page in pages}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=1000, help="only the first pages")
    most = parser.parse_args().pages
    handbook = EXAMPLES / "handbook.pdf"
    with tempfile.TemporaryDirectory() as folder:
        scanned = Path(folder, "scan.pdf")
        scan(handbook, scanned, most)
        started = time.perf_counter()
        read = texts(scanned, ReaderLimits(ocr=True))
        seconds = time.perf_counter() - started
        expected = {number: words for number, words in texts(handbook, ReaderLimits()).items() if number <= most}
        errors = {number: Levenshtein.distance(words, read.get(number, [])) for number, words in expected.items()}
        rows = [json.loads(line) for line in (EXAMPLES / "handbook_questions.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["page"] <= most]
        chosen = rows[:: max(1, len(rows) // QUESTIONS)][:QUESTIONS]
        found = {}
        for name, path in (("text", handbook), ("scan", scanned)):
            memory = DocumentMemory.ingest(path, ocr=name == "scan")
            hits = [[passage.page for passage in memory.retrieve(row["question"])] for row in chosen]
            pages = [row.get("pages", [row["page"]]) for row in chosen]
            ranked = list(zip(hits, pages, strict=True))
            found[name] = {
                "right page first": sum(bool(set(hit[:1]) & set(right)) for hit, right in ranked),
                "right page of 4": sum(bool(set(hit) & set(right)) for hit, right in ranked),
            }
    result = {
        "pages": len(expected),
        "words": sum(map(len, expected.values())),
        "word_error_rate": round(sum(errors.values()) / sum(map(len, expected.values())), 4),
        "worst_pages": dict(sorted(errors.items(), key=lambda one: -one[1])[:5]),
        "seconds_a_page": round(seconds / len(expected), 1),
        "questions": len(chosen),
        **found,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
