"""Views of a text for a reader that must not be fooled by its spelling.

`view` is the minimal view that a model reads; `fold` also undoes the usual disguises of a word
(look-alike letters, zero-width characters, leetspeak, s p a c e d letters). Both know for every
character where it stands in the original, so that what is found in a view can be marked, masked
or rewritten in the text itself. Neither is ever released: they serve detection only.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from srllm_guard.text import confusables as table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["View", "fold", "fold_in_turn", "view"]

LONGEST_RUN = 16
"""How many identical characters in a row a view keeps."""

AMONG = 200
"""How many characters before a sentence tell what its look-alike letters stand among."""

_MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class View:
    """A text derived from an original, with the place of each character in the original."""

    text: str
    """What is read; never longer than a few times the original."""
    offsets: tuple[int, ...]
    """For each character of `text` its index in the original, then the length of the original.

    Never decreasing; `len(text) + 1` entries.
    """

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Map a range of the view to the range of the original that it was made from.

        Characters that the view dropped belong to the character before them. The result is empty
        only where `start == end`.
        """
        first = self.offsets[start]
        if start >= end:
            return first, first
        while end < len(self.text) and self.offsets[end] == self.offsets[end - 1]:
            end += 1  # one original character gave several: all of them or none
        return first, self.offsets[end]


_Edit = tuple[
    int, int, str, "Iterable[int]"
]  # start, end, new text, source index of each character

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_OTHER_SCRIPT = re.compile(r"[^\W\d_\x00-\u024f\u1e00-\u1eff]")
_RUN = re.compile(rf"(.)\1{{{LONGEST_RUN},}}", re.DOTALL)


def view(text: str) -> View:
    """The text as a model reads it: the same but for what would break or swamp a tokenizer.

    Lone surrogates become U+FFFD, C0 and C1 controls other than tab and line ends become spaces,
    and of more than 16 identical characters in a row 16 are kept.
    """
    return _minimal(View(text, tuple(range(len(text) + 1))))


def fold(text: str) -> View:
    """The text with the disguises of its words undone, for detection.

    Folded are: full-width, mathematical, circled and small-capital letters, ligatures and odd
    spaces; zero-width characters, soft hyphens, variation selectors and stacked combining marks
    (a single mark that composes stays: é); Cyrillic, Greek and other look-alikes in words that
    mix scripts and in words of look-alikes only that stand among Latin ones (a text in another
    script does not change); four or more single letters with the same separator (`s t u p i d`,
    `s-t-u-p-i-d`; not `A.C.M.E.` nor a-b-c-d); digits and signs for letters (`st00pid`, `k!ll`,
    `a$$`, `1d10t`; not `B2B`, `mp3`, `10am`, `C3PO`); letters repeated more than twice.

    An `@` at the start of a word begins a mention and stays, unless the word is one of a short
    list (`@sshole`, `@ll`). The joiner U+200D stays inside of emoji sequences and of scripts that
    need it, and goes beside Latin letters. Folding twice is folding once.
    """
    seen = view(text)
    for _ in range(_MAX_ROUNDS):  # one disguise may hide another: zero-width inside of spaced
        before = seen.text
        for edits in _EDITS:
            seen = _splice(seen, edits(seen.text))
        seen = _minimal(seen)
        if seen.text == before:
            break
    return seen


def fold_in_turn(text: str, ends: Sequence[int]) -> View:
    """`fold` of each sentence, in which what follows it has no say.

    What stands before a sentence has one where it holds letters of another script: look-alikes are
    told by the Latin words that they stand among.

    Args:
        text: what is read.
        ends: where its sentences end, in order; the last of them is the end of the text.
    """
    parts: list[str] = []
    offsets: list[int] = []
    last = 0
    starts = (0, *ends)
    for end in ends:
        first = last
        if _OTHER_SCRIPT.search(text, last, end):
            first = starts[bisect_left(starts, last - AMONG)]
        seen = fold(text[first:end])
        at = bisect_left(seen.offsets, last - first)
        parts.append(seen.text[at:])
        offsets += (first + offset for offset in seen.offsets[at:-1])
        last = end
    return View("".join(parts), (*offsets, len(text)))


def _minimal(seen: View) -> View:
    text = _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", seen.text))
    return _splice(
        View(text, seen.offsets), (_keep_first(match, LONGEST_RUN) for match in _RUN.finditer(text))
    )


def _keep_first(match: re.Match[str], count: int) -> _Edit:
    start = match.start()
    return start, match.end(), match.group()[:count], range(start, start + count)


