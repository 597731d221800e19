"""The `recent` rule: the last keys and values as they are, read like slots.

It is a baseline. With as many bytes as another rule's memory, it shows what these bytes hold without compression. With
more tokens than the text has, it holds the exact past, which no compression of the past should beat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import InvalidSetting
from .packing import Places
from .slots import SlotsRule
from .state import State

if TYPE_CHECKING:
    import torch


class RecentRule(SlotsRule):
    """The last `tokens` tokens, each a slot of its own (count 1).

    tokens: capacity per KV head.
    distance, packing: as for `slots`.

    `merge` keeps the last tokens of both memories in their order: exactly the tokens that stay where one document is
    read after the other.
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
