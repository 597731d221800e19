"""Markdown and HTML: prose without markup, a page for each section."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinimem.readers.page import Page
from infinimem.readers.source import open_source, read_pages
from infinimem.text.passages import cut


@pytest.fixture
def md(tmp_path: Path) -> Path:
    return tmp_path / "a.md"


@pytest.fixture
def html(tmp_path: Path) -> Path:
    return tmp_path / "a.html"


def pages_of(path: Path, content: str | bytes) -> list[Page]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return list(read_pages(open_source(path)))


def text_of(path: Path, content: str | bytes) -> str:
    return "\n\n".join(page.text for page in pages_of(path, content))


def test_markdown_has_a_page_for_each_heading(md: Path) -> None:
    pages = pages_of(md, "Before.\n\n# One\n\nFirst.\n\n## Two\n\nSecond.\n")
    assert pages == [Page(1, "Before."), Page(2, "One\n\nFirst.", "One"), Page(3, "Two\n\nSecond.", "Two")]


def test_a_heading_without_text_goes_with_the_next_section(md: Path) -> None:
    assert pages_of(md, "# Book\n\n## Chapter\n\nWords.") == [Page(1, "Book\n\nChapter\n\nWords.", "Chapter")]


def test_a_long_section_is_cut_and_keeps_its_title(md: Path) -> None:
    pages = pages_of(md, "# Long\n\n" + "A sentence of words. " * 1_000)
    assert len(pages) > 3
    assert {page.title for page in pages} == {"Long"}
    assert max(len(page.text) for page in pages) <= 6_000


def test_links_keep_their_text_and_lose_their_term_weights(md: Path) -> None:
    text = text_of(md, "See [the *manual*](https://example.com/x) and ![a cat](cat.png), `code` and **bold**.")
    assert text == "See the manual and a cat, code and bold."


def test_references_to_links_are_resolved(md: Path) -> None:
    assert text_of(md, "See [here][1].\n\n[1]: https://example.com") == "See here."


def test_wrapped_markdown_lines_are_joined(md: Path) -> None:
    assert text_of(md, "one\ntwo  \nthree") == "one two\nthree"


def test_markdown_code_is_verbatim(md: Path) -> None:
    assert text_of(md, "Text.\n\n```py\ndef f():\n    return '*x*'\n```\n") == "Text.\n\ndef f():\n    return '*x*'"


def test_markdown_lists_stay_line_by_line(md: Path) -> None:
    text = text_of(md, "- one\n  wrapped\n- two\n  - nested\n\n3. three\n4. four\n")
    assert text == "- one wrapped\n- two\n  - nested\n\n3. three\n4. four"


def test_code_inside_a_list_stays_in_its_place(md: Path) -> None:
    assert text_of(md, "- one\n\n  ```\n  code\n  ```\n\n- two\n") == "- one\n\ncode\n\n- two"


def test_markdown_tables_are_lines(md: Path) -> None:
    assert text_of(md, "| a | b |\n|---|---|\n| 1 | 2 |\n") == "a | b\n1 | 2"


FRONT = {
    "---": "title: 'Harbour: rules'\nauthors:\n  - name: Ida Holm\n  - Per Lind\ndate: 2023-04-05T10:00:00\nlang: en\n"
    "tags: [boats, lights]\nlayout:\n  width: 3\n",
    "+++": 'title = "Harbour: rules"\nauthors = ["Ida Holm", "Per Lind"]\ndate = 2023-04-05T10:00:00Z\nlang = "en"\n'
    'tags = ["boats", "lights"]\n[layout]\nwidth = 3\n',
}


@pytest.mark.parametrize("fence", FRONT)
def test_front_matter_is_what_a_file_says_about_itself(md: Path, fence: str) -> None:
    (page,) = pages_of(md, f"{fence}\n{FRONT[fence]}{fence}\n\n# Rules\n\nWords.\n")
    assert page.about == {
        "title": "Harbour: rules",
        "author": "Ida Holm; Per Lind",
        "date": "2023-04-05",
        "language": "en",
    }
    assert list(page.sections()) == [
        (None, "Title: Harbour: rules\nAuthor: Ida Holm; Per Lind\nDate: 2023-04-05\n\n"),
        (None, "tags: boats, lights\n\n"),
        ("Rules", "Rules\n\nWords."),
    ]


@pytest.mark.parametrize("front", ["a: [", "a: b: c", "- one\n- two", "a: &x [*x]"])
def test_front_matter_that_is_none_is_text_or_says_nothing(md: Path, front: str) -> None:
    assert all(not page.about for page in pages_of(md, f"---\n{front}\n---\n\nWords.\n"))
    assert text_of(md, f"---\n{front}\n---\n\nWords.\n").endswith("Words.")


def test_the_head_of_a_page_is_what_it_says_about_itself(html: Path) -> None:
    (page,) = pages_of(
        html,
        "<html lang=sv><head><title>Site - Rules</title><meta property='og:title' content='Harbour Rules'>"
        "<meta name=author content='Ida Holm'><meta property='article:published_time' content='2023-04-05T10:00Z'>"
        "</head><body><nav>Menu</nav><p>Words.</body></html>",
    )
    assert page.about == {"title": "Harbour Rules", "author": "Ida Holm", "date": "2023-04-05", "language": "sv"}
    assert page.left_out == {"menus and hidden parts": 1}
    assert list(page.sections())[-1] == ("Site - Rules", "Words.")


def test_a_rule_in_the_text_is_not_front_matter(md: Path) -> None:
    assert text_of(md, "Words.\n\n---\n\nMore.\n\n---\n") == "Words.\n\nMore."


def test_html_inside_markdown_becomes_prose(md: Path) -> None:
    assert text_of(md, "<div><b>Bold</b> words</div>\n\nMore<br>lines.") == "Bold words\n\nMore\nlines."


def test_html_has_a_page_for_each_main_heading(html: Path) -> None:
    pages = pages_of(
        html, "<title>T</title><p>Before.<h1>One</h1><p>First.<h2>T<i>w</i>o</h2><p>Second.<h4>Small</h4>Third."
    )
    assert pages == [
        Page(1, "Title: T\n\nBefore.", None, headings=((10, "T"),), about={"title": "T"}),
        Page(2, "One\n\nFirst.", "One"),
        Page(3, "Two\n\nSecond.\n\nSmall\n\nThird.", "Two"),
    ]


def test_scripts_menus_and_hidden_parts_are_dropped(html: Path) -> None:
    text = text_of(
        html,
        "<head><style>p{}</style><script>x()</script></head><nav>Menu</nav><div role=navigation>Menu</div>"
        "<p hidden>No</p><p style='display: none'>No</p><p aria-hidden=true>No</p><!-- No --><p>Words.</p>",
    )
    assert text == "Words."


def test_text_outside_of_paragraphs_is_kept(html: Path) -> None:
    assert text_of(html, "<div>one <b>two</b><p>three</p>four</div>five") == "one two\n\nthree\n\nfour\n\nfive"


def test_a_form_around_the_page_is_not_dropped(html: Path) -> None:
    assert text_of(html, "<form><p>Words.</p><button>Send</button></form>") == "Words."


def test_pre_is_verbatim(html: Path) -> None:
    assert text_of(html, "<p>a   b</p><pre>def f():\n    return 1</pre>") == "a b\n\ndef f():\n    return 1"


def test_html_tables_and_lists_are_lines(html: Path) -> None:
    text = text_of(html, "<ul><li>one<li><p>two</p></ul><table><tr><th>a<th>b<tr><td>1<td><p>2</p></table>")
    assert text == "- one\n- two\n\na | b\n1 | 2"


def test_the_encoding_comes_from_the_document(html: Path) -> None:
    assert text_of(html, '<meta charset="iso-8859-2"><p>Łódź'.encode("iso-8859-2")) == "Łódź"


def test_utf8_without_a_declaration_is_read(html: Path) -> None:
    assert text_of(html, "<p>naïve “words”") == "naïve “words”"


def test_entities_become_characters_without_controls(html: Path) -> None:
    assert text_of(html, "<p>a&nbsp;&amp;&#0;&#xD800; b&shy;c &lt;d>") == "a &\ufffd\ufffd bc <d>"


def test_deep_nesting_is_read(html: Path) -> None:
    assert "Words." in text_of(html, "<div>" * 3_000 + "Words.")


def test_a_title_that_is_as_long_as_a_text_is_cut(html: Path) -> None:
    (page,) = pages_of(html, f"<title>{'long ' * 1000}</title><p>Words.")
    title, text = list(page.sections())[-1]
    assert text == "Words." and title is not None and len(title) == 301 and title.endswith("…")
    assert len(page.text) < 400


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("5,200<sup>3</sup> people", "5,200 [3] people"),
        ('in 1871<sup><a href="#n">1</a></sup> and', "in 1871 [1] and"),
        ('in 1871<a href="#n"><sup>1</sup></a> and', "in 1871 [1] and"),
        ('10<a epub:type="noteref" href="#n">4</a> cars', "10 [4] cars"),
        ("10<sup>26</sup> watts", "10^26 watts"),
        ("10<sup>-3</sup> of it", "10^-3 of it"),
        ("40 km<sup>2</sup>.", "40 km^2."),
        ("E = mc<sup>2</sup>", "E = mc^2"),
        ("the 1<sup>st</sup> and the 2<sup>nd</sup>", "the 1st and the 2nd"),
        ("M<sup>me</sup> Curie", "Mme Curie"),
        ("Foo<sup>TM</sup> bar", "Foo™ bar"),
        ("the city<sup>[12]</sup> is", "the city [12] is"),
        ("CO<sub>2</sub> and x<sub>i</sub>", "CO2 and x_i"),
        ("log<sub>10</sub>2", "log10 2"),
        ("山路<ruby>山<rp>(</rp><rt>やま</rt><rp>)</rp></ruby>", "山路山(やま)"),
    ],
)
@pytest.mark.parametrize("kind", ["html", "markdown"])
def test_small_letters_are_not_glued_to_what_is_before(
    html: Path, md: Path, markup: str, expected: str, kind: str
) -> None:
    if kind == "html":
        assert text_of(html, f'<meta charset="utf-8"><p>{markup}</p>') == expected
    elif "<a" not in markup and "<ruby" not in markup:
        assert text_of(md, markup) == expected


@pytest.mark.parametrize("label", ["iso-8859-1", "Latin1", "us-ascii", "windows-1252"])
def test_labels_of_latin1_mean_windows_1252_as_in_browsers(html: Path, label: str) -> None:
    content = f'<meta charset="{label}"><p>'.encode() + b"\x8045 \x96 Anna\x92s caf\xe9</p>"
    assert text_of(html, content) == "€45 – Anna’s café"


def test_the_mark_of_an_encoding_counts_more_than_its_label(html: Path) -> None:
    assert text_of(html, b"\xef\xbb\xbf" + '<meta charset="iso-8859-1"><p>naïve €</p>'.encode()) == "naïve €"


def test_empty_cells_and_spans_keep_their_place(html: Path) -> None:
    rows = (
        "<tr><th rowspan=2>Branch<th colspan=2>Sales</tr><tr><th>2021<th>2022</tr>"
        "<tr><td>Oslo<td><td>510</tr><tr><td rowspan=2>Turku<td>95<td></tr><tr><td>96<td>98</tr>"
    )
    assert text_of(html, f"<table>{rows}</table>").split("\n") == [
        "Branch | Sales: 2021 | Sales: 2022",
        "Oslo | | 510",
        "Turku | 95 |",
        "Turku | 96 | 98",
    ]


def test_a_row_is_a_line_whatever_its_cells_hold(html: Path) -> None:
    cell = "<ul><li>Turku</li><li>Oulu</li></ul>"
    text = text_of(
        html,
        f"<table><tr><th>Boat<th>Harbour<th>Note</tr><tr><td>Mikki<td>{cell}<td><p>A.</p><pre>b</pre></tr></table>",
    )
    assert text == "Boat | Harbour | Note\nMikki | Turku; Oulu | A. b"


def test_a_table_that_lays_out_a_page_is_no_data(html: Path) -> None:
    text = text_of(
        html, "<table><tr><td><h2>Menu</h2><p>One.</p><p>Two.</p></td><td><p>Three.</p><p>Four.</p></td></tr></table>"
    )
    assert " | " not in text and "One.\n\nTwo." in text


@pytest.mark.parametrize("span", ["1000000000", "-5", "x", "0"])
def test_no_span_is_too_large(html: Path, span: str) -> None:
    text = text_of(html, f"<table><tr><td colspan={span} rowspan={span}>a<td>b</tr><tr><td>c</tr></table>")
    assert text.startswith("a") and "c" in text and len(text) < 2_000


@pytest.mark.parametrize("kind", ["html", "markdown"])
def test_each_passage_of_a_long_table_names_its_columns(html: Path, md: Path, kind: str) -> None:
    names = [f"Village{number}" for number in range(60)]
    if kind == "html":
        rows = "".join(f"<tr><td>{name}<td>{len(name)}00<td>Mayor of {name}</tr>" for name in names)
        text = text_of(html, f"<table><tr><th>Place<th>Founded<th>Mayor</tr>{rows}</table>")
    else:
        rows = "\n".join(f"| {name} | {len(name)}00 | Mayor of {name} |" for name in names)
        text = text_of(md, f"| Place | Founded | Mayor |\n|---|---|---|\n{rows}\n")
    for name in names:
        (found,) = [one.text for one in cut(text, "t") if f"{name} | " in one.text]
        assert found.startswith("Place | Founded | Mayor\n")


def test_the_words_of_a_drawing_are_kept(html: Path) -> None:
    text = text_of(html, "<p>Before.</p><svg><title>T</title><text>Alpha</text><text>Beta</text></svg><p>After.</p>")
    assert text == "Before.\n\nAlpha\nBeta\n\nAfter."


@pytest.mark.parametrize(
    "between", ["The number is 5577. Call it.", "\nThe number is 5577.\n", "# Heading\n\nText", "A list:\n\n* one"]
)
def test_text_between_two_rules_is_no_front_matter(md: Path, between: str) -> None:
    words = [word for word in between.replace("#", "").replace("*", "").split() if word]
    text = text_of(md, f"---\n{between}\n\n---\n\nRest.\n")
    assert all(word in text for word in words) and "Rest." in text


def test_footnotes_of_one_word_are_kept(md: Path) -> None:
    text = text_of(
        md, "The rate[^rate] is fixed[^c].\n\n[^rate]: 7.5%\n[^c]: help@example.org\n[^long]: Several words.\n"
    )
    assert text.split("\n\n") == [
        "The rate[^rate] is fixed[^c].",
        "[^rate]: 7.5%",
        "[^c]: help@example.org",
        "[^long]: Several words.",
    ]


def test_what_looks_like_a_footnote_in_code_stays_as_it_is(md: Path) -> None:
    assert text_of(md, "```\n[^a]: b\n```\n\nText[^c].\n") == "[^a]: b\n\nText[^c]."


def test_spans_do_not_make_a_small_page_large(html: Path) -> None:
    rows = "<tr><td rowspan=65535 colspan=200>word</tr>" * 2_000
    assert len(text_of(html, f"<table>{rows}</table>")) < 300_000
