from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srllm_guard.text.normalize import View, fold, view

NASTY = st.text(
    alphabet=st.sampled_from(
        list(
            "aAbsStIiXx013457@$!|+ .-_\n\t\x00\x1b\u200b\u200c\u200d\u00ad\u0301\u0336\ufe0f\ud800"
        )
        + list("éеоѕаПриαΩｓ𝓼ﬁⓢ⒜🅾😀👨ꜱ½™\u00a0\u3000©İßŉ")
    ),
    max_size=60,
)
ANY = st.one_of(NASTY, st.text(max_size=60))


def check(seen: View, original: str) -> None:
    assert len(seen.offsets) == len(seen.text) + 1
    assert seen.offsets[-1] == len(original)
    assert all(a <= b for a, b in pairwise(seen.offsets))
    assert all(0 <= offset < len(original) for offset in seen.offsets[:-1])
    for at in range(len(seen.text)):
        start, end = seen.original(at, at + 1)
        assert 0 <= start < end <= len(original)


@settings(max_examples=400, deadline=None)
@given(ANY)
def test_offsets_index_the_original(text: str) -> None:
    check(view(text), text)
    check(fold(text), text)


@settings(max_examples=600, deadline=None)
@given(ANY)
def test_fold_is_idempotent(text: str) -> None:
    once = fold(text).text
    assert fold(once).text == once


@settings(max_examples=200, deadline=None)
@given(ANY)
def test_view_is_idempotent_and_encodable(text: str) -> None:
    once = view(text).text
    once.encode("utf-8")
    assert view(once).text == once


def test_view_changes_only_what_it_must() -> None:
    assert view("Tab\tline\r\nend é 😀").text == "Tab\tline\r\nend é 😀"
    assert view("a\x00b\x1bc\x85d\x7f").text == "a b c d "
    assert view("x\ud800y").text == "x\ufffdy"
    seen = view("a" * 40 + "b")
    assert seen.text == "a" * 16 + "b"
    assert seen.original(0, 16) == (0, 40)
    assert seen.original(16, 17) == (40, 41)
    assert view("a" * 16).text == "a" * 16


@pytest.mark.parametrize(
    ("disguised", "plain"),
    [
        ("st00pid", "stoopid"),
        ("1d10t", "idiot"),
        ("@sshole", "asshole"),
        ("h4te", "hate"),
        ("a$$", "ass"),
        ("k!ll", "kill"),
        ("5h1t", "shit"),
        ("SH1T", "SHIT"),
        ("1oser", "loser"),
        ("b@stard", "bastard"),
        ("r3t4rd!", "retard!"),
        ("you $tupid b!tch.", "you stupid bitch."),
        ("s t u p i d", "stupid"),
        ("so s.t.u.p.i.d.", "so stupid."),
        ("s-t-u-p-i-d!", "stupid!"),
        ("k i l l  y o u r s e l f", "kill  yourself"),
        ("stuuuupid nooo", "stuupid noo"),
        ("ѕtuріd", "stupid"),
        ("you сосо are", "you coco are"),
        ("ｓｔｕｐｉｄ", "stupid"),
        ("𝓼𝓽𝓾𝓹𝓲𝓭", "stupid"),
        ("ꜱᴛᴜᴘɪᴅ", "stupid"),
        ("ﬁlth ⓢⓣⓤⓟⓘⓓ", "filth stupid"),
        ("w🅾️men", "women"),
        ("b1t©h", "bitch"),
        ("n0️⃣nsense", "nonsense"),
        ("s\u200bt\u00adu\u2060pid", "stupid"),
        ("s\u200b \u200bt u p i d", "stupid"),
        ("s\u0336\u0337t\u0335u\u0336\u0337\u0338pid", "stupid"),
        ("cafe\u0301", "café"),
        ("❤\ufe0f", "❤"),
        ("a\u00a0b\u3000c", "a b c"),
    ],
)
def test_disguises_are_undone(disguised: str, plain: str) -> None:
    assert fold(disguised).text == plain


ORDINARY = [
    "B2B", "5G", "mp3", "covid19", "H2O", "3rd", "e-mails", "C3PO", "10am", "COVID-19", "R2D2",
    "@anna is here", "ask @b0b_smith", "mail a@b.com or foo.bar@baz.org", "US$50 and A$150k",
    "Yahoo! C++ $HOME", "4x4 1on1 i18n w3c x86 sha256 1080p 24/7 4chan utf8 win10 iPhone5s",
    "U.S.A. and N.A.T.O.", "vitamins a b c d e", "a-b-c-d", "www III XXIII LXXXVIII mmm",
    "the α value, ½ cup, Acme™ … 5 µm", "naïve café", "👨‍👩‍👧 🏳‍🌈", "wait, what?! no!stop",
    "Привет мир, это ВВС и мама", "сосо", "Ελλάδα είναι ωραία", "你好，世界", "می‌خواهم",
    "The meeting is at 10:30 on 5 May 2024; bring 3 copies (A4) and £3.50.",
    "He said, “It’s 20% cheaper — isn’t it?” and left.",
    "Mr. Smith's e-mail address changed; see https://example.com/a1b2?q=3.",
    "I'm 5'10\" and weigh 70 kg, so what? Visit Room 4B, please...",
]  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays(text: str) -> None:
    assert fold(text).text == view(text).text == text


def test_folded_spans_map_back() -> None:
    text = "you are so s t u p i d, ѕtu\u200bріd st\u200b00pid ﬁend"
    seen = fold(text)
    at = seen.text.index("stupid")
    assert text[slice(*seen.original(at, at + 6))] == "s t u p i d"
    at = seen.text.index("stupid", at + 1)
    assert text[slice(*seen.original(at, at + 6))] == "ѕtu\u200bріd"
    at = seen.text.index("stoopid")
    assert text[slice(*seen.original(at, at + 7))] == "st\u200b00pid"
    at = seen.text.index("fiend")
    assert text[slice(*seen.original(at, at + 1))] == "ﬁ"
    assert text[slice(*seen.original(at, at + 5))] == "ﬁend"
    assert seen.original(3, 3) == (3, 3)


@pytest.mark.parametrize(
    "unit",
    ["a", "s t ", "@a", "1a", "é", "а b ", "e\u0301", "👨\u200d", "ѕt ", "аа ", "a.", "A1a1 ",
     "aaab", "\x00", "\ud800", "a$", "$$a "],
)  # fmt: skip
def test_time_is_linear(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    started = time.process_time()
    fold(text)
    assert time.process_time() - started < 15


def test_view_is_frozen() -> None:
    with pytest.raises(AttributeError):
        view("x").text = "y"  # type: ignore[misc]
