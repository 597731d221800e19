"""Infini-attention on stock transformers models: the attention function, the cache and the memory rules."""

from __future__ import annotations

from .attach import Attachment, attention_modules
from .attend import MemoryGate
from .cache import InfiniCache, InfiniLayer
from .end_segment import end_segment
from .rules import RULES, make_rule
from .rules.base import GatedRule, MemoryRule, SoftmaxRule
from .rules.linear import DeltaRule, LinearRule
from .rules.recent import RecentRule
from .rules.slots import SlotsRule
from .rules.state import State

__all__ = [
    "RULES",
    "Attachment",
    "DeltaRule",
    "GatedRule",
    "InfiniCache",
    "InfiniLayer",
    "LinearRule",
    "MemoryGate",
    "MemoryRule",
    "RecentRule",
    "SlotsRule",
    "SoftmaxRule",
    "State",
    "attention_modules",
    "end_segment",
    "make_rule",
]
