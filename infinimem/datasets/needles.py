"""Facts to hide in a text for measurements, and the questions that ask for them. The facts for training: facts.py.

- the single pass key of the paper (arXiv 2404.07143, section 4.2 and appendix B), word for word
- named facts, which can stand together in one text: pass keys of people, or words (colours, animals, ...)
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from ..errors import InvalidSetting

KINDS = ("digits", "names")
DIGITS = 5
NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is"

_NAMES = """Abernathy Alvarez Amundsen Ashdown Bakker Barrowby Beaumont Bergstrom Bianchi Blackwood Borowski Brennan
Calloway Castellan Cheverell Corrigan Dahlgren Delacroix Donovan Drummond Eastman Ekberg Ellsworth Escobar Fairbanks
Ferreira Fitzroy Forsythe Gallagher Garibaldi Gilchrist Grimaldi Halvorsen Hawthorne Henriksen Holloway Ibarra Ingram
Iverson Jankowski Jaspers Jorgensen Kaplan Kavanagh Kimball Kowalski Lancaster Larsson Lindqvist Lockhart Mackenzie
Marchetti Montague Moreau Nakamura Novak Okafor Oldham Orlando Osborne Pemberton Petrov Prescott Quigley Quintero
Rasmussen Redgrave Rosenthal Santiago Schubert Sinclair Solberg Tanaka Thackeray Thornton Ulrich Underhill Valentin
Vanderbilt Vasquez Wainwright Westbrook Whitaker Yamamoto Yardley Zamora Zeller"""
NAMES = _NAMES.split()

# What is asked for, and its possible values: words of one kind. None is the beginning of another, as `score` needs it.
_WORDS = {
    "secret colour": "turquoise crimson purple orange silver yellow black white green brown pink violet",
    "favourite animal": "tiger rabbit horse eagle dolphin elephant monkey camel spider falcon turtle wolf",
    "favourite fruit": "apple banana cherry lemon mango peach plum grape melon coconut apricot papaya",
    "home city": "London Paris Madrid Berlin Vienna Moscow Cairo Tokyo Chicago Boston Dublin Lisbon",
    "chosen instrument": "piano violin guitar trumpet flute drum harp organ cello clarinet banjo accordion",
}
WORDS = {what: values.split() for what, values in _WORDS.items()}
NAMED = "\nThe {what} of {name} is {value}. Remember it. {value} is the {what} of {name}.\n"
NAMED_QUESTION = "\nWhat is the {what} of {name}? The {what} of {name} is"


@dataclass(frozen=True)
class Needle:
    """A fact, with a question that ends where the value would follow.

    kind: one of KINDS.
    what: what is asked for, such as "secret colour".
    name: the person whom the fact is about; None for the pass key of the paper.
    """

    kind: str
    value: str
    what: str = "pass key"
    name: str | None = None

    @property
    def fact(self) -> str:
        """The sentences that are hidden."""
        if self.name is None:
            return NEEDLE.format(key=self.value)
        return NAMED.format(what=self.what, name=self.name, value=self.value)

    @property
    def question(self) -> str:
        """The question and the beginning of its answer."""
        return QUESTION if self.name is None else NAMED_QUESTION.format(what=self.what, name=self.name)

    def score(self, said: str) -> float:
        """1 if the answer begins with the value, otherwise 0; for digits, the share of digits right at their place."""
        if self.kind == "names":
            return float(said.strip().casefold().startswith(self.value.casefold()))
        digits = "".join(character for character in said if character.isdigit())[:DIGITS]
        return sum(a == b for a, b in zip(digits, self.value, strict=False)) / DIGITS

    def changed(self, generator: random.Random) -> Needle:
        """The same fact with another value, drawn anew."""
        while True:
            value = draw_digits(generator) if self.kind == "digits" else generator.choice(WORDS[self.what])
            if value != self.value:
                return replace(self, value=value)


def draw_digits(generator: random.Random) -> str:
    """Random digits of a pass key."""
    return "".join(generator.choice("0123456789") for _ in range(DIGITS))


def draw_needles(count: int, kind: str, generator: random.Random) -> list[Needle]:
    """`count` facts with random values, each about another person. Raises InvalidSetting."""
    if kind not in KINDS:
        raise InvalidSetting(f"there is no kind of needle {kind!r}; choose one of {', '.join(KINDS)}")
    if not 1 <= count <= len(NAMES):
        raise InvalidSetting(f"there can be 1 to {len(NAMES)} needles, not {count}; take more samples instead")
    names = generator.sample(NAMES, count)
    if kind == "digits":
        return [Needle(kind, draw_digits(generator), name=name) for name in names]
    whats = [list(WORDS)[i % len(WORDS)] for i in range(count)]
    generator.shuffle(whats)
    return [Needle(kind, generator.choice(WORDS[what]), what, name) for what, name in zip(whats, names, strict=True)]
