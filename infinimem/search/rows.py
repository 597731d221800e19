"""Tables in a ranking: a passage with rows is worth what its best row is worth.

A question about a cell names a row and a column. Their words may also be spread over several rows of another table.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..text.passages import Passage
from ..text.sentences import CELLS
from ..text.words import stems

# The number of best passages whose rows are looked at.
MOST = 64
# A passage keeps this power of the share of its words that its best row has.
POWER = 2.0


def by_best_rows(
    passages: Sequence[Passage], query: str, ranked: Sequence[tuple[int, float]]
) -> list[tuple[int, float]]:
    """The ranking, with lower scores for passages in which the words of the query stand in different rows.

    ranked: pairs (index of the passage, score), best first.
    """
    if not any(CELLS in passages[index].text for index, _ in ranked[:MOST]):
        return list(ranked)
    wanted = frozenset(stems(query))
    scored = [(index, score * _share(passages[index].text, wanted)) for index, score in ranked[:MOST]]
    # A table far down may have been better than what was looked at; it stays below.
    return sorted(scored, key=lambda one: -one[1]) + list(ranked[MOST:])


def _share(text: str, wanted: frozenset[str]) -> float:
    """The share of the passage's words of the query that its best row has, with the names of the columns; or prose."""
    if CELLS not in text:
        return 1.0
    found = wanted.intersection(stems(text))
    best = 0
    prose: list[str] = []
    for part in text.split("\n\n"):
        head, *rows = part.split("\n")
        if CELLS not in head or not rows:
            prose.append(part)
            continue
        names = found.intersection(stems(head))
        best = max(best, *(len(names | found.intersection(stems(row))) for row in rows))
    best = max(best, len(found.intersection(stems("\n".join(prose)))))
    return (best / len(found)) ** POWER if found else 1.0
