"""Whether the text of a page can be trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinimem.readers import open_source, read_pages
from infinimem.readers.doubt import doubt_of

EXAMPLES = Path(__file__).parents[1] / "examples"
SENTENCE = "The lighthouse keeper counted the ships that passed before breakfast, and wrote their names into a ledger. "


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ".join(SENTENCE * 3), "its letters stand apart"),
        (
            SENTENCE.replace(" ", "") + "and so on ".join(SENTENCE.replace(" ", "")[n::] for n in (3, 6, 9)) + SENTENCE,
            "its words run together",
        ),
        ("/one.os /two.os /g17 (cid:12) " + SENTENCE, "it has names of glyphs in place of letters"),
        ("\ue001\ue002\ue003\ufffd " + SENTENCE, "it has characters that stand for nothing"),
        ("MÃ¼ller sagt â€œjaâ€\u009d. " + SENTENCE, "its letters were decoded wrongly"),
        (SENTENCE.replace("e", "е") * 2, "its words mix letters of several scripts"),
        (SENTENCE.translate(str.maketrans("aeiouy", "bcdfgh")) * 4, "its letters make no words"),
    ],
)
def test_signs_of_a_text_that_is_not_what_is_printed(text: str, reason: str) -> None:
    assert doubt_of(text) == reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        SENTENCE * 4,
        "x = a + b * c\ny = f(x, k, j)\nfor i in range(n):\n    print(i, x[i], y[i], z[i])\n" * 4,
        "Die Donaudampfschifffahrtsgesellschaftskapitänsmütze liegt am Kai, und keiner weiß, wem sie gehört. " * 4,
        "Маяк стоит на скале, и смотритель считает корабли каждое утро до завтрака, кроме воскресенья. " * 4,
        "灯台守は朝食の前に通り過ぎる船を数えた。月曜日には七隻、火曜日には霧のために一隻も通らなかった。" * 4,
        "See https://example.org/a/very/long/address/that/no/one/would/ever/type/by/hand/because/it/is/long. " * 4,
        "The constants α, β and γ of the Λ-model were measured in μm at 5 °C by the NMR, XRD and FTIR methods. " * 4,
    ],
    ids=["nothing", "prose", "code", "German", "Russian", "Japanese", "addresses", "science"],
)
def test_text_of_many_kinds_is_trusted(text: str) -> None:
    assert doubt_of(text) is None


def test_no_page_of_the_sample_handbook_is_doubted() -> None:
    assert [page.number for page in read_pages(open_source(EXAMPLES / "handbook.pdf")) if page.doubt] == []
