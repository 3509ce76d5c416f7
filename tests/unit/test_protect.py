from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srllm_guard.text.protect import missing, protected


def parts(text: str, *, quotations: bool = False) -> list[tuple[str, str]]:
    found = protected(text, quotations=quotations)
    return [(part.kind, text[part.start : part.end]) for part in found]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("code", "Use `foo(1)` and ``a`b``, don`t or can`t.", ["`foo(1)`", "``a`b``"]),
        ("code", "A\n```\nx = 5\n```\nB", ["```\nx = 5\n```"]),
        ("url", "See https://x.com/a_(b)?c=d#e. (http://y.org/z)", None),
        (
            "url",
            "www.foo.bar, example.co.uk/path idiot.it is",
            ["www.foo.bar", "example.co.uk/path"],
        ),
        ("email", "Mail a.b+c@d-e.co.uk.", ["a.b+c@d-e.co.uk"]),
        ("path", "/usr/local/bin ~/x ./run.sh src/main.py report.pdf", None),
        ("path", r"C:\Users\me\a.txt \\srv\share\x", None),
        ("path", "and/or he/she 24/7 km/h w/o I/O /s </b>", []),
        ("date", "2024-03-12T10:30:00Z, 12 March 2024; 3rd of May, 12/03/2024", None),
        ("date", "March 5, 2021; Oct. 3; 10:30, 5 p.m., 10am, May 2020", None),
        ("date", "you may 5 times", []),
        ("number", "5 kg, 20 km/h, £3.50, 10%, 3rd, -5 °C, 1,234.56, $5 million", None),
        ("number", "20-year-old, 1990s, 5G, CHF 4,350, #1, 1/2, v2.0", None),
        ("number", "B2B mp3 covid19 1d10t 4ever gr8 h4te", []),
        ("mention", "@anna and @an.na, @user@host.tld u/Bob", None),
        ("mention", "you @sshole, @ll of you", []),
        ("hashtag", "#hash #2a a#b #1", ["#hash", "#2a"]),
        ("placeholder", "{name} {{x y}} %s %(n)d ${VAR} [NAME] [FIRST NAME] {0}", None),
        ("placeholder", "100% sure [removed] { a }", []),
    ],
)
def test_kinds(kind: str, text: str, expected: list[str] | None) -> None:
    found = [part for what, part in parts(text) if what == kind]
    if expected is None:  # all of the text but its joints
        assert found
        for part in found:
            text = text.replace(part, "", 1)
        left = text.replace("See ", "").replace("and ", "").replace("old", "").replace("()", "")
        assert left.strip(" ,;.-") == ""
        assert not any(character.isalnum() for character in left)
    else:
        assert found == expected


def test_quotations_only_on_request() -> None:
    text = 'He said "shut up now", “no way man”, «oui oui», ‘it’s me’ and "one". 5\'10" or 5" it'
    assert not [part for kind, part in parts(text) if kind == "quotation"]
    found = [part for kind, part in parts(text, quotations=True) if kind == "quotation"]
    assert found == ["shut up now", "no way man", "oui oui", "it’s me"]


def test_the_first_and_the_longest_wins() -> None:
    assert parts("12 March 2024") == [("date", "12 March 2024")]
    assert parts("https://x.com/2024-01-01/a@b.co") == [("url", "https://x.com/2024-01-01/a@b.co")]
    assert parts("`@bob 5 kg`") == [("code", "`@bob 5 kg`")]


def test_missing() -> None:
    original = "Ask @bob for 5 kg by 12 March, see https://x.com. He is 20 years old. 5 kg!"
    assert missing(original, original) == ()
    lost = missing(original, "Ask Bob for 5kg by 12 March. He is a 20-year-old.")
    assert [original[part.start : part.end] for part in lost] == ["@bob", "https://x.com", "5 kg"]
    assert lost[-1].start == original.rindex("5 kg")
    assert missing("1,200 cats", "1200 cats") == ()
    assert missing("5 of them", "5 kg of them") == ()
    assert [part.kind for part in missing("5 and 3.5", "50 and 13.55")] == ["number", "number"]
    assert missing("no facts", "") == ()


def test_missing_skips_ranges() -> None:
    original = "You 12 fools, pay 5 euros."
    assert [p.start for p in missing(original, "Pay 5 euros.")] == [4]
    assert missing(original, "Pay 5 euros.", skip=[(4, 12)]) == ()


def test_missing_quotations() -> None:
    original = "He said “not my job” twice."
    assert missing(original, "He declined twice.") == ()
    assert [p.kind for p in missing(original, "He declined.", quotations=True)] == ["quotation"]
    assert missing(original, 'He said "not my job".', quotations=True) == ()


NASTY = st.text(
    alphabet=st.sampled_from(list("aA1 /\\.:@#`\"“”‘’«»{}[]%$£-,'()\n\tkg~é٣😀\x00\ud800")),
    max_size=80,
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(NASTY, st.text(max_size=80)), st.booleans())
def test_offsets(text: str, quotations: bool) -> None:
    found = protected(text, quotations=quotations)
    assert all(0 <= part.start < part.end <= len(text) for part in found)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert missing(text, text, quotations=quotations) == ()


@settings(max_examples=200, deadline=None)
@given(st.one_of(NASTY, st.text(max_size=80)))
def test_what_an_empty_rewrite_lacks_is_everything(text: str) -> None:
    assert missing(text, "") == protected(text)


@pytest.mark.parametrize(
    "unit",
    ["a", "1", "1 ", "1,", "a.", "a/", "/", "@a", "a@", "#1", "{", "{{", "[A", "`", "` ", '"a b',
     "“a b", "‘a b ", "http://)", "1/1", "1:1:", "Jan ", "12 of ", "C:\\", "~", "%(", "a+", "\t",
     "- "],
)  # fmt: skip
def test_time_is_linear(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    started = time.process_time()
    protected(text, quotations=True)
    assert time.process_time() - started < 15
