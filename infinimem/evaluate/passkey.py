"""Passkey retrieval: facts are hidden in filler text, and asked for after the whole text went through the memory.

- one needle of digits: the task of the paper (arXiv 2404.07143, section 4.2 and appendix B), with the paper's filler
  and wording
- several needles, or needles with words for values: named facts are spread evenly over one text, and each is asked for
  from the same memory
- controls: the same questions are asked of an emptied memory, or of the memory of a text with other values
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice, takewhile
from typing import TYPE_CHECKING, Any

from ..datasets.needles import DIGITS, Needle, draw_digits, draw_needles
from ..errors import EmptySource, InvalidSetting
from .continuations import continuations, state_bytes
from .intervals import bootstrap, mean, wilson

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel

INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
INTRODUCTION_TO_MANY = (
    "There are important facts hidden inside a lot of irrelevant text. Find them and memorize them. "
    "I will quiz you about the important facts there.\n"
)
FILLER = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
MEMORIES = ("own", "emptied", "other")
MIN_TOKENS = 128
ANSWER_TOKENS = DIGITS + 3
SCORES = ("accuracy", "interval", "exact", "exact_interval", "unled")


def passkey(
    model: InfiniModel,
    tokens: int,
    *,
    depths: Sequence[float] = (0.0, 0.5, 1.0),
    samples: int = 1,
    filler: str | None = None,
    needles: int = 1,
    kind: str = "digits",
    memory: str = "own",
    seed: int = 0,
    on_sample: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Hide facts in a text of `tokens` tokens, read the text, and ask for the facts. Answers are decoded greedily.

    The whole text goes through the memory, and the local window holds the question alone, as when a saved document is
    asked. At depth 1 the needle is among the carried tokens, if the model carries any.

    depths: where a single needle lies, from 0 (start) to 1 (end); every depth has a separate text. Of N > 1 needles,
        number i lies at depth (i + 0.5) / N, and `depths` is not used.
    samples: number of texts; with a single needle, per depth.
    filler: text that hides the needles, repeated if it is too short; each sample begins at another place in it. None
        for the paper's filler.
    needles: facts in one text.
    kind: "digits", or "names" for needles with words for values.
    memory: "own"; "emptied" before the questions; or "other", the memory of a text with other values.
    on_sample: called after each text with the numbers of needles asked for and in all.

    Some tokenizers make the space before a number a separate token. The question of digits then ends with that token:
    the score counts digits, as the paper's token-level accuracy does, and not how often a model prefers an answer such
    as " a secret one". `unled` is the share of values that the model gives as a whole without that token.

    Returns by depth: `accuracy`, the share of digits right at their place (kind "names": of answers that begin with
    the value), with `interval`; `exact`, the share of values right as a whole, with `exact_interval`; and `unled`.
    `overall` has the same over all needles. Intervals are 95 %: Wilson's for shares of whole values, bootstrap over
    needles for digits. Raises InvalidSetting, and EmptySource where the filler has no text.
    """
    if tokens < MIN_TOKENS:
        raise InvalidSetting(f"a passkey text needs at least {MIN_TOKENS} tokens; {tokens} are too few")
    if samples < 1 or any(not 0 <= depth <= 1 for depth in depths) or not depths:
        raise InvalidSetting("give at least one sample and at least one depth; depths lie between 0 and 1")
    if memory not in MEMORIES:
        raise InvalidSetting(f"there is no memory {memory!r} to ask; choose one of {', '.join(MEMORIES)}")
    around = model.encoder.encode(FILLER if filler is None else filler)
    if not around:
        raise EmptySource("the filler has no text; give another text")
    lead = _common_start([model.encoder.encode(f" {digit}") for digit in range(10)]) if kind == "digits" else []
    unnamed = needles == 1 and kind == "digits"
    spread = [(i + 0.5) / needles for i in range(needles)]
    texts = [spread] * samples if needles != 1 else [[depth] for depth in depths for _ in range(samples)]
    keys, starts, others = (random.Random(seed), random.Random(f"start {seed}"), random.Random(f"other {seed}"))
    rows: dict[str, list[tuple[Needle, str, str]]] = {}
    memory_bytes = segments = asked = 0
    for places in texts:
        hidden = [Needle(kind, draw_digits(keys))] if unnamed else draw_needles(needles, kind, keys)
        # The paper's filler repeats one phrase, so beginning elsewhere would not make another text.
        start = 0 if filler is None else starts.randrange(len(around))
        told = [needle.changed(others) for needle in hidden] if memory == "other" else hidden
        text = _document(model, around, told, tokens, places, start)
        cache = model.new_cache()
        if memory == "emptied":
            segments = sum(1 for _ in model.segmenter.split(text))
        else:
            segments = model.read_tokens(text, cache)
        questions = [model.encoder.encode(needle.question) for needle in hidden]
        unled = continuations(model, questions, cache, ANSWER_TOKENS)
        led = continuations(model, [[*q, *lead] for q in questions], cache, ANSWER_TOKENS) if lead else unled
        memory_bytes = state_bytes(cache)
        for depth, row in zip(places, zip(hidden, led, unled, strict=True), strict=True):
            rows.setdefault(str(round(float(depth), 6)), []).append(row)
        asked += len(hidden)
        if on_sample is not None:
            on_sample(asked, len(texts) * needles)
    by_depth = {depth: _scores(row, kind, seed) for depth, row in rows.items()}
    overall = _scores([item for row in rows.values() for item in row], kind, seed)
    return {
        "tokens": tokens,
        "segments": segments,
        **model.describe(),
        "memory_bytes": memory_bytes,
        "memory": memory,
        "samples": samples,
        "needles": needles,
        "kind": kind,
        "filler": "repeated" if filler is None else "text",
        **{name: {depth: scores[name] for depth, scores in by_depth.items()} for name in SCORES},
        "overall": {**{name: overall[name] for name in SCORES}, "needles": asked},
        "answers": {depth: [_answer_row(*answer) for answer in row] for depth, row in rows.items()},
    }


