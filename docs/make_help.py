"""Write docs/cli.md: the --help text of every command, so that the page cannot drift from the program.

python docs/make_help.py          write the page
python docs/make_help.py --check  exit 1 if the page is not what the program says
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.testing import CliRunner

from infinimem.cli.main import main

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# The command line

Made by `make help-pages` from the program itself.

Exit status: 0 when all went well; 1 for what went wrong with your data, in one line that says what to do; 2 for
wrong usage. `--json` prints exactly one JSON object on standard output; progress goes to standard error, and only
if that is a terminal.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path in walk(main, ["infinimem"]):
        shown = CliRunner().invoke(main, [*path[1:], "--help"], prog_name="infinimem", terminal_width=100)
        parts.append(f"{'##' if len(path) == 1 else '###'} {' '.join(path)}\n\n```text\n{shown.output.rstrip()}\n```\n")
    return "\n".join(parts)


def walk(command: click.Command, path: list[str]) -> list[list[str]]:
    """The names of the command and of all commands below it, in the order of `--help`."""
    below = command.commands if isinstance(command, click.Group) else {}
    return [path] + [found for name, child in below.items() for found in walk(child, [*path, name])]


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE} is out of date; run: make help-pages")
    PAGE.write_text(page(), encoding="utf-8")
