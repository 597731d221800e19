"""PDFs as an attacker writes them: objects by hand, with a cross-reference table that fits."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
WORDS = b"BT /F1 12 Tf 72 700 Td (The gauge was read at noon on every day of the year.) Tj ET"


def stream(data: bytes, entries: bytes = b"") -> bytes:
    """A stream object; `entries` go into its dictionary."""
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), entries, data)


def deflated(data: bytes, entries: bytes = b"") -> bytes:
    """The same, compressed."""
    return stream(zlib.compress(data, 9), b"/Filter /FlateDecode " + entries)


def zeros(size: int) -> bytes:
    """`size` spaces, compressed: a thousandth of it."""
    pack, out = zlib.compressobj(9), []
    for _ in range(size >> 20):
        out.append(pack.compress(b" " * (1 << 20)))
    return b"".join([*out, pack.flush()])


def pdf(objects: Iterable[bytes], trailer: bytes = b"") -> bytes:
    """A file of these objects, numbered from 1; the first is the catalog."""
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, trailer, table)
    return bytes(out)


def page(contents: int, resources: bytes = b"/Font << /F1 3 0 R >>") -> bytes:
    """A page of the tree in object 2."""
    box = b"/MediaBox [0 0 612 792]"
    return b"<< /Type /Page /Parent 2 0 R %s /Resources << %s >> /Contents %d 0 R >>" % (box, resources, contents)


def tree(kids: Iterable[int], count: int, catalog: bytes = b"") -> list[bytes]:
    """Catalog, page tree and font: objects 1 to 3."""
    listed = b" ".join(b"%d 0 R" % kid for kid in kids)
    pages = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (listed, count)
    return [b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog, pages, FONT]


def one_page(content: bytes, resources: bytes = b"/Font << /F1 3 0 R >>", more: Iterable[bytes] = ()) -> bytes:
    """A file of one page whose contents are this object, number 5; `more` are numbered from 6."""
    return pdf([*tree([4], 1), page(5, resources), content, *more])


def texts(*contents: bytes) -> bytes:
    """A file of one page for each of these contents."""
    count = len(contents)
    kids = [4 + 2 * i for i in range(count)]
    body = [part for kid, content in zip(kids, contents, strict=True) for part in (page(kid + 1), deflated(content))]
    return pdf([*tree(kids, count), *body])


def with_slow_pages(contents: Iterable[bytes | None]) -> bytes:
    """A page for each of these contents; one that is None takes hours."""
    parts = list(contents)
    kids = [5 + 2 * i for i in range(len(parts))]
    entries = b"/Type /XObject /Subtype /Form /Resources << /Font << /F1 3 0 R >> >>"
    form = deflated(b"BT /F1 1 Tf " + b"1 0 Td " * 50_000 + b"ET", entries)
    body = [form]
    for kid, content in zip(kids, parts, strict=True):
        drawing = b"/XObject << /X1 4 0 R >>" if content is None else b"/Font << /F1 3 0 R >>"
        body += [page(kid + 1, drawing), deflated(b"/X1 Do " * 10_000 if content is None else content)]
    return pdf([*tree(kids, len(parts)), *body])


def _drawing_that_never_ends() -> bytes:
    return with_slow_pages([None])


def _bomb() -> bytes:
    return one_page(stream(zeros(1 << 28), b"/Filter /FlateDecode"))


def _bomb_in_a_bomb() -> bytes:
    return one_page(stream(zlib.compress(zeros(1 << 28), 9), b"/Filter [/FlateDecode /FlateDecode]"))


def _run_length_bomb() -> bytes:
    return one_page(deflated(b"\x81 " * (32 << 20), b"/X 1").replace(b"/Filter /FlateDecode", FILTERS))


FILTERS = b"/Filter [/FlateDecode /RunLengthDecode]"


def _predictor_bomb() -> bytes:
    parameters = b"/DecodeParms << /Predictor 15 /Columns 2147483647 /Colors 32 /BitsPerComponent 16 >>"
    return one_page(deflated(WORDS, parameters))


def _text_of_a_gigabyte() -> bytes:
    entries = b"/Type /XObject /Subtype /Form /Resources << /Font << /F1 3 0 R >> >>"
    form = deflated(b"BT /F1 12 Tf (" + b"word " * 200_000 + b") Tj ET", entries)
    return one_page(deflated(b"/X1 Do " * 1000), b"/Font << /F1 3 0 R >> /XObject << /X1 6 0 R >>", [form])


def _forms_that_multiply() -> bytes:
    depth = 30
    forms = []
    for level in range(depth):
        resources = b"/Font << /F1 3 0 R >> /XObject << /X1 %d 0 R >>" % (7 + level)
        content = b"/X1 Do /X1 Do" if level + 1 < depth else WORDS
        forms.append(deflated(content, b"/Type /XObject /Subtype /Form /Resources << %s >>" % resources))
    return one_page(deflated(b"/X1 Do"), b"/XObject << /X1 6 0 R >>", forms)


def _form_that_draws_itself() -> bytes:
    resources = b"/Font << /F1 3 0 R >> /XObject << /X1 6 0 R >>"
    form = deflated(WORDS + b" /X1 Do", b"/Type /XObject /Subtype /Form /Resources << %s >>" % resources)
    return one_page(deflated(b"/X1 Do"), resources, [form])


def _tree_that_is_its_own_child() -> bytes:
    return pdf(tree([2], 1))


def _tree_of_a_billion() -> bytes:
    nodes = [b"<< /Type /Pages /Kids [%s] /Count 10 >>" % (b"%d 0 R " % (number + 1) * 10) for number in range(4, 13)]
    return pdf([*tree([4], 10**9), *nodes, page(14), deflated(WORDS)])


def _deep_tree() -> bytes:
    depth = 20_000
    nodes = [b"<< /Type /Pages /Kids [%d 0 R] /Count 1 >>" % (number + 1) for number in range(4, 4 + depth)]
    return pdf([*tree([4], 1), *nodes, page(5 + depth), deflated(WORDS)])


def _hundred_thousand_pages() -> bytes:
    count = 100_000
    return pdf([*tree(range(5, 5 + count), count), deflated(WORDS), *([page(4)] * count)])


def _contents_that_are_themselves() -> bytes:
    return one_page(b"[5 0 R 5 0 R]")


def _length_that_is_itself() -> bytes:
    return one_page(b"<< /Length 5 0 R >>\nstream\n" + WORDS + b"\nendstream")


def _deep_arrays() -> bytes:
    return one_page(b"[" * 200_000 + b"]" * 200_000)


def _deep_dictionaries_in_the_catalog() -> bytes:
    return pdf([*tree([4], 1, b"/X " + b"<< /X " * 100_000 + b"1" + b" >>" * 100_000), page(5), deflated(WORDS)])


def _deep_content() -> bytes:
    return one_page(deflated(b"BT /F1 12 Tf " + b"[" * 500_000 + b"(a)" + b"]" * 500_000 + b" TJ ET"))


def _deep_strings() -> bytes:
    return one_page(deflated(b"BT /F1 12 Tf " + b"(" * 1_000_000 + b")" * 1_000_000 + b" Tj ET"))


def _table_that_precedes_itself() -> bytes:
    table = pdf([*tree([4], 1), page(5), deflated(WORDS)])
    place = int(table.rsplit(b"startxref\n", 1)[1].split()[0])
    return pdf([*tree([4], 1), page(5), deflated(WORDS)], b"/Prev %d" % place)


def _outline_that_goes_in_circles() -> bytes:
    outline = [
        b"<< /First 7 0 R /Last 7 0 R /Count 1 >>",
        b"<< /Title (Round) /Dest [4 0 R /Fit] /Parent 6 0 R /Next 7 0 R /First 7 0 R /Last 7 0 R >>",
    ]
    return pdf([*tree([4], 1, b"/Outlines 6 0 R"), page(5), deflated(WORDS), *outline])


def _character_map_of_everything() -> bytes:
    mapped = b"1 begincodespacerange <00000000> <FFFFFFFF> endcodespacerange\n1 beginbfrange\n"
    mapped += b"<00000000> <FFFFFFFF> <0041>\nendbfrange\n"
    font = b"<< /Type /Font /Subtype /Type0 /BaseFont /F /Encoding /Identity-H /DescendantFonts [8 0 R] %s >>"
    font %= b"/ToUnicode 7 0 R"
    descendant = b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /F /W [0 2147483647 500] >>"
    content = deflated(b"BT /F2 12 Tf (abcd) Tj ET")
    return one_page(content, b"/Font << /F2 6 0 R >>", [font, deflated(mapped), descendant])


def _widths_of_everything() -> bytes:
    font = b"<< /Type /Font /Subtype /Type0 /BaseFont /F /Encoding /Identity-H /DescendantFonts [7 0 R] >>"
    descendant = b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /F /W [0 2147483647 500] >>"
    content = deflated(b"BT /F2 12 Tf (abcd) Tj ET")
    return one_page(content, b"/Font << /F2 6 0 R >>", [font, descendant])


def _numbers_of_a_million_digits() -> bytes:
    return one_page(deflated(b"BT /F1 " + b"9" * 1_000_000 + b" Tf " + b"1" * 1_000_000 + b" 0 Td (a) Tj ET"))


def _names_that_never_end() -> bytes:
    return pdf([*tree([4], 1, b"/" + b"A" * 20_000_000), page(5), deflated(WORDS)])


def _stream_of_objects_in_itself() -> bytes:
    inside = b"5 0 6 40 << /Type /Page >> << /Type /Page >>"
    return one_page(deflated(inside, b"/Type /ObjStm /N 2000000000 /First 8 /Extends 5 0 R"))


def _inline_image_without_end() -> bytes:
    return one_page(deflated(WORDS + b" BI /W 99999 /H 99999 /BPC 8 /CS /RGB ID " + b"\x00E" * 5_000_000))


def _no_table_and_a_million_objects() -> bytes:
    return b"%PDF-1.7\n" + b"".join(b"%d 0 obj\n<<>>\nendobj\n" % number for number in range(1_000_000))


def _only_a_header() -> bytes:
    return b"%PDF-1.7\n" + b"\x00" * 50_000_000


NASTIES: dict[str, Callable[[], bytes]] = {
    function.__name__.strip("_").replace("_", " "): function
    for function in (
        _bomb,
        _bomb_in_a_bomb,
        _run_length_bomb,
        _predictor_bomb,
        _text_of_a_gigabyte,
        _forms_that_multiply,
        _form_that_draws_itself,
        _drawing_that_never_ends,
        _tree_that_is_its_own_child,
        _tree_of_a_billion,
        _deep_tree,
        _hundred_thousand_pages,
        _contents_that_are_themselves,
        _length_that_is_itself,
        _deep_arrays,
        _deep_dictionaries_in_the_catalog,
        _deep_content,
        _deep_strings,
        _table_that_precedes_itself,
        _outline_that_goes_in_circles,
        _character_map_of_everything,
        _widths_of_everything,
        _numbers_of_a_million_digits,
        _names_that_never_end,
        _stream_of_objects_in_itself,
        _inline_image_without_end,
        _no_table_and_a_million_objects,
        _only_a_header,
    )
}
"""What a PDF can try, by name."""
