"""What holds for any document of each format."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tinyhtml5 import parse

from srllm_guard import Guard, Moderation, Policy
from srllm_guard.errors import FormatError
from srllm_guard.structure import csv_text, formats
from srllm_guard.structure.formats import Format
from srllm_guard.structure.prose import is_prose
from tests.byte_engine import WORDS, ByteEngine, runtime
from tests.checks import check

GUARD = Guard(runtime())
MASK = Guard(runtime(ByteEngine(fault="empty")), policy=Policy(on_fail="mask"))
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

FORMATS: tuple[Format, ...] = (
    *("text", "auto", "json", "ndjson", "markdown", "html", "csv", "email", "transcript"),
)
SAFE = [
    "The bus leaves at nine. ",
    "two of them",
    "Fine!",
    "é 😀",
    "a",
    "ok",
    '"x"',
    "\\",
    "\n",
    " ",
]
UNSAFE = ["You idiot. ", "a stupid man", "trash ", "so lazy", "Idiot!"]
MARKS = [
    *(
        "<p>",
        "</p>",
        "<b>",
        "</b>",
        "<br>",
        "<code>",
        "</code>",
        "<!--",
        "-->",
        "<script>",
        "&amp;",
    ),
    *(
        "</script>",
        "<a href='idiot'>",
        "</a>",
        "<title>",
        "<td>",
        "&lt",
        "<svg>",
        "<![CDATA[",
        "]]>",
    ),
    *(
        "**",
        "*",
        "_",
        "`",
        "~~",
        "[",
        "](u.io)",
        "![",
        "# ",
        "> ",
        "- ",
        "1. ",
        "\n\n",
        "    ",
        "\\*",
    ),
    *(
        "| ",
        "|\n|---|---|\n",
        "```\n",
        "---\n",
        "===\n",
        "  \n",
        "<div>\n",
        "[a]: b\n",
        "\t",
        "\r\n",
    ),
    *(",", ";", '"', '""', "Bob: ", "[10:00] ", "<nick> ", "Subject: ", "From: a\n", "-- \n"),
    *("{", "}", '{"a":', "\ud83d", "\x00", "\ufeff", "\x0b", "\u2028"),
]
SOUP = st.lists(st.sampled_from([*SAFE, *UNSAFE, *MARKS]), max_size=14).map("".join)
SAFE_SOUP = st.lists(st.sampled_from([*SAFE, *MARKS]), max_size=14).map("".join)
STRINGS = st.lists(st.sampled_from([*SAFE, *UNSAFE, "\t", "\u20ac", "\ud83d", "/"])).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | STRINGS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=12,
)

JUDGED: dict[Format, list[str]] = {
    "json": ['{"a": "@", "b": 1}', '["x", ["@"]]', '{"a": "{\\"b\\": [\\"@\\"]}"}', '"@"'],
    "ndjson": ['{"a": 1}\n["@"]\n', '"@"\n\n5'],
    "markdown": [
        *(
            "# @",
            "@\n===",
            "- a\n- @",
            "> @",
            "1. @",
            "**@**",
            "*a* _@_",
            "<div>\n@\n</div>",
            "a  \n@",
        ),
        *("| a | @ |\n|---|---|\n| b | c |", "| a | b |\n|---|---|\n| c | @ |", "[@](x.io)"),
        *("![@](x.png)", "![a *b* `c` @](x.png)", "[![@][r]](y)\n\n[r]: x.png", "`a` @"),
        *("---\n- @\n---", "---\n# @\n---", "---\n  @\n---", "---\n@\n---", "+++\n  @\n+++"),
    ],
    "html": [
        *("<p>@</p>", "a <b>@</b>", "<title>@</title>", "<li>@", "<p>a<br>@", "<a href=x>@</a>"),
        *("<!--> @ <!-- -->", "<script></script/> @", "<textarea>@</textarea>", "<pre>@</pre>"),
    ],
    "csv": ["a,@\nb,c", 'a,"@"\nb,c', "a;b\n@;c", "@\ta", 'a,"b\n@"'],
    "email": [
        *("@", "> @", ">> @\n> a", "* @", "-- \n@", "a\n@"),
        *(f"From: a\nTo: b\n{line}\n\na" for line in ("Subject: @", "Re: @", "Note:\n @")),
        *("To: a\nSubject: a\nX-A: b\nSubject: @", "To: a\nFrom: b\nComments: a\n @\nDate: c"),
    ],
    "transcript": [
        *("Bob: @", "Bob: a\n@", "[10:00] @", "10:30 Bob: @", "<nick> @", "**Bob:** @", "@"),
        *("10:30 @: ok\n10:31 Bob: a", "**@:** a", "@: a\nBob: a\nAnn: b", "Bob (@): a\nAnn: b"),
        *("WEBVTT @\nBob: a\nAnn: b", "1\n00:01 --> 00:02 @\n00:02 --> 00:03", "NOTE @\n\nBob: a"),
    ],
}
"""Documents with a place for prose at "@": all that README does not list as what stays."""
PROSE = [
    "you are an idiot",
    "You are a stupid man.",
    "an old idiot!",
    "#Idiot #AndTrash",
    "so·lazy·you",
]


def moderated(guard: Guard, text: str, format_: Format) -> Moderation | None:
    try:
        return guard.moderate(text, format=format_)
    except FormatError as error:
        if format_ not in ("json", "ndjson", "csv") or "idiot" in str(error):
            raise
        return None


@pytest.mark.parametrize("format_", FORMATS)
def test_any_string_gives_a_result_or_is_not_of_the_format(format_: Format) -> None:
    @given(SOUP)
    @example("<p>You <b>idiot</b>")
    @QUICK
    def holds(text: str) -> None:
        for guard in (GUARD, MASK):
            result = moderated(guard, text, format_)
            if result is None:
                return
            check(result)
            if result.action in ("pass", "unverified"):
                assert result.text is text
            else:
                assert result.safe or not result.before.verified
            if guard is MASK:
                assert result.action != "block"

    holds()


@pytest.mark.parametrize("format_", JUDGED)
def test_prose_is_judged_wherever_it_stands(format_: Format) -> None:
    shapes = st.sampled_from(JUDGED[format_])
    near = st.lists(shapes, max_size=2) if format_ in ("markdown", "html") else st.just([])

    @given(near, shapes, near, st.sampled_from(PROSE))
    @settings(QUICK, max_examples=150)
    def holds(before: list[str], shape: str, after: list[str], prose: str) -> None:
        others = [[each.replace("@", "fine words") for each in side] for side in (before, after)]
        text = "\n\n".join([*others[0], shape.replace("@", prose), *others[1]])
        for known in (format_, "auto"):
            assert GUARD.detect(text, format=known).unsafe

    holds()


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_safe_comes_back_as_the_same_string(format_: Format) -> None:
    @given(SAFE_SOUP)
    @QUICK
    def holds(text: str) -> None:
        if not any(word in text for word in WORDS):
            result = moderated(GUARD, text, format_)
            assert result is None or result.text is text
            assert result is None or result.edits == ()

    holds()


@pytest.mark.parametrize("format_", ["markdown", "html", "csv", "email", "transcript"])
def test_what_was_released_has_the_same_structure_and_is_safe(format_: Format) -> None:
    @given(SOUP)
    @QUICK
    def holds(text: str) -> None:
        result = moderated(GUARD, text, format_)
        whole = result is None or any(edit.original == text for edit in result.edits)
        if result is None or result.action in ("pass", "unverified") or whole:
            return
        before, after = formats.read(text, format_), formats.read(result.text, format_)
        assert after.frame == before.frame
        assert len(after.parts) == len(before.parts)
        for number in after.judged:
            assert not GUARD.detect(after.parts[number].text).unsafe

    holds()


@given(VALUES, st.booleans(), st.sampled_from([None, 0, 2]))
@example({"idiot": "You idiot", "n": [1.0, None, "Idiot!", "idiot"]}, True, None)
@QUICK
def test_json_keeps_all_but_the_strings_that_are_prose(
    value: Any, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    for guard in (GUARD, MASK):
        result = guard.moderate(text, format="json")
        check(result)
        compare(value, json.loads(result.text))


def compare(old: Any, new: Any) -> None:
    assert type(old) is type(new)
    if isinstance(old, dict):
        assert list(old) == list(new)
        for key, value in old.items():
            compare(value, new[key])
    elif isinstance(old, list):
        assert len(old) == len(new)
        for a, b in zip(old, new, strict=True):
            compare(a, b)
    elif isinstance(old, str) and is_prose(old):
        assert old == new or GUARD.detect(old).unsafe
        assert not GUARD.detect(new).unsafe
    else:
        assert old == new


@given(st.lists(VALUES, max_size=4), st.sampled_from(["\n", "\r\n"]))
@QUICK
def test_ndjson_keeps_its_lines(values: list[Any], end: str) -> None:
    text = end.join(map(json.dumps, values))
    released = GUARD.rewrite(text, format="ndjson")
    for old, line in zip(values, released.split(end) if values else [], strict=True):
        compare(old, json.loads(line))


@given(
    st.lists(st.lists(STRINGS, min_size=2, max_size=4), min_size=1, max_size=4),
    st.sampled_from(csv_text.DELIMITERS),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@settings(QUICK, max_examples=30)
def test_csv_is_read_as_python_reads_it_and_keeps_its_cells(
    rows: list[list[str]], sign: str, quoting: Any
) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=sign, quoting=quoting).writerows(rows)
    text = file.getvalue()
    if csv_text.delimiter(text) != sign:
        return
    document = csv_text.read(text)
    assert [part.text for part in document.parts] == [cell for row in rows for cell in row]
    released = GUARD.rewrite(text, format="csv")
    again = list(csv.reader(io.StringIO(released, newline=""), delimiter=sign))
    assert [len(row) for row in again] == [len(row) for row in rows]
    for old, new in zip(rows, again, strict=True):
        for a, b in zip(old, new, strict=True):
            compare(a, b)


@given(SOUP)
@QUICK
def test_html_keeps_its_elements_and_attributes(text: str) -> None:
    def elements(text: str) -> list[tuple[Any, Any]]:
        # From a file object: of a string it would try to open the file of that name.
        tree = parse(io.StringIO(text.replace("\ud83d", "?")))
        return [(each.tag, each.attrib) for each in tree.iter()]

    released = GUARD.rewrite(text, format="html")
    assert elements(released) == elements(text)


@given(st.lists(st.tuples(SOUP, st.sampled_from(["markdown", "html"])), max_size=4))
@settings(QUICK, max_examples=40)
def test_many_equal_one_by_one(texts: list[tuple[str, Format]]) -> None:
    for format_ in ("markdown", "html"):
        chosen = [text for text, each in texts if each == format_]
        together = GUARD.moderate_many(chosen, format=format_)
        assert together == [GUARD.moderate(text, format=format_) for text in chosen]
