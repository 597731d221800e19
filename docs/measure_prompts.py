"""Compare the words in which a model without an adapter is asked.

python docs/measure_prompts.py MODEL FILE          the right paragraph in the prompt, one row for each wording
python docs/measure_prompts.py MODEL FILE --apart  found passages: all in one prompt, or a candidate prompt for each

FILE: questions as `infinimem eval qa` takes them. The words are chosen on one file and reported on another.
"""

from __future__ import annotations

import argparse
import json
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from infinimem.answering import plan
from infinimem.answering.decoding import SHORT
from infinimem.answering.prompts import NOT_SAID, QUOTED, TRAINED, UNTRAINED, Instructions
from infinimem.datasets.questions import read_questions
from infinimem.evaluate.qa import qa
from infinimem.model.infini_model import InfiniModel

ROLE = "You answer questions about a document."
BRIEF = "Reply with the answer alone: a few words taken from the text, no full sentence."
WORDINGS = {
    "as shipped adapters are asked": TRAINED.passages[SHORT],
    "the same without the sentence on refusing": TRAINED.passages[SHORT].replace(
        f'Where they hold no answer, say "{NOT_SAID}" ', ""
    ),
    "as other models are asked": UNTRAINED.passages[SHORT],
    "the same with a sentence on refusing": f'{ROLE} {BRIEF} If the text has no answer, say "{NOT_SAID}" {QUOTED}',
    "copy": f"{ROLE} Copy the shortest words of the excerpts that answer the question, and nothing else. {QUOTED}",
    "five words": f"{ROLE} Reply with at most five words copied from the excerpts, no full sentence. {QUOTED}",
    "no system message": "",
}


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--first", type=int, help="this many wordings alone")
    parser.add_argument("--apart", action="store_true")
    given = parser.parse_args()
    model = InfiniModel.from_pretrained(given.model, adapter="none")
    documents = read_questions(given.file)
    if given.apart:
        asked = dict.fromkeys(("one prompt", "a prompt for each passage"), UNTRAINED)
    else:
        asked = {
            name: replace(UNTRAINED, passages={SHORT: words}) for name, words in list(WORDINGS.items())[: given.first]
        }
    for name, instructions in asked.items():
        row = scores(model, documents, given.limit, instructions, apart=name == "a prompt for each passage")
        print(json.dumps({"model": given.model, "asked": name, **row}), flush=True)


def scores(
    model: InfiniModel, documents: Any, limit: int, instructions: Instructions, *, apart: bool
) -> dict[str, Any]:
    """Mean scores of the answers when the model is asked with these instructions.

    apart: whether each passage is asked by itself, as a model with an answer adapter is.
    """
    mode = "recall" if instructions is UNTRAINED else "gold"
    twin = copy(model)
    asked = patch.object(InfiniModel, "answering_model", property(lambda self: twin if apart else self))
    with patch.object(plan, "instructions_for", lambda _: instructions), asked:
        result = qa(model, documents, modes=[mode], limit=limit)
    found, answers = result["modes"][mode], result["answers"][mode]
    words = sum(len(row["answer"].split()) for row in answers) / len(answers)
    return {
        "questions": result["questions"],
        **{key: round(found[key], 3) for key in ("f1", "em", "not_found")},
        "interval": [round(bound, 3) for bound in found["interval"]],
        "words": round(words, 1),
    }


if __name__ == "__main__":
    main()
