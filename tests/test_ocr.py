"""Scanned pages and images, read with the recognition that is really used."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pypdfium2
import pytest
from click.testing import CliRunner
from PIL import Image
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from infinimem import DocumentMemory
from infinimem.cli.main import main
from infinimem.errors import NoTextInSource, ReaderMissing, SourceError, UnsupportedSource
from infinimem.readers import Page, ReaderLimits, open_source, read_pages

if TYPE_CHECKING:
    from conftest import MakeModel

OCR = ReaderLimits(ocr=True)
LINES = [
    "The lighthouse keeper counted the ships that passed",
    "before breakfast. There were seven on Monday and none",
    "on Tuesday, when the fog came in from the north.",
]


def pages_of(path: Path, limits: ReaderLimits = OCR) -> list[Page]:
    return list(read_pages(open_source(path, limits), limits=limits))


def write(canvas: Canvas, lines: list[str]) -> None:
    canvas.setFont("Times-Roman", 12)
    for number, line in enumerate(lines):
        canvas.drawString(72, 700 - 15 * number, line)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    """A page as a scanner sees it."""
    path = tmp_path_factory.mktemp("scan") / "page.pdf"
    canvas = Canvas(str(path))
    write(canvas, LINES)
    canvas.save()
    return pypdfium2.PdfDocument(path)[0].render(scale=150 / 72).to_pil().convert("RGB")


@pytest.fixture
def scan(picture: Image.Image, tmp_path: Path) -> Path:
    """A PDF whose second page is an image, and whose third page is empty."""
    canvas = Canvas(str(tmp_path / "scan.pdf"))
    write(canvas, ["The harbour master wrote all of it down."])
    canvas.showPage()
    data = io.BytesIO()
    picture.save(data, "JPEG")
    canvas.drawImage(ImageReader(data), 0, 0, 595, 842)
    canvas.showPage()
    canvas.showPage()
    canvas.save()
    return tmp_path / "scan.pdf"


def test_a_scanned_page_is_read_as_paragraphs_with_its_confidence(scan: Path) -> None:
    first, second = pages_of(scan)
    assert first.confidence is None and second.number == 2
    assert second.text == " ".join(LINES) and second.confidence is not None and second.confidence > 0.9


def test_a_scanned_page_that_is_not_recognized_is_named(scan: Path) -> None:
    (page,) = pages_of(scan, ReaderLimits())
    assert page.images == (2,), "the empty page is no scan"


def test_a_memory_keeps_which_pages_were_recognized(scan: Path, make_model: MakeModel, tmp_path: Path) -> None:
    read = DocumentMemory.ingest(scan, model=make_model(), ocr=True)
    (row,) = read.info()["sources"][0]["recognized"]
    assert row["page"] == 2 and 90 <= row["percent"] <= 100 and not read.info()["sources"][0]["doubtful"]
    read.save(tmp_path / "m.safetensors")
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.safetensors")]).stdout
    assert "recognized   1 page, with" in shown


def test_the_command_names_pages_that_are_images(scan: Path, tiny_directory: Path, tmp_path: Path) -> None:
    ingest = ["ingest", str(scan), "-o", str(tmp_path / "m"), "-m", str(tiny_directory)]
    plain = CliRunner().invoke(main, ingest)
    assert plain.exit_code == 0 and "page 2 of scan.pdf: it is an image without text, which --ocr" in plain.stderr
    read = CliRunner().invoke(main, [*ingest, "--ocr"])
    assert read.exit_code == 0 and "Warning" not in read.stderr


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_an_image_is_read_where_it_is_asked_for(picture: Image.Image, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo{suffix}"
    more: dict[str, Any] = {"save_all": True, "append_images": [picture]} if suffix == ".tiff" else {}
    picture.save(path, **more)
    assert [page.text for page in pages_of(path)] == [" ".join(LINES)] * (2 if more else 1)
    with pytest.raises(UnsupportedSource, match="recognize the text in it with --ocr"):
        open_source(path)


def test_an_image_without_text_says_so(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), "white").save(tmp_path / "blank.png")
    with pytest.raises(SourceError, match="no text"):
        pages_of(tmp_path / "blank.png")


def test_a_pdf_of_images_names_the_option(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "scan.pdf")
    with pytest.raises(NoTextInSource, match="recognize their text with --ocr"):
        pages_of(tmp_path / "scan.pdf", ReaderLimits())


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [png(90_000, 90_000), png(100, 100), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" * 9])
def test_damaged_and_giant_images_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.png"):
        pages_of(tmp_path / "a.png", ReaderLimits(ocr=True, page_seconds=20))


def test_a_page_of_a_giant_size_is_drawn_smaller(tmp_path: Path) -> None:
    canvas = Canvas(str(tmp_path / "a.pdf"), pagesize=(14_000, 14_000))
    canvas.drawImage(ImageReader(Image.new("RGB", (8, 8), "white")), 0, 0, 14_000, 14_000)
    canvas.save()
    with pytest.raises(NoTextInSource):
        pages_of(tmp_path / "a.pdf")


def test_without_the_extra_the_error_names_it(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "rapidocr.py").write_text("raise ImportError")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "without"), *sys.path])
    with pytest.raises(ReaderMissing, match=r"pip install 'infinimem\[ocr\]'"):
        open_source(scan, OCR)
    assert open_source(scan).kind == "pdf"