def _common_start(rows: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))]


def _scores(rows: Sequence[tuple[Needle, str, str]], kind: str, seed: int) -> dict[str, Any]:
    scores = [needle.score(led) for needle, led, _ in rows]
    right = sum(score == 1 for score in scores)
    whole = wilson(right, len(scores))
    return {
        "accuracy": mean(scores),
        "interval": whole if kind == "names" else bootstrap(scores, seed),
        "exact": right / len(scores),
        "exact_interval": whole,
        "unled": mean([float(needle.score(unled) == 1) for needle, _, unled in rows]),
    }


def _answer_row(needle: Needle, led: str, unled: str) -> dict[str, str]:
    named = {} if needle.name is None else {"question": needle.question.strip()}
    return {**named, "key": needle.value, "answer": led.strip(), "unled": unled.strip()}


def _document(
    model: InfiniModel,
    around: Sequence[int],
    needles: Sequence[Needle],
    tokens: int,
    depths: Sequence[float],
    start: int = 0,
) -> Iterator[int]:
    """The tokens of the text, one after the other, so that a long text takes no more memory than a short one.

    depths: where the needles stand in the filler, ascending.
    start: token at which the filler begins.
    """
    opening = model.encoder.encode(INTRODUCTION if len(needles) == 1 else INTRODUCTION_TO_MANY)
    facts = [model.encoder.encode(needle.fact) for needle in needles]
    room = tokens - len(opening) - sum(map(len, facts))
    if room < 0:
        raise InvalidSetting(f"{len(needles)} needles need {tokens - room} tokens; raise tokens, which is {tokens}")

    def text() -> Iterator[int]:
        filler, used = islice(cycle(around), start, None), 0
        yield from opening
        for fact, depth in zip(facts, depths, strict=True):
            before = int(room * depth)
            yield from islice(filler, before - used)
            yield from fact
            used = before
        yield from islice(filler, room - used)

    return text()
