"""The page of measurements: results are kept, tables and plots come from them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import TEXT, MakeModel

from infinimem.evaluate.passkey import passkey

SCRIPT = Path(__file__).parents[1] / "docs" / "make_memory_report.py"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_memory_report", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of all three layouts, in a folder with a blank in its name."""
    folder = tmp_path_factory.mktemp("data") / "a folder"
    folder.mkdir()
    rooms = ["kitchen", "garden", "office", "hallway"]
    files: dict[str, list[dict[str, Any]]] = {
        "books.jsonl": [{"title": title, "text": TEXT * 4} for title in ("One", "Two")],
        "babi.jsonl": [
            {"task": "qa1", "sentences": [f"In the {r}."], "qas": [{"question": "Where?", "answer": r, "after": 1}]}
            for r in rooms
        ],
        "qa.jsonl": [
            {"title": t, "passage": TEXT, "question": "How many ships?", "answers": ["seven"]} for t in ("A", "B")
        ],
    }
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    shutil.copy(SCRIPT.parent / "memory.md", tmp_path / "memory.md")
    return tmp_path


def tiny(report: ModuleType, model: Path) -> list[Any]:
    options = f"-m {model} --segment-length 64"
    books = "{data}/books.jsonl"
    passkey = f"passkey --tokens 700 --needles 3 --filler {books} --slots 16 {options}"
    about = {"system": "shipped", "filler": "book", "data": "small"}
    commands = {
        "length": passkey,
        "compressions": passkey,
        "controls": f"{passkey} --memory emptied",
        "perplexity": f"perplexity {books} --systems memory,window,sliding,exact,recent --slots 16 {options}",
        "babi": f"babi {{data}}/babi.jsonl --noise {books} --tokens 128 --shots 1 {options}",
        "qa": f"qa {{data}}/qa.jsonl --max-new-tokens 3 {options}",
    }
    rows = [report.Measurement(f"{part}-tiny", c, {"part": part, **about}) for part, c in commands.items()]
    longer = report.Measurement("length-longer", passkey.replace("700", "900"), {"part": "length", **about})
    return [*rows, longer]


def test_all_measurements_run_and_fill_the_page(
    report: ModuleType,
    docs: Path,
    data: Path,
    tiny_directory: Path,
    make_model: MakeModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = tiny(report, tiny_directory)
    # Three of the seven are there already, so four commands run.
    there = {"compressions-tiny": (700, "own"), "controls-tiny": (700, "emptied"), "length-longer": (900, "own")}
    for row in rows:
        if row.name in there:
            tokens, memory = there[row.name]
            result = passkey(make_model(segment_length=64), tokens, needles=3, memory=memory)
            report.keep(row, result, 1.0, docs / "results" / f"{row.name}.json")
    arguments = ["--docs", str(docs), "--data", str(data)]
    report.main(arguments, rows)
    page = (docs / "memory.md").read_text()
    assert "1 of 4: length-tiny" in capsys.readouterr().err
    for name in report.TABLES:
        between = page.split(f"<!-- begin {name} -->\n")[1].split(f"<!-- end {name} -->")[0]
        widths = {line.count("|") for line in between.strip().splitlines()}
        assert len(widths) == 1 and len(between.strip().splitlines()) >= 3, name
    # A line needs two points: of the compressions there is one.
    assert "](memory-length.png)" in page and (docs / "memory-length.png").read_bytes()[:4] == b"\x89PNG"
    assert "](memory-compressions.png)" not in page and not (docs / "memory-compressions.png").exists()
    kept = json.loads((docs / "results" / "qa-tiny.json").read_text())
    assert str(data) not in json.dumps(kept) and "DIR/qa.jsonl" in kept["command"] and "answers" not in kept["result"]
    assert f"| small | gold | 2 | {kept['result']['modes']['gold']['f1']:.3f} (" in page

    # A second run measures nothing and writes the same page.
    before = {path: path.stat().st_mtime_ns for path in (docs / "results").iterdir()}
    report.main(arguments, rows)
    assert capsys.readouterr().err == "" and (docs / "memory.md").read_text() == page
    report.main([*arguments, "--force", "qa-tiny"], rows)
    after = {path: path.stat().st_mtime_ns for path in (docs / "results").iterdir()}
    assert [path.stem for path in after if after[path] != before[path]] == ["qa-tiny"]


def test_a_failed_measurement_is_named_and_leaves_no_result(
    report: ModuleType, docs: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [report.Measurement("bad", "perplexity {data}/missing.txt", {"part": "perplexity", "system": "linear"})]
    with pytest.raises(SystemExit, match="not measured: bad"):
        report.main(["--docs", str(docs), "--data", str(data)], rows)
    assert "missing.txt" in capsys.readouterr().err and not (docs / "results").exists()
    with pytest.raises(SystemExit, match="not measured: bad"):
        report.main(["--docs", str(docs)], rows)
    assert "give --data DIR" in capsys.readouterr().err


def test_a_result_of_another_command_is_refused(report: ModuleType, docs: Path) -> None:
    rows = [report.Measurement("one", "perplexity book.txt", {"part": "perplexity", "system": "linear"})]
    (docs / "results").mkdir()
    (docs / "results" / "one.json").write_text(json.dumps({"command": "infinimem eval perplexity b.txt", "result": {}}))
    with pytest.raises(SystemExit, match="--force one"):
        report.main(["--docs", str(docs), "--write"], rows)
    with pytest.raises(SystemExit):
        report.main(["--docs", str(docs), "--force", "two"], rows)


def test_the_page_has_all_markers_and_the_table_different_names(
    report: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (SCRIPT.parent / "memory.md").read_text(encoding="utf-8")
    for name in [*report.TABLES, *report.PLOTS]:
        report.put(page, name, "")
    with pytest.raises(SystemExit, match="no markers"):
        report.put(page, "nowhere", "")
    rows = report.measurements()
    assert len({row.name for row in rows}) == len(rows)
    report.main(["--list"])
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_every_command_in_the_table_is_one_that_the_program_takes(report: ModuleType, data: Path) -> None:
    from infinimem.cli.evaluate import evaluate

    for row in report.measurements():
        name, *arguments = report.shlex.split(row.arguments.replace("{data}", "DIR"))
        evaluate.commands[name].make_context(name, [*arguments, "--json"])
