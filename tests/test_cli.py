"""The command line, as a user meets it: output, JSON, exit status, standard error."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import TEXT

from infinimem import DocumentMemory
from infinimem.cli.main import main
from infinimem.evaluate.qa import MODES
from infinimem.readers.page import Page
from infinimem.readers.source import Source

STORY = TEXT * 3 + "The captain of the Heron was called Odile Marchetti. " + TEXT * 2


def infinimem(*arguments: Any, expect: int = 0, **settings: Any) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], **settings)
    assert result.exit_code == expect, (result.output, result.exception)
    return result


def as_json(*arguments: Any) -> dict[str, Any]:
    result = infinimem(*arguments, "--json")
    assert result.stderr == ""
    return dict(json.loads(result.stdout))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("story") / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def file(story: Path, tiny_directory: Path) -> Path:
    target = story.parent / "story.safetensors"
    ingest = ["ingest", story, "-o", target, "-m", tiny_directory, "--segment-length", 32, "--slots", 24, "--carry", 16]
    shown = as_json(*ingest)
    assert {"tokens", "seconds", "tokens_per_second", "pages"} <= set(shown)
    assert {"memory_bytes", "file_bytes", "rule", "model"} <= set(shown)
    assert shown["file_bytes"] == target.stat().st_size > shown["memory_bytes"] > 0
    return target


@pytest.mark.parametrize("command", ["ingest", "merge"])
def test_a_document_is_never_overwritten(command: str, file: Path, tiny_directory: Path, tmp_path: Path) -> None:
    document = tmp_path / "story.txt"
    document.write_text(STORY, encoding="utf-8")
    given = [document] if command == "ingest" else [file, file]
    ended = infinimem(command, *given, "-o", document, "-m", tiny_directory, expect=1)
    assert "is there and is no memory file" in ended.stderr and document.read_text(encoding="utf-8") == STORY


def test_a_question_that_no_passage_fits_is_never_answered_from_the_memory(file: Path, tiny_directory: Path) -> None:
    assert infinimem("ask", file, "Zzyzx qwrt?", "-m", tiny_directory).stdout == "The document does not say.\n"
    answer = as_json("ask", file, "Zzyzx qwrt?", "-m", tiny_directory)
    assert (answer["mode"], answer["found"], answer["passages"]) == ("passages", False, [])
    assert as_json("ask", file, "Who is Odile Marchetti?", "-m", tiny_directory)["passages"]


def test_ingest_says_what_it_did(story: Path, tiny_directory: Path, tmp_path: Path) -> None:
    out = infinimem("ingest", story, "-o", tmp_path / "m", "-m", tiny_directory).stdout
    assert "tokens/s" in out and "1 page " in out and (tmp_path / "m").is_file()


def test_ask_prints_the_answer_and_where_it_comes_from(file: Path) -> None:
    result = infinimem("ask", file, "Who is the captain of the Heron?", "--max-new-tokens", 5)
    assert "[1] story.txt, page 1" in result.stdout


def test_ask_json_has_the_documented_keys(file: Path) -> None:
    shown = as_json("ask", file, "Who is the captain?", "-k", 2, "--max-new-tokens", 5)
    assert set(shown) == {"answer", "found", "mode", "passages", "forced"} and shown["mode"] == "passages"
    assert {"text", "source", "page", "score"} <= set(shown["passages"][0]) and len(shown["passages"]) <= 2


def test_ask_from_the_memory_alone(file: Path) -> None:
    shown = as_json("ask", file, "Who is the captain?", "--answer-from", "memory", "--max-new-tokens", 5)
    assert shown["mode"] == "memory" and shown["passages"] == []


def test_retrieve_prints_passages_and_json(file: Path) -> None:
    assert "Odile Marchetti" in infinimem("retrieve", file, "captain Odile").stdout
    assert "No passage" in infinimem("retrieve", file, "zeppelin").stdout
    shown = as_json("retrieve", file, "captain Odile", "-k", 1)
    assert [p["page"] for p in shown["passages"]] == [1] and shown["passages"][0]["score"] > 0


def test_summarize_prints_and_focuses(file: Path) -> None:
    assert "[1] story.txt" in infinimem("summarize", file, "--max-new-tokens", 5).stdout
    shown = as_json("summarize", file, "--focus", "the captain", "--max-new-tokens", 5)
    assert set(shown) == {"summary", "focus", "mode", "passages", "forced"} and shown["focus"] == "the captain"


def test_chat_goes_on_until_an_empty_line(file: Path) -> None:
    result = infinimem("chat", file, input="Who is the captain?\n?!\nAnd then?\n\n")
    assert result.stdout.count("you>") == 4 and "no words in it" in result.stderr


def test_chat_ends_quietly_at_the_end_of_input(file: Path) -> None:
    infinimem("chat", file, input="")


def test_inspect_describes_the_file_and_writes_a_report(
    file: Path, story: Path, tiny_directory: Path, tmp_path: Path
) -> None:
    out = infinimem("inspect", file, "--html", tmp_path / "report.html").stdout
    assert "story.txt" in out and "slots" in out
    shown = as_json("inspect", file)
    assert shown["pages"] == 1 and shown["sources"][0]["sha256"] and shown["settings"]["carry"] == 16
    # A short document is kept as its tokens, but without passages as its states.
    assert shown["layers"] == []
    ingest = ["ingest", story, "-o", tmp_path / "m", "-m", tiny_directory, "--segment-length", 32, "--slots", 24]
    infinimem(*ingest, "--carry", 16, "--no-passages")
    layers = as_json("inspect", tmp_path / "m")["layers"]
    assert [layer["carried"] for layer in layers] == [16] * 4
    assert [layer.get("slots") for layer in layers] == [None, 24, 24, 24]
    report = (tmp_path / "report.html").read_text()
    assert shown["fingerprint"] in report and "<script" not in report


def test_names_from_a_document_cannot_steer_the_terminal_or_the_report(tiny_directory: Path, tmp_path: Path) -> None:
    memory = DocumentMemory.from_text(STORY, name="\x1b[31mevil<script>", model=tiny_directory)
    memory.save(tmp_path / "m")
    out = infinimem("inspect", tmp_path / "m", "--html", tmp_path / "r.html").stdout
    out += (
        infinimem("retrieve", tmp_path / "m", "captain", color=True)
        .stdout.replace("\x1b[1m", "")
        .replace("\x1b[0m", "")
    )
    assert "\x1b" not in out and "evil" in out
    assert "<script>" not in (tmp_path / "r.html").read_text()


def test_verify_accepts_a_sound_file_and_its_model(file: Path, tiny_directory: Path) -> None:
    assert "sound" in infinimem("verify", file).stdout
    assert "model" in as_json("verify", file, "-m", tiny_directory)["checked"]
    assert "model" in as_json("verify", file, "-m", "default")["checked"]


def test_verify_refuses_a_damaged_file_in_one_line(file: Path, tmp_path: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-20] ^= 4
    (tmp_path / "bad").write_bytes(data)
    error = infinimem("verify", tmp_path / "bad", expect=1).stderr
    assert error.startswith("Error: ") and error.count("\n") == 1 and "checksum" in error


def test_merge_makes_one_file_of_two(file: Path, tmp_path: Path) -> None:
    shown = as_json("merge", file, file, "-o", tmp_path / "both")
    assert [s["name"] for s in shown["sources"]] == ["story.txt", "story.txt"]
    assert "2 sources" in infinimem("merge", file, file, "-o", tmp_path / "both").stdout
    infinimem("merge", file, "-o", tmp_path / "one", expect=2)


def test_eval_passkey_has_the_documented_keys(tiny_directory: Path, story: Path) -> None:
    for extra in ([], ["--filler", story, "--rule", "delta"]):
        shown = as_json("eval", "passkey", "--tokens", 300, "-m", tiny_directory, "--depths", "0,1", *extra)
        assert {"tokens", "segments", "rule", "memory_bytes", "accuracy", "exact"} <= set(shown)
        assert set(shown["accuracy"]) == set(shown["exact"]) == {"0.0", "1.0"} and shown["tokens"] == 300
    out = infinimem("eval", "passkey", "--tokens", 300, "-m", tiny_directory, "--depths", "0.5").stdout
    assert "depth 0.5: " in out


def test_eval_passkey_asks_for_many_needles_from_any_rule(tiny_directory: Path, story: Path) -> None:
    arguments = ["eval", "passkey", "--tokens", 1200, "-m", tiny_directory, "--needles", 4, "--filler", story]
    shown = as_json(*arguments, "--kind", "names", "--rule", "recent", "--slots", 64, "--memory", "other")
    assert list(shown["accuracy"]) == list(shown["interval"]) == ["0.125", "0.375", "0.625", "0.875"]
    assert set(shown["overall"]) == {"accuracy", "interval", "exact", "exact_interval", "unled", "needles"}
    assert shown["rule_settings"]["tokens"] == 64 and shown["memory"] == "other" and shown["kind"] == "names"
    assert "all 4: " in infinimem(*arguments).stdout


def test_eval_perplexity_has_the_documented_keys(tiny_directory: Path, story: Path) -> None:
    arguments = ["eval", "perplexity", story, "-m", tiny_directory, "--segment-length", 32]
    shown = as_json(*arguments)
    assert {"tokens", "memory", "window"} <= set(shown) and shown["memory"] != shown["window"] > 1
    assert "%" in infinimem(*arguments).stdout


def test_eval_perplexity_of_books_by_all_systems(tiny_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "books.jsonl"
    path.write_text("".join(json.dumps({"title": title, "text": STORY}) + "\n" for title in ("One", "Two")))
    arguments = ["eval", "perplexity", path, "-m", tiny_directory, "--segment-length", 32, "--limit", 120, "--skip", 5]
    shown = as_json(*arguments, "--systems", "memory,window,sliding,exact,recent")
    assert {"memory", "window", "sliding", "exact", "recent", "mean_change", "worst_change"} <= set(shown)
    assert [row["title"] for row in shown["documents"]] == ["One", "Two"] and shown["tokens"] == 240
    out = infinimem(*arguments).stdout
    assert "One: memory" in out and "all: memory" in out


def test_eval_babi_has_own_and_control_memories(tiny_directory: Path, story: Path, tmp_path: Path) -> None:
    rooms = ["kitchen", "garden", "office", "hallway"]
    rows = [
        {
            "task": "qa1",
            "sentences": [f"Mary went to the {room}."],
            "qas": [{"question": "Where is Mary?", "answer": room, "after": 1}],
        }
        for room in rooms
    ]
    path = tmp_path / "babi.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["eval", "babi", path, "--noise", story, "--tokens", 150, "-m", tiny_directory, "--tasks", "qa1"]
    shown = as_json(*arguments)
    assert {"own", "emptied", "other", "questions", "interval", "differences"} <= set(shown["tasks"]["qa1"])
    assert shown["overall"]["questions"] == 2 and shown["tokens"] == 150
    assert "qa1: " in infinimem(*arguments, "--shots", 1).stdout
    infinimem(*arguments[:-1], "qa7", expect=1)


def test_eval_qa_has_the_documented_keys(tiny_directory: Path, tmp_path: Path) -> None:
    row = {"paragraphs": [STORY], "qas": [{"question": "Who is the captain?", "answers": ["Odile"], "paragraph": 0}]}
    path = tmp_path / "qa.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"title": t, **row}) + "\n" for t in "ABC").encode()))
    arguments = ["eval", "qa", path, "-m", tiny_directory, "--documents", 2, "--max-new-tokens", 4]
    shown = as_json(*arguments)
    assert list(shown["modes"]) == list(MODES) and shown["questions"] == 2
    assert all({"f1", "em", "interval", "not_found"} <= set(scores) for scores in shown["modes"].values())
    assert set(shown["differences"]) == {"memory-none", "memory-other"}
    out = infinimem(*arguments, "--modes", "none,memory").stdout
    assert "none   F1" in out and "memory - none: F1" in out and "gold" not in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest", "{missing}", "-o", "{out}"],
        ["ingest", "{binary}", "-o", "{out}"],
        ["ingest", "{story}", "-o", "{missing}/deep/m"],
        ["ingest", "{story}", "-o", "{out}", "-m", "./no-such-model"],
        ["ingest", "{story}", "-o", "{directory}"],
        ["ask", "{missing}", "Who?"],
        ["ask", "{story}", "Who?"],
        ["ask", "{file}", "?!"],
        ["retrieve", "{file}", " "],
        ["inspect", "{missing}"],
        ["inspect", "{story}"],
        ["verify", "{story}"],
        ["merge", "{file}", "{missing}", "-o", "{out}"],
        ["eval", "perplexity", "{missing}"],
        ["eval", "perplexity", "{missing}.jsonl.gz"],
        ["eval", "babi", "{missing}.jsonl", "--noise", "{story}"],
        ["eval", "babi", "{story}", "--noise", "{story}"],
        ["eval", "qa", "{missing}.jsonl.gz"],
        ["eval", "qa", "{story}"],
        ["eval", "perplexity", "{story}", "-m", "{model}", "--systems", "magic"],
        ["eval", "perplexity", "{story}", "-m", "{model}", "--skip", "100000"],
        ["eval", "passkey", "--depths", "2", "-m", "{model}"],
        ["eval", "passkey", "--needles", "999", "-m", "{model}"],
        ["eval", "passkey", "--needles", "80", "--tokens", "900", "-m", "{model}"],
        ["eval", "passkey", "--filler", "{missing}", "-m", "{model}"],
    ],
)
def test_bad_input_is_one_line_and_exit_status_1(
    arguments: list[str], file: Path, story: Path, tiny_directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 20)
    places = {
        "missing": tmp_path / "missing",
        "binary": tmp_path / "binary",
        "out": tmp_path / "out",
        "directory": tmp_path,
        "story": story,
        "file": file,
        "model": tiny_directory,
    }
    result = infinimem(*[argument.format(**places) for argument in arguments], expect=1)
    assert result.stdout == "" and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["binary"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest"],
        ["ingest", "a"],
        ["ask", "file"],
        ["ask", "file", "q", "-k", "0"],
        ["ask", "file", "q", "--answer-from", "magic"],
        ["ingest", "a", "-o", "b", "--rule", "linear", "--slots", "8"],
        ["ingest", "a", "-o", "b", "--rule", "magic"],
        ["eval", "passkey", "--depths", "deep"],
        ["eval", "passkey", "--tokens", "3"],
        ["eval", "passkey", "--kind", "songs"],
        ["eval", "babi", "a"],
        ["eval", "qa", "a", "--limit", "0"],
        ["eval", "passkey", "--rule", "delta", "--slots", "8"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_exit_status_2(arguments: list[str], story: Path, tmp_path: Path) -> None:
    places = {"a": str(story), "b": str(tmp_path / "out")}
    result = infinimem(*[places.get(a, a) for a in arguments], expect=2)
    assert "Error" in result.stderr or "Usage" in result.stderr


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", [["--help"], ["ingest", "--help"], ["bench", "--help"], ["inspect", "{file}"]])
def test_help_and_inspect_import_no_torch(command: list[str], file: Path) -> None:
    arguments = [part.format(file=file) for part in command]
    code = (
        "import sys; from infinimem.cli.main import main\n"
        f"main({arguments!r}, standalone_mode=False)\n"
        "loaded = {'torch', 'transformers', 'bm25s', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("command", [["models"], ["inspect", "{file}"], ["inspect", "{file}", "--json"]])
def test_a_full_standard_output_ends_in_one_line(command: list[str], file: Path) -> None:
    arguments = [part.format(file=file) for part in command]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "infinimem", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the output cannot be written: ") and done.stderr.count("\n") == 1


def test_json_on_a_real_standard_output_is_one_object_and_nothing_else(file: Path) -> None:
    command = [sys.executable, "-m", "infinimem", "ask", str(file), "Who?", "--json", "--max-new-tokens", "3"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["mode"] == "passages" and result.stderr == ""


def test_the_page_of_help_texts_is_what_the_program_says() -> None:
    script = Path(__file__).parents[1] / "docs" / "make_help.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_ingest_many_writes_a_memory_file_for_each_document(tiny_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, text in (("one.txt", STORY), ("deep/two.md", f"# Two\n\n{TEXT}"), ("deep/bad.html", "<p></p>")):
        (tmp_path / "in" / name).write_text(text)
    many = ["ingest-many", tmp_path / "in", "-o", tmp_path / "out", "-m", tiny_directory, "--segment-length", 32]
    named = [tmp_path / "in" / "deep" / "bad.html" if part == tmp_path / "in" else part for part in many]
    assert "bad.html" in infinimem(*named, expect=1).stderr
    # What was found in a directory, rather than named, is left out where it cannot be read.
    shown = infinimem(*many)
    assert "Wrote 2 memory files" in shown.stdout and "of bad.html" in shown.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.txt.safetensors", "two.md.safetensors"]
    answer = as_json("ask", tmp_path / "out" / "one.txt.safetensors", "Who is captain?", "--max-new-tokens", 3)
    assert {passage["source"] for passage in answer["passages"]} == {"one.txt"}


def test_ingest_many_resumes_with_what_is_missing_or_has_changed(tiny_directory: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(f"{name}. {TEXT}")
    many = ["ingest-many", *sorted(tmp_path.glob("*.txt")), "-o", tmp_path / "out", "-m", tiny_directory]
    assert len(as_json(*many)["written"]) == 3
    assert as_json(*many, "--resume")["already_there"] == 3
    (tmp_path / "a.txt").write_text(STORY)
    (tmp_path / "out" / "b.txt.safetensors").write_bytes(b"damaged")
    again = as_json(*many, "--resume")
    assert sorted(row["source"] for row in again["written"]) == ["a.txt", "b.txt"] and again["already_there"] == 1
    assert len(as_json(*many, "--resume", "--segment-length", 64)["written"]) == 3


def test_ingest_many_refuses_two_documents_of_one_name(tiny_directory: Path, tmp_path: Path) -> None:
    for directory in ("x", "y"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "same.txt").write_text(TEXT)
    refused = infinimem("ingest-many", tmp_path, "-o", tmp_path / "out", "-m", tiny_directory, expect=1)
    assert "have the same name" in refused.stderr and not (tmp_path / "out").exists()


def test_ingest_many_says_which_pages_are_left_out_and_leaves_them_out_again(
    tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(source: Source, limits: object, left_out: object, failed: Callable[[int, str], None]) -> Iterator[Page]:
        yield Page(1, TEXT)
        failed(2, "it is torn")

    (tmp_path / "half.md").write_text(TEXT)
    monkeypatch.setattr("infinimem.readers.source._pages", torn)
    many = ["ingest-many", tmp_path / "half.md", "-o", tmp_path / "out", "-m", tiny_directory, "--skip-errors"]
    assert "left out page 2 of half.md: it is torn" in infinimem(*many).stderr
    assert as_json(*many)["skipped"] == [{"source": "half.md", "page": 2, "reason": "it is torn"}]
    assert as_json(*many, "--resume")["already_there"] == 1


def test_ingest_many_says_before_it_reads_that_a_name_is_too_long_for_its_memory(
    tiny_directory: Path, tmp_path: Path
) -> None:
    (tmp_path / f"{'n' * 244}.txt").write_text(TEXT)
    (tmp_path / "short.txt").write_text(TEXT)
    refused = infinimem("ingest-many", tmp_path, "-o", tmp_path / "out", "-m", tiny_directory, expect=1)
    assert "cannot be written" in refused.stderr and not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_a_file_whose_name_is_no_unicode_is_read_under_one_that_is(tiny_directory: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text(TEXT)
    infinimem("ingest-many", tmp_path, "-o", tmp_path / "out", "-m", tiny_directory)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["caf?.txt.safetensors"]
