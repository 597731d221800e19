"""95 % intervals for shares and means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NORMAL_95 = 1.959963984540054  # the standard normal distribution's 97.5 % point
DRAWS = 2000


def wilson(right: int, total: int) -> list[float]:
    """Wilson's 95 % score interval [low, high] of the share right / total; total is at least 1."""
    share, square = right / total, NORMAL_95**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = NORMAL_95 / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def bootstrap(values: Sequence[float], seed: int = 0) -> list[float]:
    """The 95 % percentile interval [low, high] of the mean, from resampled values.

    values: one per item, taken as independent. To compare two systems, give the difference for each item. If all values
        are equal, the interval has no width, even for very few items: look at `wilson` of the items that are right as
        a whole beside it.
    """
    items = np.asarray(values, dtype=np.float64)  # (N,)
    generator = np.random.default_rng(seed)
    means = [items[generator.integers(0, len(items), len(items))].mean() for _ in range(DRAWS)]
    low, high = np.quantile(means, (0.025, 0.975))
    return [float(low), float(high)]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; values must not be empty."""
    return math.fsum(values) / len(values)
