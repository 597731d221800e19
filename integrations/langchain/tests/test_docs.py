"""Every code block of the documentation runs as printed, in the order of its page."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import langchain_infinimem
import pytest
from conftest import REPOSITORY

PACKAGE = Path(__file__).parents[1]
PAGES = [PACKAGE / "README.md", *sorted((PACKAGE / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[str]:
    return [textwrap.dedent(found.group(2)) for found in BLOCK.finditer(text)]


@pytest.fixture
def desk(tmp_path: Path, handbook_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what the pages speak of."""
    (tmp_path / "examples").mkdir()
    shutil.copy(REPOSITORY / "examples" / "handbook.pdf", tmp_path / "examples")
    shutil.copy(handbook_file, tmp_path / "handbook.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(codes: list[str]) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    for code in codes:
        compiled = compile(code, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(compiled, names)
        if inspect.iscoroutine(result):
            asyncio.run(result)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = blocks(page.read_text(encoding="utf-8"))
    assert codes
    run(codes)


@pytest.mark.parametrize("name", langchain_infinimem.__all__)
def test_the_blocks_of_a_docstring_run(name: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = blocks(inspect.getdoc(getattr(langchain_infinimem, name)) or "")
    assert len(codes) >= 3
    run(codes)
