"""What each format keeps, to the byte."""

from __future__ import annotations

import asyncio
import json
import re
import time

import pytest

from srllm_guard import Guard, Moderation
from srllm_guard.batcher import PART
from srllm_guard.errors import Blocked, ConfigError, FormatError, MissingExtra
from srllm_guard.structure import html_text
from srllm_guard.structure.formats import Format, guess, read
from srllm_guard.structure.prose import is_prose
from tests.byte_engine import ByteEngine
from tests.checks import check, guard

MESSAGE = "[This text was withheld because it could not be made safe.]"

CASES: dict[Format, list[str]] = {
    "json": [
        '{"idiot": "A \\u00e9 «stupid» man.\\/", "n": 1.0e5, "id": "idiot",\r\n "l": ["«Idiot»!"]}',
        '"You \\ud83d\\ude00 «idiot»\\nYes"',
        '{"arguments": "{\\"to\\": \\"idiot@x.io\\", \\"s\\": \\"Hi \\\\\\"«idiot»\\\\\\" x\\"}"}',
    ],
    "ndjson": ['{"a": "fine"}\n\n["you «idiot»"]\r\n'],
    "markdown": [
        "---\ntitle: you idiot\n---\n# You «idiot» #\n",
        "You\n=====\n\nso «lazy»\n---\n",
        'A **«stupid»** man of `code` at [an «idiot»](http://idiot.io "idiot") &amp; \\*me\\*.',
        "1. you «idiot»\n   - a ***«lazy»*** man\n",
        "| a b | «idiot» x |\n|--|:-:|\n|x \\| «idiot»|`idiot`|\n",
        "You «idiot»:\n\n```\nidiot\n```\n\n    idiot = 1\n",
        "<div class=idiot>\nyou <b>«idiot»</b>\n</div>",
        "![an «idiot»](idiot.png) and ~~«idiot»~~ x",
        '![an «idiot».](idiot.png "idiot")',
        "![a *«stupid»* man &amp; `code` [so «lazy»](idiot.io) \\* ![x «idiot»!](idiot)](idiot)",
        "| ![an «idiot».](idiot.png) | `idiot` |\n|---|---|\n",
        "a <b>«stupid»</b> man\r\nhere  \r\nyou «idiot»",
    ],
    "html": [
        (
            '<!DOCTYPE html><title>«idiot» &amp; co</title><p class="idiot" title="idiot">A\n  '
            "<b>«stupid»</b> &lt;man&gt;<br>you «idiot»<!-- idiot --><script>idiot</script>"
            "<style>idiot</style>"
        ),
        "Call <code>run()</code>, you «idiot»",
        "<pre><code>idiot</code></pre><pre>an\n «idiot»</pre>",
        "<svg><title>you «idiot»</title></svg> <textarea>you «idiot»",
    ],
    "csv": [
        'id,text\r\n1,"You ""«idiot»"", go"\r\n2,a «stupid» man\r\n',
        "a;idiot\nx, y;you «idiot»\n",
        '"two\nlines, «idiot»"\t5\n',
    ],
    "email": [
        (
            "From: idiot@x.io\nTo: b\nSubject: Re: You\n «idiot» man\n\nHi «idiot»,\n\n"
            "> I think that this here is the work of the most «stupid»\n> man of all of them.\n"
            ">> deeper «idiot»\n\n* an «idiot»\n-- \nBob\n"
        ),
        (
            "To: idiot@x.io,\n Bob Trash\nSubject: you «idiot»\nX-Idiot: an idiot\n"
            "Subject: «lazy» man\nNote: an\n «idiot»\nContent-Type: idiot\n"
        ),
        "To: Bob Trash\nFrom: Idiot\nRe: an «idiot»",
    ],
    "transcript": [
        "[10:00] Idiot: you «idiot»\nAnna Trash: an «idiot»\nso «lazy» lines\r\n<trash> «idiot»\n",
        "idiot: you «idiot»\nidiot: so «lazy»",
        "1\n00:00:01,000 --> 00:00:04,000\nYou «idiot»\n",
        "WEBVTT\n\n00:01.000 --> 00:04.000 line:63% position:72% align:start\nYou «idiot»\n",
        "00:01 --> 00:02 You «idiot»\n00:02 --> 00:03\nso «lazy»",
        "WEBVTT you «idiot»\nBob: hi\nAnn: ho",
        "10:30 an old «idiot» man: ok\n10:31 Bob: so «lazy»\n10:32 idiot: x\n10:33 idiot: y",
        "**so «lazy» men:** ok\n__Idiot__: you «idiot»\nIdiot (10:30 AM): x\nBob (an «idiot»): x",
    ],
    "text": ["- you «idiot»\n"],
}
"""Documents; what is rewritten stands in « »."""
ACROSS: list[tuple[Format, str, str]] = [
    (
        "markdown",
        "> He is a **stupid**\n> *idiot* here\n> now.",
        "> He is a **person** here\n> now.",
    ),
    ("html", "<p>so <i>la</i>zy</p><p>x</p>", "<p>so <i>person</i></p><p>x</p>"),
]
"""Phrases that marks stand in."""


