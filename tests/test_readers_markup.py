"""Markdown and HTML: prose without markup, a page for each section."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinimem.readers.page import Page
from infinimem.readers.source import open_source, read_pages


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


@pytest.mark.parametrize("fence", ["---", "+++"])
def test_front_matter_is_dropped(md: Path, fence: str) -> None:
    assert text_of(md, f"{fence}\ntitle: x\n{fence}\n\nWords.\n") == "Words."


def test_a_rule_in_the_text_is_not_front_matter(md: Path) -> None:
    assert text_of(md, "Words.\n\n---\n\nMore.\n\n---\n") == "Words.\n\nMore."


def test_html_inside_markdown_becomes_prose(md: Path) -> None:
    assert text_of(md, "<div><b>Bold</b> words</div>\n\nMore<br>lines.") == "Bold words\n\nMore\nlines."


def test_html_has_a_page_for_each_main_heading(html: Path) -> None:
    pages = pages_of(
        html, "<title>T</title><p>Before.<h1>One</h1><p>First.<h2>T<i>w</i>o</h2><p>Second.<h4>Small</h4>Third."
    )
    assert pages == [
        Page(1, "Before.", "T"),
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
    assert page.title is not None and len(page.title) == 301 and page.title.endswith("…")
