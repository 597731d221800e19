"""The memory rules, by name."""

from __future__ import annotations

from typing import Any

from ...errors import InvalidSetting
from .base import MemoryRule
from .linear import DeltaRule, LinearRule
from .recent import RecentRule
from .slots import SlotsRule

RULES: dict[str, type[MemoryRule]] = {rule.name: rule for rule in (SlotsRule, LinearRule, DeltaRule, RecentRule)}


def make_rule(name: str, **settings: Any) -> MemoryRule:
    """The memory rule of that name; settings as its constructor takes them.

    Raises InvalidSetting for a name or a setting that does not exist.
    """
    if name not in RULES:
        raise InvalidSetting(f"there is no memory rule {name!r}; choose one of {', '.join(RULES)}")
    known = RULES[name]().settings()
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise InvalidSetting(f"rule {name!r} takes the settings {', '.join(known)}, not {', '.join(unknown)}")
    try:
        return RULES[name](**settings)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidSetting(f"rule {name!r} cannot work with {settings}: {error}") from error