def rewritten() -> list[tuple[Format, str, str]]:
    found = [(format_, case) for format_, cases in CASES.items() for case in cases]
    return ACROSS + [
        (format_, re.sub("[«»]", "", case), re.sub("«[^»]*»", "person", case))
        for format_, case in found
    ]


@pytest.mark.parametrize(("format_", "text", "released"), rewritten())
def test_only_unsafe_prose_changes(
    byte_guard: Guard, format_: Format, text: str, released: str
) -> None:
    result = byte_guard.moderate(text, format=format_)
    check(result)
    assert result.text == released
    assert result.action == "rewrite"
    assert result.safe
    assert byte_guard.moderate(released, format=format_).action == "pass"


def test_all_parts_go_to_the_model_together(byte_engine: ByteEngine, byte_guard: Guard) -> None:
    calls = []
    detect = byte_engine.detect
    byte_engine.detect = lambda windows: calls.append(len(windows)) or detect(windows)  # type: ignore[method-assign, func-returns-value]
    documents = [json.dumps([f"Text number {n} {m}." for n in range(9)]) for m in "abc"]
    byte_guard.moderate_many(documents, format="json")
    assert calls == [PART, PART, PART, 27 - 3 * PART]  # not a call for each of the 27


def test_spans_and_edits_stand_where_they_are_in_the_document(byte_guard: Guard) -> None:
    text = '{"a": "\\u00e9\\u00e9 you stupid man", "b": ["so \\"lazy\\""]}'
    result = byte_guard.moderate(text, format="json")
    assert [text[span.start : span.end] for span in result.before.spans] == ["stupid", "lazy"]
    assert [edit.replacement for edit in result.edits] == [
        "\\u00e9\\u00e9 you person man",
        'so \\"person\\"',
    ]
    assert byte_guard.detect(text, format="json") == result.before
    assert result.before.bias.value == "yes"
    assert result.before.toxicity.value == "high"


def test_what_does_not_fit_takes_the_next_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.byte_engine.GREEDY", "man, woman")
    result = guard(candidates=4).moderate("1,you idiot\n2,x", format="csv")
    assert "rewrite: breaks_structure" in result.edits[0].reasons
    assert result.action == "rewrite"  # one of the candidates fits
    assert len(result.text.split(",")) == 3
    quoted = guard().moderate('1,"you idiot"\n2,x', format="csv")
    assert quoted.text == '1,"you man, woman"\n2,x'


def test_what_no_rung_makes_fit_is_withheld_by_itself() -> None:
    masked = guard(ladder=("mask", "block"), mask_text="a,b").moderate(
        "you idiot,so fine\n", format="csv"
    )
    assert masked.text == f"{MESSAGE},so fine\n"
    assert (masked.action, masked.safe) == ("block", True)
    assert masked.after is not None
    check(masked)


