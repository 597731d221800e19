"""Passkey retrieval: five digits hidden in filler, asked for after everything went through the memory.

The paper's task (arXiv 2404.07143, section 4.2 and appendix B), with its filler and its wording.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from ..errors import EmptySource, InvalidSetting

if TYPE_CHECKING:
    from ..attention import InfiniCache
    from ..model import InfiniModel

INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
FILLER = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"
DIGITS = 5


def passkey(
    model: InfiniModel,
    tokens: int,
    *,
    depths: Sequence[float] = (0.0, 0.5, 1.0),
    samples: int = 1,
    filler: str | None = None,
    seed: int = 0,
    on_sample: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Hide keys at `depths` (0 start, 1 end) of a text of `tokens` tokens that ends with the question.

    As in the paper, text and question are one: all segments but the last go through the memory, the last one, with
    the question, is the local window; so depth 1 asks the window, smaller depths the memory. The answer is decoded
    greedily. accuracy: share of digits right at
    their place; exact: share of keys right in all digits; both by depth. filler: text to hide the keys in, repeated
    if too short; None for the paper's. samples: keys per depth.
    """
    minimum = 128
    if tokens < minimum:
        raise InvalidSetting(f"a passkey document has at least {minimum} tokens, not {tokens}")
    if samples < 1 or any(not 0 <= depth <= 1 for depth in depths) or not depths:
        raise InvalidSetting("depths lie between 0 and 1, and there is at least one sample")
    around = model.encoder.encode(FILLER if filler is None else filler)
    if not around:
        raise EmptySource("the filler has no text in it")
    keys = random.Random(seed)
    accuracy: dict[str, float] = {}
    exact: dict[str, float] = {}
    answers: dict[str, list[dict[str, str]]] = {}
    memory_bytes = segments = 0
    for at, depth in enumerate(depths):
        right = whole = 0
        given = answers.setdefault(str(float(depth)), [])
        for sample in range(samples):
            key = "".join(keys.choice("0123456789") for _ in range(DIGITS))
            cache = model.new_cache()
            window: list[int] = []
            segments = 1
            for token in _document(model, around, key, tokens, depth):
                window.append(token)
                if (end := model.segmenter.end(window)) is not None:
                    model.read_tokens(window[:end], cache)
                    del window[:end]
                    segments += 1
            said = _answer(model, cache, window)
            digits = "".join(character for character in said if character.isdigit())[:DIGITS]
            right += sum(a == b for a, b in zip(digits, key, strict=False))
            whole += digits == key
            given.append({"key": key, "answer": said.strip()})
            memory_bytes = sum(t.numel() * t.element_size() for s in cache.states().values() for t in s.values())
            if on_sample is not None:
                on_sample(at * samples + sample + 1, len(depths) * samples)
        accuracy[str(float(depth))] = right / (samples * DIGITS)
        exact[str(float(depth))] = whole / samples
    return {
        "tokens": tokens,
        "segments": segments,
        "rule": model.rule.name,
        "rule_settings": model.rule.settings(),
        "memory_heads": sum(map(len, model.memory_heads.values())),
        "memory_bytes": memory_bytes,
        "samples": samples,
        "filler": "repeated" if filler is None else "text",
        "accuracy": accuracy,
        "exact": exact,
        "answers": answers,
    }


def _document(model: InfiniModel, around: list[int], key: str, tokens: int, depth: float) -> Iterator[int]:
    """The text's tokens one after the other, so that its length costs no memory."""
    needle = model.encoder.encode(NEEDLE.format(key=key))
    opening, question = model.encoder.encode(INTRODUCTION), model.encoder.encode(QUESTION)
    room = tokens - len(opening) - len(needle) - len(question)
    before = int(room * depth)
    filler = cycle(around)
    yield from opening
    yield from islice(filler, before)
    yield from needle
    yield from islice(filler, room - before)
    yield from question


def _answer(model: InfiniModel, cache: InfiniCache, window: list[int]) -> str:
    steps = model.generate([[*model.prefix, *window]], cache, max_new_tokens=DIGITS + 3, stop_at_eos=False)
    return str(model.tokenizer.decode([token for (token,) in steps if token is not None]))
