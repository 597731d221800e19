"""Follow-up questions: what is searched for a question whose subject stands in an earlier message."""

from __future__ import annotations

from ..text.words import FUNCTION_WORDS, POINTING_WORDS, WORD
from .prompts import Conversation

# A question with fewer words of its own than this says too little to be searched alone.
_FEWEST = 3
# How many earlier questions are looked at, where each is a follow-up itself.
_FURTHEST = 3


def searched(asked: Conversation) -> str:
    """The text to search for a question: the question, after the questions before it where it follows up on them."""
    questions = [asked.question]
    earlier = [message["content"] for message in asked.earlier if message["role"] == "user"]
    while earlier and len(questions) <= _FURTHEST and _follows_up(questions[0]):
        questions.insert(0, earlier.pop())
    return "\n".join(questions)


def _follows_up(question: str) -> bool:
    """Whether a question points at something, or has hardly any words of its own."""
    words = [word.lower() for word in WORD.findall(question)]
    # In another alphabet than that of these words, no word is known to be a function word.
    return not POINTING_WORDS.isdisjoint(words) or len(set(words) - FUNCTION_WORDS) < _FEWEST