@pytest.mark.parametrize(
    ("format_", "text", "released"),
    [
        ("json", '{"a": "You idiot", "b": "Fine."}', '{"a": "' + MESSAGE + '", "b": "Fine."}'),
        ("html", "<p>You <b>idiot</b></p><p>Hi</p>", f"<p>{MESSAGE}<b></b></p><p>Hi</p>"),
        ("markdown", "# You **idiot** x\n\n- Hi", f"# {MESSAGE}\n\n- Hi"),
        ("csv", 'a b,"you idiot"\n', f'a b,"{MESSAGE}"\n'),
        ("email", "> You idiot\n\nHi", f"> {MESSAGE}\n\nHi"),
        ("transcript", "Bob: you idiot\nAnn: hi", f"Bob: {MESSAGE}\nAnn: hi"),
        ("text", "You idiot. Hi.", MESSAGE),
    ],
)
def test_a_part_that_cannot_be_made_safe_is_withheld(
    format_: Format, text: str, released: str
) -> None:
    result = guard(ladder=("block",)).moderate(text, format=format_)
    check(result)
    assert result.text == released
    assert (result.action, result.safe) == ("block", True)
    assert [edit.action for edit in result.edits] == ["block"]


@pytest.mark.parametrize(
    ("mask", "format_", "text", "released"),
    [
        ("<b>&", "html", "<p>you idiot", "<p>you &lt;b&gt;&amp;"),
        ('"\\\n\x07', "json", '["you idiot"]', '["you \\"\\\\\\n\\u0007"]'),
        ('"', "csv", '"you idiot",x', '"you """,x'),
        ("`", "markdown", "`a` you idiot `b`", "`a` you \\` `b`"),
        ("*x*", "markdown", "you idiot", "you \\*x\\*"),
        ("\n\nAnn: x", "transcript", "Bob: you idiot\nAnn: hi", "Bob: ?\nAnn: hi"),
        ("\n> x", "email", "a\n\nyou idiot", "a\n\n?"),
    ],
)
def test_what_is_put_in_is_spelled_as_text(
    mask: str, format_: Format, text: str, released: str
) -> None:
    strict = guard(ladder=("mask", "block"), mask_text=mask, block_message="?")
    assert strict.rewrite(text, format=format_) == released


def test_emphasis_goes_with_its_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.byte_engine.GREEDY", "")
    rewritten = guard().moderate("He is a ***stupid*** man of **fine** ways.", format="markdown")
    assert rewritten.text.replace("  ", " ") == "He is a man of **fine** ways."
    assert rewritten.action == "rewrite"


def test_other_languages_are_unverified_part_by_part() -> None:
    german = "Das ist ein ganz normaler deutscher Satz, den hier niemand verstehen kann."
    text = json.dumps({"de": german, "en": "You idiot"})
    result = guard().moderate(text, format="json")
    assert json.loads(result.text) == {"de": german, "en": "You person"}
    assert not result.safe
    assert result.before.language == "de"
    blocked = guard(unverified="block").moderate(text, format="json")
    assert json.loads(blocked.text) == {"de": MESSAGE, "en": "You person"}
    assert guard().moderate(json.dumps([german]), format="json").action == "unverified"


def test_failures_end_as_the_policy_says() -> None:
    text = '["You idiot", "Fine text"]'
    closed = guard(ByteEngine(fault="raise", only="Fine")).moderate(text, format="json")
    assert json.loads(closed.text) == ["You person", MESSAGE]
    assert closed.errors
    fail_open = guard(ByteEngine(fault="raise"), fail_open=True).moderate(text, format="json")
    assert fail_open.text is text
    assert (fail_open.action, fail_open.safe) == ("unverified", False)


