"""`infinimem chat`: a conversation about a document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..errors import InfinimemError
from .ask import k_option, style_option, system_option
from .options import memory_options
from .output import prose

if TYPE_CHECKING:
    from ..document_memory import DocumentMemory


@click.command()
@memory_options
@k_option
@style_option
@system_option
def chat(memory: DocumentMemory, k: int, style: str, system: str | None) -> None:
    """Talk about a document; the last three questions are remembered. An empty line or Ctrl-D ends the chat."""
    history: list[tuple[str, str]] = []
    while True:
        try:
            question = click.prompt("you", prompt_suffix="> ", default="", show_default=False)
        except click.Abort:
            click.echo()
            return
        if not question.strip():
            return
        try:
            said = ""
            for piece in memory.stream(question, k=k, history=history, style=style, system=system):
                click.echo(prose(piece), nl=False)
                said += piece
        except InfinimemError as error:
            click.echo(f"Error: {error}", err=True)
            continue
        click.echo()
        # A small model loses the thread in a long history.
        history = [*history, (question, said.strip())][-3:]
