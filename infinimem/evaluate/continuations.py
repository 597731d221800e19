"""Greedy continuations of raw prompts, and the size of a memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..attention import InfiniCache
    from ..model import InfiniModel

BATCH = 8  # prompts decoded together
BATCH_BYTES = 1 << 30  # what the copies of the memory may take for it; fewer prompts at a time above that


def continuations(
    model: InfiniModel, prompts: Sequence[Sequence[int]], cache: InfiniCache, max_new_tokens: int
) -> list[str]:
    """What the model says after each prompt (token ids without the model's prefix), to the last token."""
    rows = max(1, min(BATCH, BATCH_BYTES // max(1, state_bytes(cache))))
    texts = []
    for start in range(0, len(prompts), rows):
        batch = [[*model.prefix, *prompt] for prompt in prompts[start : start + rows]]
        steps = list(model.generate(batch, cache, max_new_tokens=max_new_tokens, stop_at_eos=False))
        said = zip(*steps, strict=True)
        texts += [str(model.tokenizer.decode([t for t in row if t is not None])) for row in said]
    return texts


def state_bytes(cache: InfiniCache) -> int:
    """Bytes of all state tensors of a memory, for one row."""
    tensors = [tensor for state in cache.states().values() for tensor in state.values()]
    return sum(tensor[0].numel() * tensor.element_size() for tensor in tensors)
