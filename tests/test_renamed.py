"""Names of older releases: accepted for one release, with a warning that says the new name."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import TEXT, MakeModel

from infinimem import DocumentMemory, errors
from infinimem.adapt.config import TermHeadRun
from infinimem.adapt.config_file import parse_config
from infinimem.cli.main import main
from infinimem.model import adapter as adapter_module
from infinimem.model import directories, term_head
from infinimem.model.adapter import read_adapter
from infinimem.model.catalogue import default_adapter
from infinimem.renamed import MOVED

SHIPPED = adapter_module.SHIPPED / str(default_adapter(None))


@pytest.fixture
def memory(make_model: MakeModel) -> DocumentMemory:
    return DocumentMemory.from_text(TEXT * 6, model=make_model(segment_length=64))


@pytest.mark.parametrize(("old", "new"), [("recall", "passages"), ("memory", "memory")])
def test_mode_of_ask_is_answer_from(memory: DocumentMemory, old: str, new: str) -> None:
    expected = memory.ask("Who counted?", answer_from=new, max_new_tokens=4)
    with pytest.warns(DeprecationWarning, match=f"mode='{old}' is now called answer_from='{new}'"):
        said = memory.ask("Who counted?", mode=old, max_new_tokens=4)
    assert said == expected and said.mode == new
    with pytest.warns(DeprecationWarning, match="answer_from"):
        assert memory.ask_many(["Who counted?"], mode=old, max_new_tokens=4) == [expected]
    with pytest.warns(DeprecationWarning, match="answer_from"):
        assert "".join(memory.stream("Who counted?", mode=old, max_new_tokens=4)).strip() == expected.text
    with pytest.warns(DeprecationWarning, match="answer_from"):
        assert memory.reply([{"role": "user", "content": "Who counted?"}], mode=old).mode == new


def test_addresses_are_term_weights(memory: DocumentMemory) -> None:
    with pytest.warns(DeprecationWarning, match="term_weights"):
        assert memory.addresses() == memory.term_weights()


def test_mode_of_retrieve_is_rank_by(memory: DocumentMemory) -> None:
    with pytest.warns(DeprecationWarning, match="mode='lexical' is now called rank_by='lexical'") as told:
        assert memory.retrieve("ships", mode="lexical") == memory.retrieve("ships", rank_by="lexical")
    assert told[0].filename == __file__
    with (
        pytest.warns(DeprecationWarning, match="mode='memory' is now called rank_by='learned'"),
        pytest.raises(errors.NoTermWeights),
    ):
        memory.retrieve("ships", mode="memory")


def test_the_options_of_the_command_line_are_accepted(
    tiny_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "m.safetensors")
    DocumentMemory.from_text(TEXT * 6, model=tiny_directory).save(file)
    asked = ["ask", file, "Who counted the ships?", "--max-new-tokens", "2"]
    old, new = (CliRunner().invoke(main, [*asked, *more]) for more in (["--mode", "recall"], []))
    assert old.exit_code == new.exit_code == 0 and old.stdout == new.stdout
    assert "--mode recall is now called --answer-from passages" in old.stderr and not new.stderr
    found = CliRunner().invoke(main, ["retrieve", file, "ships", "--mode", "lexical"])
    assert found.exit_code == 0 and "--rank-by lexical" in found.stderr
    refused = CliRunner().invoke(main, ["retrieve", file, "ships", "--mode", "magic"])
    assert refused.exit_code == 2


def test_the_command_line_says_which_names_are_old(tmp_path: Path) -> None:
    recipe = tmp_path / "old.toml"
    recipe.write_text("[addresses]\n", encoding="utf-8")
    result = CliRunner().invoke(main, ["adapt", str(recipe)])
    assert result.exit_code == 1
    assert "Warning: the table [addresses] is now called [term_weights]; the next release drops" in result.stderr


def test_the_table_of_recipes_is_accepted(tmp_path: Path) -> None:
    table: dict[str, Any] = {"output": "run", "addresses": {"adapter": "none", "data": ["a.jsonl"]}}
    with pytest.warns(DeprecationWarning, match=r"\[term_weights\]"):
        parsed = parse_config(table, tmp_path)
    assert isinstance(parsed, TermHeadRun) and parsed.term_weights.data == ("a.jsonl",)


def test_the_directory_of_an_answer_adapter_to_go_on_from_is_found_under_its_new_name(tmp_path: Path) -> None:
    (tmp_path / "run" / "adapter" / "answer").mkdir(parents=True)
    table = {
        "output": "next",
        "lora": {"over": str(SHIPPED), "start": "run/adapter/reader"},
        "stages": [{"segments": 2, "steps": 1}],
        "objectives": [{"kind": "qa", "data": ["a.jsonl"], "reading": 1.0}],
    }
    config: Any = parse_config(table, tmp_path)
    with pytest.warns(DeprecationWarning, match="answer"):
        assert config.start() == tmp_path / "run" / "adapter" / "answer"


def test_adapters_of_older_releases_are_read(tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(SHIPPED, old)
    (old / "answer").rename(old / "reader")
    (old / term_head.FILE).rename(old / term_head.OLD_FILE)
    found, expected = read_adapter(old), read_adapter(SHIPPED)
    assert found.sha256 == expected.sha256
    assert found.answer is not None and expected.answer is not None and found.answer.sha256 == expected.answer.sha256
    assert found.term_head is not None and expected.term_head is not None
    assert found.term_head.sha256 == expected.term_head.sha256


def test_directories_that_were_named_before_are_still_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(directories.VARIABLE)
    monkeypatch.setenv("INFINIMEM_CACHE", str(tmp_path))
    monkeypatch.setattr(directories, "_named", set())
    (tmp_path / directories.OLD_FILE).write_text(f'\n"{tmp_path.resolve()}"\n', encoding="utf-8")
    assert directories.is_trusted(tmp_path) and not directories.is_trusted(tmp_path.parent)
    directories.trust(tmp_path.parent)
    assert (tmp_path / directories.FILE).is_file()


def test_the_variable_of_trusted_directories_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(directories.VARIABLE)
    monkeypatch.setenv(directories.OLD_VARIABLE, str(tmp_path / "named.jsonl"))
    monkeypatch.setattr(directories, "_named", set())
    with pytest.warns(DeprecationWarning, match=directories.VARIABLE):
        directories.trust(tmp_path)
    assert (tmp_path / "named.jsonl").is_file()


def test_the_old_error_is_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="NoTermWeights"):
        assert errors.NoAddresses is errors.NoTermWeights
    with pytest.raises(AttributeError):
        errors.Nothing  # noqa: B018


@pytest.mark.parametrize("old", sorted(MOVED))
def test_what_could_be_imported_before_still_can_be(old: str) -> None:
    module, _, name = old.rpartition(".")
    with pytest.warns(DeprecationWarning, match=re.escape(f"{old} is now called {MOVED[old]};")):
        found = getattr(importlib.import_module(module), name)
    home, _, name = MOVED[old].rpartition(".")
    assert found is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("statement", ["import infinimem.unknown", "from infinimem.chat import unknown"])
def test_names_that_no_release_had_are_not_found(statement: str) -> None:
    with pytest.raises(ImportError, match="unknown"):
        exec(statement)