def _splice(seen: View, edits: Iterable[_Edit]) -> View:
    """Apply edits, given in order and without overlap."""
    parts: list[str] = []
    offsets: list[int] = []
    last = 0
    for start, end, new, sources in edits:
        parts += (seen.text[last:start], new)
        offsets += seen.offsets[last:start]
        offsets += (seen.offsets[source] for source in sources)
        last = end
    if not last:
        return seen
    parts.append(seen.text[last:])
    offsets += seen.offsets[last:]
    return View("".join(parts), tuple(offsets))


# Characters.

_FOREIGN = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]++")
_GONE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e01ef]"
)
# Blocks whose compatibility mappings are letters in disguise; elsewhere (½, ™, …) they are not.
_STYLED = re.compile(
    "[\u00aa\u00ba\u02b0-\u02b8\u02e1-\u02e3\u1d2c-\u1d6a\u1d43-\u1d61\u2071\u207f\u2090-\u209c"
    "\u2102-\u2115\u2118-\u211d\u2124-\u2139\u2145-\u2149\u249c-\u24ff\ufb00-\ufb06\uff04"
    "\uff10-\uff19\uff20-\uff3a\uff41-\uff5a\U0001d400-\U0001d7ff\U0001f110-\U0001f149]"
)


@lru_cache(maxsize=8192)
def _character(character: str) -> str:
    """What one character that is not ASCII is folded to."""
    if _GONE.match(character):
        return ""
    if mapped := table.ALWAYS.get(character):
        return mapped
    if character.isspace():
        return character if character in "\u2028\u2029" else " "
    if _STYLED.match(character):
        plain = unicodedata.normalize("NFKC", character)
        return plain[1] if len(plain) == 3 and plain[0] == "(" else plain  # ⒜ is (a)
    return character


def _characters(text: str) -> Iterator[_Edit]:
    for match in _FOREIGN.finditer(text):
        start, end = match.span()
        out: list[str] = []
        sources: list[int] = []
        at = start
        while at < end:
            base = _character(text[at]) if text[at] > "\x7f" else text[at]
            past = at + 1
            marks = ""
            while past < end and unicodedata.category(text[past]) in ("Mn", "Me"):
                marks += _character(text[past]) if len(marks) < 8 else ""
                past += 1
            if base in ("\u200c", "\u200d") and any(
                map(_is_latin, (*out[-1:], text[past : past + 1]))
            ):
                base = ""
            if marks and base:
                base = _with_marks(base, marks)
            out += base
            sources += (min(at + i, past - 1) for i in range(len(base)))
            at = past
        new = "".join(out)
        if new != match.group():
            yield start, end, new, sources


def _with_marks(base: str, marks: str) -> str:
    """A letter with combining marks: composed if that is one character, bare if Latin."""
    composed = unicodedata.normalize("NFC", base[-1] + marks)
    if len(composed) == 1:
        return base[:-1] + composed
    return base if _is_latin(base[-1]) else base + marks[:3]


def _is_latin(character: str) -> bool:
    return character < "\u0250" or "\u1e00" <= character <= "\u1eff"


# Words in look-alike letters.

_WORD = re.compile(r"[^\W\d_]++")


def _homoglyphs(text: str) -> Iterator[_Edit]:
    matches = () if text.isascii() else _WORD.finditer(text)
    words = [(match.start(), match.group()) for match in matches]
    latin = foreign = 0
    for _, word in words:
        if all(map(_is_latin, word)):
            latin += len(word)
        elif not any(map(_is_latin, word)) and not all(c in table.HOMOGLYPHS for c in word):
            foreign += len(word)
    if foreign <= latin:  # else a text in another script
        yield from _among_latin(words)


def _among_latin(words: list[tuple[int, str]]) -> Iterator[_Edit]:
    waiting: list[tuple[int, str]] = []  # words of look-alikes only, since the last Latin word
    after_latin = True
    for start, word in words:
        strange = [c for c in word if not _is_latin(c)]
        if len(strange) == len(word):
            if len(word) > 1 and all(c in table.HOMOGLYPHS for c in word):
                waiting.append((start, word))
            else:
                waiting.clear()
                after_latin = False
            continue
        if after_latin:
            yield from (_letters(at, pure, table.HOMOGLYPHS) for at, pure in waiting)
        waiting.clear()
        after_latin = True
        if strange and all(c in table.NEAR_HOMOGLYPHS for c in strange):
            yield _letters(start, word, table.NEAR_HOMOGLYPHS)
    if after_latin and len(waiting) < len(words):
        yield from (_letters(at, pure, table.HOMOGLYPHS) for at, pure in waiting)


def _letters(start: int, word: str, mapping: dict[str, str]) -> _Edit:
    end = start + len(word)
    return start, end, "".join(mapping.get(c, c) for c in word), range(start, end)


# Spaced letters.

