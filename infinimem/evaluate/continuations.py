"""Greedy continuations of raw prompts, and the size of a memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..answering.rows import generate

if TYPE_CHECKING:
    from ..attention.cache import InfiniCache
    from ..model.infini_model import InfiniModel

BATCH = 8  # prompts decoded together
BATCH_BYTES = 1 << 30  # for all copies of the memory, one per prompt; above that, fewer prompts at a time


def continuations(
    model: InfiniModel, prompts: Sequence[Sequence[int]], cache: InfiniCache, max_new_tokens: int
) -> list[str]:
    """What the model writes after each prompt: always `max_new_tokens` tokens, also past the end of an answer.

    prompts: token ids without the model's prefix.
    """
    rows = max(1, min(BATCH, BATCH_BYTES // max(1, state_bytes(cache))))
    texts = []
    for start in range(0, len(prompts), rows):
        batch = [[*model.prefix, *prompt] for prompt in prompts[start : start + rows]]
        steps = list(generate(model, batch, cache, max_new_tokens=max_new_tokens, stop_at_eos=False))
        said = zip(*steps, strict=True)
        texts += [str(model.tokenizer.decode([t for t in row if t is not None])) for row in said]
    return texts


def state_bytes(cache: InfiniCache) -> int:
    """Bytes of all state tensors of a memory, for one row of its batch."""
    tensors = [tensor for state in cache.states().values() for tensor in state.values()]
    return sum(tensor[0].numel() * tensor.element_size() for tensor in tensors)
