"""Invented facts for training: who holds what, which number opens what, in several wordings.

No name and no word in this module is a name or a value in needles.py, whose needles are for measurements.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST = """Ada Amos Bela Boris Carla Cyril Delia Dunstan Edith Elmar Fenna Florian Greta Gideon Hanne Hector Ida Ivor
Judith Jonas Karin Kaspar Leonie Lorenz Maud Milo Nadia Nestor Olive Oskar Petra Quentin Rhea Rufus Sabine Silas Thea
Tobias Ursula Viktor Wilma Xenia Yvonne Zeno""".split()  # noqa: SIM905
LAST = """Ablethorpe Bellweather Cattermole Dunwoody Eskildsen Farrow Galbraith Hollis Ingleby Jessop Kettering
Lyndhurst Merriman Norwood Oakes Penhallow Quill Rosmer Sandoval Thistlewood Uxbridge Vance Whitlock Yarrow
Zimmer""".split()  # noqa: SIM905
PLACES = """Aldermoor Bracken Hill, Castelnau, Dunmere, Eastvale, Fossegrim, Glenhollow, Harrowgate, Isleworth,
Keldholm, Lowmarsh, Marrowstone, Northwick, Oxbow, Pellworm, Ravensby, Saltmarsh, Thornbury, Ullswick,
Wexcombe""".replace("\n", " ").split(", ")
WORDS = """amber anchor barley beacon cedar cinder copper cobalt dagger ember ferret feather flint garnet granite harbor
hazel indigo ivory jasper juniper kestrel lantern linen marble meadow nettle nickel orchard otter pebble pepper quartz
raven ribbon saffron sable thistle timber velvet walnut willow zephyr""".split()  # noqa: SIM905

# Each fact is about one person, and may have a second person as its value.
MOST_FACTS = len(FIRST) * len(LAST) // 2

# Kind of the value, statements, questions, and the cue that the value follows; {who} and {value} are filled in.
FAMILIES: list[tuple[str, tuple[str, ...], tuple[str, ...], str]] = [
    (
        "digits",
        (
            "The pass key is {value}. Remember it.",
            "Remember this: the pass key is {value}.",
            "The pass key is {value}.",
        ),
        ("What is the pass key?", "Which pass key was given in the text?"),
        "The pass key is",
    ),
    (
        "digits",
        ("The telephone number of {who} is {value}.", "{who} can be reached under the number {value}."),
        ("What is the telephone number of {who}?", "Under which number can {who} be reached?"),
        "The telephone number of {who} is",
    ),
    (
        "digits",
        ("The safe of {who} opens with the code {value}.", "{who} has chosen {value} as the code of the safe."),
        ("Which code opens the safe of {who}?", "What is the code of {who}'s safe?"),
        "The safe of {who} opens with the code",
    ),
    (
        "word",
        ("The secret word of {who} is {value}.", "{who} has told no one but you that the secret word is {value}."),
        ("What is the secret word of {who}?", "Which secret word does {who} have?"),
        "The secret word of {who} is",
    ),
    (
        "place",
        ("{who} lives in {value}.", "Since last spring {who} has lived in {value}."),
        ("Where does {who} live?", "In which town does {who} live?"),
        "{who} lives in",
    ),
    (
        "place",
        ("The ship of {who} sails for {value} at dawn.", "At dawn the ship of {who} leaves for {value}."),
        ("Where does the ship of {who} sail?", "Which port is the ship of {who} bound for?"),
        "The ship of {who} sails for",
    ),
    (
        "person",
        ("The teacher of {who} was {value}.", "{who} learned the trade from {value}."),
        ("Who was the teacher of {who}?", "From whom did {who} learn the trade?"),
        "The teacher of {who} was",
    ),
]


@dataclass(frozen=True)
class Fact:
    """An invented fact.

    statement: the sentences that are hidden in a text.
    question: asks for the answer.
    cue: the beginning of a sentence that the answer continues.
    """

    statement: str
    question: str
    cue: str
    answer: str


def invent(rng: random.Random, count: int) -> list[Fact]:
    """Facts that cannot be confused: each is about another person, and at most one is about nobody.

    count: number of facts, at most MOST_FACTS.
    """
    people = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], 2 * count)
    facts: list[Fact] = []
    nobody = True
    for number in range(count):
        kind, statements, questions, cue = rng.choice(FAMILIES if nobody else FAMILIES[1:])
        nobody = nobody and "{who}" in cue
        value = {
            "digits": "".join(rng.choice("0123456789") for _ in range(rng.randint(4, 7))),
            "word": rng.choice(WORDS),
            "place": rng.choice(PLACES),
            "person": people[count + number],
        }[kind]
        known = {"who": people[number], "value": value}
        facts.append(
            Fact(
                rng.choice(statements).format(**known),
                rng.choice(questions).format(**known),
                cue.format(**known),
                value,
            )
        )
    return facts
