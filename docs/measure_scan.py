"""Read the sample handbook from a scan of its pages, and compare with its text.

pip install rapidfuzz 'infinimem[ocr]'
python docs/measure_scan.py [--pages N]

The pages are drawn at 150 dots an inch, kept as JPEG images in a PDF without text, and read with ocr=True. The word
error rate is the number of words to insert, delete or replace, over the number of words of the handbook as it is read
from its own text, page by page. Its questions are searched in both.
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

from infinimem import DocumentMemory

EXAMPLES = Path(__file__).parents[1] / "examples"
DPI = 150


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


def words(memory: DocumentMemory) -> dict[int, list[str]]:
    """The words of each page, without what the file says about itself and without dots and strokes alone."""
    pages: dict[int, list[str]] = {}
    for passage in memory.passages:
        if not passage.text.startswith("Title: "):
            pages.setdefault(passage.page, []).extend(
                word for word in passage.text.split() if any(map(str.isalnum, word))
            )
    return pages


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=1000, help="only the first pages")
    most = parser.parse_args().pages
    handbook = EXAMPLES / "handbook.pdf"
    with tempfile.TemporaryDirectory() as folder:
        scanned = Path(folder, "scan.pdf")
        scan(handbook, scanned, most)
        memories, seconds = {}, {}
        for name, path in (("text", handbook), ("scan", scanned)):
            started = time.perf_counter()
            memories[name] = DocumentMemory.ingest(path, ocr=name == "scan")
            seconds[name] = time.perf_counter() - started
    expected, read = words(memories["text"]), words(memories["scan"])
    expected = {number: found for number, found in expected.items() if number <= most}
    errors = {number: Levenshtein.distance(found, read.get(number, [])) for number, found in expected.items()}
    rows = [json.loads(line) for line in (EXAMPLES / "handbook_questions.jsonl").read_text().splitlines()]
    asked = [row for row in rows if row["page"] <= most]
    found = {}
    for name, memory in memories.items():
        pages = [[passage.page for passage in memory.retrieve(row["question"])] for row in asked]
        right = [set(row.get("pages", [row["page"]])) for row in asked]
        found[f"right page first, {name}"] = sum(bool(right[n] & set(hit[:1])) for n, hit in enumerate(pages))
        found[f"right page of four, {name}"] = sum(bool(right[n] & set(hit)) for n, hit in enumerate(pages))
    result = {
        "pages": len(expected),
        "words": sum(map(len, expected.values())),
        "word_error_rate": round(sum(errors.values()) / sum(map(len, expected.values())), 4),
        "worst_pages": dict(sorted(errors.items(), key=lambda one: -one[1])[:5]),
        "seconds_a_page": round((seconds["scan"] - seconds["text"]) / len(expected), 1),
        "least_confidence": min(row["percent"] for row in memories["scan"].info()["sources"][0]["recognized"]),
        "questions": len(asked),
        **found,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