@pytest.mark.parametrize("mask", [False, True])
def test_a_part_that_is_released_unverified_counts_for_more_than_an_edit(mask: bool) -> None:
    text, ladder = '["You idiot", "Fine text"]', ("mask",) if mask else ("rewrite",)
    broken = ByteEngine(fault="raise", only="Fine")
    result = guard(broken, fail_open=True, ladder=ladder).moderate(text, format="json")
    released = ["You [removed]" if mask else "You person", "Fine text"]
    assert (json.loads(result.text), result.action, result.safe) == (released, "unverified", False)
    assert [edit.action for edit in result.edits] == ["mask" if mask else "rewrite"]
    assert result.errors
    german = "Das ist ein ganz normaler deutscher Satz, den hier niemand verstehen kann."
    mixed = guard().moderate(json.dumps(["You idiot", german]), format="json")
    assert (mixed.action, mixed.safe) == ("unverified", False)


def test_an_unsafe_part_that_may_pass_counts_for_more_than_an_edit() -> None:
    passing = guard(ladder=("mask",), mask_text="a,b", fail_open=True, on_fail="pass")
    result = passing.moderate('you idiot,"you idiot"\n', format="csv")
    assert result.text == 'you idiot,"you a,b"\n'
    assert (result.action, result.safe, result.errors) == ("unverified", False, ())


def test_a_part_that_is_blocked_counts_for_most() -> None:
    engine = ByteEngine(fault="raise", only="Fine")
    both = guard(engine, fail_open=True, ladder=("block",), on_block="raise")
    text = '["You idiot", "Fine text"]'
    result = both.moderate(text, format="json")
    assert json.loads(result.text) == [MESSAGE, "Fine text"]
    assert (result.action, result.safe) == ("block", False)
    with pytest.raises(Blocked):
        both.rewrite(text, format="json")


def test_observing_changes_nothing() -> None:
    text = "<p>You <b>idiot</b>"
    result = guard(mode="observe").moderate(text, format="html")
    assert result.text is text
    assert result.before.unsafe


@pytest.mark.parametrize(
    ("format_", "text", "where"),
    [
        ("json", '{"a": idiot}', "line 1, column 7"),
        ("json", "", "line 1, column 1"),
        ("json", "[" * 100_000, "nested too deeply"),
        ("ndjson", '{}\n{"a"}', "line 2"),
        ("csv", 'a,b\n"idiot,c', "line 2"),
    ],
)
def test_a_text_that_is_not_of_the_format(format_: Format, text: str, where: str) -> None:
    with pytest.raises(FormatError, match=where) as caught:
        guard().moderate(text, format=format_)
    assert "idiot" not in str(caught.value)
    assert 'format="auto"' in caught.value.hint


def test_an_unknown_format() -> None:
    with pytest.raises(ConfigError, match="Unknown format 'yaml'"):
        guard().moderate("a: b", format="yaml")  # type: ignore[arg-type]


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    html_text._parser.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "tinyhtml5.parser", None)
    with pytest.raises(MissingExtra, match="structure"):
        guard().moderate("<p>idiot", format="html")
    assert guard().rewrite("<p>you idiot", format="auto") == "<p>you person"
    html_text._parser.cache_clear()


