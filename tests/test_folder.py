"""One folder with files of all kinds: each is read or named."""

from __future__ import annotations

import json
from pathlib import Path

import docx
import nasty_texts
import odfdo
import openpyxl
import pptx
from click.testing import CliRunner
from reportlab.pdfgen.canvas import Canvas

from infinimem.cli.main import main

TEXT = "The lighthouse keeper counted the ships."


def fill(folder: Path) -> tuple[set[str], set[str]]:
    """Write files of fourteen kinds, and files that cannot be read; returns the names of both."""
    (folder / "deep").mkdir(parents=True)
    texts = {
        "a.txt": TEXT,
        "b.rst": f"Title\n=====\n\n{TEXT}",
        "README": TEXT,
        "c.md": f"# Ships\n\n{TEXT}",
        "deep/d.html": f"<h1>Ships</h1><p>{TEXT}",
        "e.csv": "Name,Built\nHeron,1931\nTern,1940\n",
        "f.py": f"def ships():\n    return '{TEXT}'\n\n\nclass Ship:\n    built = 1931\n",
        "g.json": '{\n  "ships": [\n    "Heron"\n  ],\n  "keeper": "Ada"\n}\n',
        "deep/h.eml": f"From: a@example.org\nSubject: Ships\n\n{TEXT}\n",
        "i.ipynb": json.dumps({"cells": [{"cell_type": "markdown", "source": TEXT}], "nbformat": 4}),
        "j.rtf": f"{{\\rtf1 {TEXT}}}",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    canvas = Canvas(str(folder / "k.pdf"))
    canvas.drawString(72, 700, TEXT)
    canvas.save()
    (folder / "l.epub").write_bytes(nasty_texts.epub([f"<p>{TEXT}"], [0]))
    word = docx.Document()
    word.add_paragraph(TEXT)
    word.save(str(folder / "m.docx"))
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = TEXT
    deck.save(str(folder / "n.pptx"))
    book = openpyxl.Workbook()
    book.active.append([TEXT])
    book.save(folder / "deep" / "o.xlsx")
    text = odfdo.Document("text")
    text.body.append(odfdo.Paragraph(TEXT))
    text.save(str(folder / "p.odt"))
    broken: dict[str, bytes] = {
        "q.png": b"\x89PNG\r\n\x1a\n",
        "r.pdf": b"%PDF-1.7\n",
        "s.zip": b"PK\x03\x04",
        "t.txt": b"",
        "u.docx": b"\xd0\xcf\x11\xe0" + bytes(600),
        "v.bin": bytes(range(256)),
        "w.html": b"<p></p>",
        "deep/x.safetensors": b"\x08\0\0\0\0\0\0\0{}      ",
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    good = {Path(name).name for name in texts} | {"k.pdf", "l.epub", "m.docx", "n.pptx", "o.xlsx", "p.odt"}
    return good, {Path(name).name for name in broken}


def test_all_files_of_a_folder_are_read_or_named(tiny_directory: Path, tmp_path: Path) -> None:
    good, bad = fill(tmp_path / "folder")
    assert len(good | bad) == 25
    ingest = ["ingest", str(tmp_path / "folder"), "-o", str(tmp_path / "m"), "-m", str(tiny_directory)]
    result = CliRunner().invoke(main, [*ingest, "--json"])
    assert result.exit_code == 0
    assert {row["source"] for row in json.loads(result.stdout)["skipped"]} == bad
    shown = json.loads(CliRunner().invoke(main, ["inspect", str(tmp_path / "m"), "--json"]).stdout)
    kinds = {source["name"]: source["kind"] for source in shown["sources"] if not source["skipped"]}
    assert set(kinds) == good and len(set(kinds.values())) == 14
    assert all(source["characters"] for source in shown["sources"] if source["name"] in good)
