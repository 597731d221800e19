"""The `recent` rule: the last keys and values as they are, read like slots.

A baseline. With the bytes of another rule's memory it is what those bytes hold without compression; with more tokens
than the text has, it is the exact past, which no compression of it should beat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidSetting
from .packing import Places
from .rules import State
from .slots import SlotsRule

if TYPE_CHECKING:
    import torch


class RecentRule(SlotsRule):
    """The last `tokens` tokens, each a slot of its own (count 1).

    tokens: capacity per KV head. distance, packing: as for `slots`. `merge` keeps the last
    tokens of both memories in their order: exactly what reading one after the other would keep.
    """

    name = "recent"

    def __init__(self, tokens: int = 256, distance: int = 512, packing: str = "int8") -> None:
        self.tokens = int(tokens)
        if self.tokens < 2:
            raise InvalidSetting(f"tokens is {tokens}, but the memory keeps at least 2")
        super().__init__(slots=self.tokens, distance=distance, packing=packing)

    def settings(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "distance": self.distance, "packing": self.packing}

    def _reduce(self, places: Places, search: torch.dtype) -> State:
        return {name: tensor[:, :, -self.tokens :] for name, tensor in places.state().items()}