_SPACED = re.compile(
    r"(?<![\w@$])[A-Za-z@$]([ .\-_*·•/,~|])[A-Za-z0134@$57!](?=\1)"
    r"(?:\1[A-Za-z0134@$57!](?![\w@$]|(?!\1)[-'’._*/]\w))++"
)


def _spaced(text: str) -> Iterator[_Edit]:
    for match in _SPACED.finditer(text):
        start, end = match.span()
        joined = text[start:end:2]
        if joined[-1] == "!":
            end, joined = end - 2, joined[:-1]
        letters = sum(map(str.isalpha, joined))
        steps = {ord(b) - ord(a) for a, b in pairwise(joined)}
        acronym = match.group(1) == "." and joined.isupper() and len(joined) < 6
        if len(joined) > 3 and 3 * letters >= 2 * len(joined) and steps != {1} and not acronym:
            yield start, end, joined, range(start, end, 2)


# Digits and signs for letters.

_TOKEN = re.compile(r"(?<![\w@$!|+€©®])[\w@$!|+€©®]++")
_TRIM = re.compile(r"[!|+]++\Z")
_INNER_DIGIT = re.compile(r"[^\W\d_][013457]+[^\W\d_]{2,}\Z")
_UNLIKELY = re.compile(r"[bcdfghjklmnpqrstvwxz]{5}|[aeiou]{5}|\A[^aeiouy]+\Z")
_BOTH = {**table.LEET, **table.LEET_SIGNS}
_TO_I = str.maketrans(_BOTH)
_TO_L = str.maketrans({**_BOTH, "1": "l"})


def _leet(text: str) -> Iterator[_Edit]:
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token.isalpha() or token.isdigit() or len(token) > 40:
            continue
        word = _TRIM.sub("", token)
        plain = _plain(word, text[match.end() : match.end() + 2])
        if plain != word:
            end = match.start() + len(word)
            yield match.start(), end, plain, range(match.start(), end)


def _plain(word: str, following: str) -> str:
    """A word with its digits and signs read as letters, or as it was."""
    if not any(map(str.isalpha, word)) or word.isalpha() or len(word.lower()) != len(word):
        return word  # lower() is longer for a few letters
    if word[0] == "@":
        if word[1:].lower() not in table.AT_WORDS:
            return word  # a mention
        return _recase(word, word.translate(_TO_I))
    if "@" in word[1:] and following[:1] == "." and following[1:].isalnum():
        return word  # an e-mail address
    for mapping in (_TO_I, _TO_L):
        mapped = word.lower().translate(mapping)
        if mapped.isalpha() and (
            mapped in table.LEET_WHOLE or any(stem in mapped for stem in table.LEET_STEMS)
        ):
            return _recase(word, mapped)
    return _recase(word, word.translate(_TO_I)) if _is_leet(word) else word


def _is_leet(word: str) -> bool:
    """Whether a word without a known stem is spelled with digits or signs, judged by its shape."""
    mapped = word.lower().translate(_TO_I)
    letters = sum(map(str.isalpha, word))
    if not mapped.isalpha() or _UNLIKELY.search(mapped) or word.lower() in table.NOT_LEET:
        return False
    if set("|+") & set(word) or not (word[0].isalpha() and word.rstrip("$")[-1:].isalpha()):
        return False
    if any(map(str.isdigit, word)):
        name = len(word) < (6 if word.isupper() else 4)
        return not name and 10 * letters >= 6 * len(word) and bool(_INNER_DIGIT.search(word))
    for sign in "@!©®":
        left, _, right = word.partition(sign)
        if right and (letters < 3 or min(len(left), len(right)) > (2 if sign == "@" else 1)):
            return False
    head = word.rstrip("$")
    return letters > 1 or (len(head) == 1 and word.endswith("$$") and head.islower())


def _recase(word: str, mapped: str) -> str:
    upper = word.isupper() and sum(map(str.isalpha, word)) > 1
    pairs = zip(word, mapped, strict=True)
    return "".join(a if a.isalpha() else b.upper() if upper else b for a, b in pairs)


# Stretched letters.

_STRETCH = re.compile(r"([A-Za-z])\1{2,}", re.IGNORECASE)
_ROMAN = re.compile(r"\b[IVXLCDM]{4,}\b")


def _stretched(text: str) -> Iterator[_Edit]:
    for match in _STRETCH.finditer(text):
        start, end = match.span()
        around = text[max(0, start - 8) : end + 8]
        alone = not any(map(str.isalpha, text[max(0, start - 1) : start] + text[end : end + 1]))
        if end - start == 3 and (alone or _ROMAN.search(around)):
            continue  # www, III, LXXXVIII
        yield _keep_first(match, 2)


_EDITS: tuple[Callable[[str], Iterator[_Edit]], ...] = (
    _characters, _homoglyphs, _spaced, _leet, _stretched,
)  # fmt: skip