@pytest.mark.parametrize(
    ("text", "format_"),
    [
        ('\n{"a": 1}', "json"),
        ('{"a": 1}\n{"a": 2}\n', "ndjson"),
        ("{curly} text", "text"),
        ("<!doctype html><p>x", "html"),
        ("From: a\nSubject: b\n\nHi", "email"),
        ("Yes.\n> a\n> b", "email"),
        ("# Title\n\ntext", "markdown"),
        ("---\na: b\n---\nText", "markdown"),
        ("Bob: hi\nAnn: ho", "transcript"),
        ("Just a sentence, or two. x < y", "text"),
        ("Women: weak\nMen: strong", "text"),
        ("---\nYou idiot\n---\n", "text"),
        ("---\n- You idiot.\n---\n", "text"),
        ("---\n\n You idiot: yes\n---\n", "text"),
        ("---\n  You idiot.\n---\n", "text"),
        ("---\nYou are a fool: yes\n---\n", "text"),
        ("+++\n  You idiot.\n+++\n", "text"),
        ("---\n\ntags:\n- a\n\n# b\n'last seen': c\n---\n", "markdown"),
        ('+++\n[extra]\na = "b"\n+++\n', "markdown"),
    ],
)
def test_auto_tells_the_format(text: str, format_: Format) -> None:
    assert guess(text) == format_
    assert read(text, "auto").text == text


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("You are here", True),
        ("Idiot!", True),
        ("Idiot", True),
        ("了不起", True),
        ("#KillThem #AllOfThem", True),
        ("#KillAllOfThem", True),
        ("user{id}name", False),
        ("#Idiot", True),
        ("you·are·an·idiot", True),
        ("don't,idiot", True),
        ("idiot", False),
        ("#idiot", False),
        ("idiot_and-idiot/idiot.idiot", False),
        ("data:idiot;base64,aWRpb3Q3", False),
        ("in_progress", False),
        ("PENDING", False),
        ("https://a.io/idiot b@idiot.com", False),
        ("2024-01-02 10:00", False),
        ("d41d8cd98f00b204e9800998ecf8427e", False),
        ("", False),
        ("12 kg", False),
    ],
)
def test_what_prose_is(text: str, prose: bool) -> None:
    assert is_prose(text) is prose


@pytest.mark.parametrize(
    "hidden",
    [
        *("<!--> {} <!-- -->", "<!-- --!> {} <!-- -->"),
        *("<script></script/> {} <p>", "<script></script a> {}"),
    ],
)
def test_html_hides_nothing_that_a_browser_shows(byte_guard: Guard, hidden: str) -> None:
    assert byte_guard.rewrite(hidden.format("you idiot"), format="html") == hidden.format(
        "you person"
    )


def test_html_that_names_a_file_is_still_a_text(byte_guard: Guard) -> None:
    assert byte_guard.rewrite("README.md", format="html") == "README.md"


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("json", '{"a":[' + '"\\"x\\"",' * 20_000 + "1]}"),
        ("csv", '"a ""b""",c\n' * 10_000),
        ("markdown", "*a **b `" * 3_000),
        ("markdown", "[a](" * 3_000),
        ("html", "<p>a &amp; <b>b" * 2_000),
        ("html", "<" * 50_000),
        ("html", "<!--" * 20_000),
        ("email", ">" * 50_000 + "\n" + "> a\n" * 10_000),
        ("transcript", "a" * 50_000 + "\n" + "Bob: a\n" * 10_000),
        ("markdown", "---\n" + "a: b\n" * 20_000),
        ("markdown", "---\n" + "- a: b\n" * 2_000),
        ("markdown", "---\na: b\n" + "- a: b\n" * 2_000),
        ("markdown", "---\n" + "\n \n" * 20_000),
        ("transcript", "00:01 --> 00:02" + " line:1" * 10_000 + "\n" + "10:30 " * 10_000),
        ("auto", "-" * 50_000),
        ("auto", "](" * 20_000 + "**a" * 20_000),
        ("json", json.dumps(["a" * 5_000 + "1", "'-" * 5_000, "a-" * 5_000 + "1", "a," * 5_000])),
    ],
)
def test_reading_takes_no_longer_than_the_text(format_: Format, text: str) -> None:
    start = time.process_time()
    assert read(text, format_).text is text
    assert time.process_time() - start < 6


def test_async_twins(byte_guard: Guard) -> None:
    text = '["You idiot"]'

    async def run() -> tuple[str, Moderation, bool]:
        return (
            await byte_guard.arewrite(text, format="json"),
            await byte_guard.amoderate(text, format="json"),
            (await byte_guard.adetect(text, format="json")).unsafe,
        )

    assert asyncio.run(run()) == ('["You person"]', byte_guard.moderate(text, format="json"), True)
