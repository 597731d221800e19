"""Follow-up questions: what is searched for a question whose subject stands in an earlier message."""

from __future__ import annotations

from ..text.words import WORD
from .prompts import Conversation

# A question with fewer words of its own than this says too little to be searched alone.
_FEWEST = 3
# How many earlier questions are looked at, where each is a follow-up itself.
_FURTHEST = 3
_POINTING = frozenset(
    WORD.findall("he her hers him his it its itself she that their theirs them there these they this those")
)
_FUNCTION = _POINTING | frozenset(
    WORD.findall(
        "a about again also an and any are as at be been but by can could did do does for from had has have how i if "
        "in into is just like many may me might more most much must my no not of on one ones only or other our please "
        "same say says should so some such tell than the then to too very was we were what when where which who whom "
        "whose why will with would yes you your"
    )
)


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
    return not _POINTING.isdisjoint(words) or len(set(words) - _FUNCTION) < _FEWEST
