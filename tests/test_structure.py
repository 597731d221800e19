"""What the parts of the package may lean on; docs/architecture.md says why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import infinimem

ROOT = Path(infinimem.__file__).parent
LANGCHAIN = Path(__file__).parents[1] / "integrations" / "langchain" / "langchain_infinimem"
# The parts, the lowest first; each may lean on those before it. Parts of one line do not lean on each other.
LEVELS = (
    {"errors"},
    {"text", "langchain", "renamed"},
    {"attention", "storage", "readers"},
    {"model"},
    {"search", "ingest"},
    {"answering"},
    {"document_memory"},
    {"datasets"},
    {"adapt", "evaluate"},
    {"bench"},
    {"cli"},
)
# Beyond the order of the levels: a part, and parts that it must not lean on either.
NEVER = {"attention": {"text", "langchain"}, "bench": {"adapt"}}
# Modules that must be importable without these packages.
WITHOUT = {"storage": {"torch", "transformers"}, "readers": {"torch", "transformers"}, "text": {"torch"}}


def imports_of(tree: ast.Module, package: list[str]) -> Iterator[str]:
    """Full names of all modules and names that a module imports, wherever in it: lazily, and for types alone, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def modules(root: Path, name: str) -> Iterator[tuple[Path, str, list[str]]]:
    """Files of a package, their module names, and the packages that relative imports start from."""
    for path in sorted(root.rglob("*.py")):
        parts = [name, *path.relative_to(root).with_suffix("").parts]
        inside = parts[:-1]
        yield path, ".".join(inside if parts[-1] == "__init__" else parts), inside


def part_of(module: str) -> str:
    """The part of the package that a full name belongs to; empty for the package itself."""
    _, *rest = module.split(".")
    return rest[0] if rest else ""


def broken_rules(root: Path) -> list[str]:
    """A line for every import that leans the wrong way."""
    level = {part: number for number, parts in enumerate(LEVELS) for part in parts}
    broken = []
    for path, module, package in modules(root, "infinimem"):
        own = part_of(module)
        if own not in level:
            continue  # __init__ and __main__ open the doors of all parts
        for name in imports_of(ast.parse(path.read_text(encoding="utf-8")), package):
            top = name.split(".")[0]
            if top != "infinimem":
                if top in WITHOUT.get(own, ()) and not only_for_types(path, name):
                    broken.append(f"{path.relative_to(root)} imports {name}, which {own} must do without")
                continue
            other = part_of(name)
            if other == own or other not in level:
                continue
            if level[other] >= level[own] or other in NEVER.get(own, ()):
                broken.append(f"{path.relative_to(root)} imports {name}: {own} must not lean on {other}")
    return broken


def only_for_types(path: Path, name: str) -> bool:
    """Whether a module imports a name below `if TYPE_CHECKING` alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    inside = [found for node in guarded for found in imports_of(ast.Module(node.body, []), [])]
    return list(imports_of(tree, [])).count(name) == inside.count(name)


def graph_of(root: Path) -> dict[str, set[str]]:
    """Which module of the package imports which, lazy imports and those for types included."""
    found = list(modules(root, "infinimem"))
    names = {module for _, module, _ in found}
    graph: dict[str, set[str]] = {}
    for path, module, package in found:
        wanted = graph.setdefault(module, set())
        for name in imports_of(ast.parse(path.read_text(encoding="utf-8")), package):
            # `from package import name` may name a module or something in the package's own file.
            target = name if name in names else name.rpartition(".")[0]
            if target in names and target != module:
                wanted.add(target)
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if circle := visit(target, [*way, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := visit(module, []))), [])


def test_every_part_leans_on_lower_parts_alone() -> None:
    assert broken_rules(ROOT) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle_in(graph_of(ROOT)) == []


def test_every_part_has_a_level() -> None:
    parts = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert parts - {"__init__", "__main__"} == set().union(*LEVELS)


def test_the_langchain_package_uses_exported_names_alone() -> None:
    for path, _, package in modules(LANGCHAIN, "langchain_infinimem"):
        for name in imports_of(ast.parse(path.read_text(encoding="utf-8")), package):
            if name.split(".")[0] == "infinimem":
                assert name.removeprefix("infinimem.") in infinimem.__all__, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("text/words.py", "from ..model.identity import digest", "text must not lean on model"),
        ("search/query.py", "def f():\n    from ..document_memory import DocumentMemory", "search must not lean on"),
        ("adapt/books.py", "from infinimem.evaluate.qa import f1", "adapt must not lean on evaluate"),
        ("storage/files.py", "import torch", "which storage must do without"),
    ],
)
def test_a_planted_import_is_named_with_its_file(file: str, line: str, told: str, tmp_path: Path) -> None:
    planted = tmp_path / file
    planted.parent.mkdir()
    planted.write_text(f"{line}\n", encoding="utf-8")
    (broken,) = broken_rules(tmp_path)
    assert broken.startswith(file) and told in broken


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.py").write_text("from .b import x\n", encoding="utf-8")
    (tmp_path / "text" / "b.py").write_text("def f():\n    from . import a\n", encoding="utf-8")
    assert circle_in(graph_of(tmp_path)) == ["infinimem.text.a", "infinimem.text.b", "infinimem.text.a"]
