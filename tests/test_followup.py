"""Follow-up questions are searched with what they follow up on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infinimem import DocumentMemory
from infinimem.answering.followup import searched
from infinimem.answering.plan import asked_after, fit_prompt
from infinimem.errors import InvalidSetting

if TYPE_CHECKING:
    from conftest import MakeModel

EXAMPLES = Path(__file__).parents[1] / "examples"
INK = "What is the violet ink made of?"


@pytest.mark.parametrize(
    ("questions", "expected"),
    [
        ([INK], INK),
        ([INK, "In what proportion?"], f"{INK}\nIn what proportion?"),
        ([INK, "Who makes it on the island every spring?"], f"{INK}\nWho makes it on the island every spring?"),
        ([INK, "In what proportion?", "Why?"], f"{INK}\nIn what proportion?\nWhy?"),
        ([INK, "How deep is the stilling well at low water?"], "How deep is the stilling well at low water?"),
        (["Why?", "And why not?"], "Why?\nAnd why not?"),
    ],
)
def test_a_question_that_says_too_little_is_searched_with_those_before(questions: list[str], expected: str) -> None:
    history = [(question, "An answer.") for question in questions[:-1]]
    assert searched(asked_after(history, questions[-1])) == expected


def test_a_follow_up_finds_the_page_of_its_subject() -> None:
    memory = DocumentMemory.ingest(EXAMPLES / "handbook.pdf")
    first = memory.ask(INK)
    answer = memory.ask("In what proportion?", history=[(INK, first.text)])
    assert answer.passages[0].page == 10 and "five to three to one" in answer.text


def test_a_prompt_into_which_no_passage_fits_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    memory = DocumentMemory.from_text("The captain is Odile. " * 30, model=model)
    with pytest.raises(InvalidSetting, match="no passage fits into the model's context"):
        fit_prompt(
            model,
            lambda shown: [{"role": "user", "content": "word " * (2000 if shown else 1)}],
            memory.passages,
            max_new_tokens=model.context_length - 400,
        )
