"""Which words of a text did its rewrites take away? A word diff, with code-point spans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

_WORD = re.compile(r"[$@*#]*\w+(?:[*@$#!]+\w+)*[*$#@]*")
"""A word, with the signs that hide letters of it ("$hit", "f**k", "a$$")."""

_FUNCTION = """
a an and are as at be been but by d did do does dont for from had has have he her him his i if im in
is it its just ll m me my n not of on or our re s she so some such t than that thats the their them
then there these they this those to too u up ur us ve was we were what when which who will wit with
would you your youre youve
"""
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
"""Words that alone say nothing; annotators change them in passing."""


class Word(NamedTuple):
    """One word: where it stands, end exclusive, and the form in which it is compared."""

    start: int
    end: int
    key: str


def words(text: str) -> list[Word]:
    """The words of a text; case and the punctuation between words do not count."""
    return [
        Word(match.start(), match.end(), match.group().casefold().strip("*#@_"))
        for match in _WORD.finditer(text)
    ]


def same_words(text: str, other: str) -> bool:
    """Whether two texts differ in case, white space and punctuation only."""
    return _joined(words(text)) == _joined(words(other))


def removed_spans(text: str, rewrites: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Spans (start, end exclusive) of the words that every rewrite deletes or replaces.

    Neighbouring words make one span; a span of function words only is left out. Without rewrites
    nothing is removed.
    """
    source = words(text)
    removed: set[int] | None = None
    for rewrite in rewrites:
        gone = _removed(source, words(rewrite))
        removed = gone if removed is None else removed & gone
    runs: list[list[Word]] = []
    for index in sorted(removed or ()):
        word = source[index]
        if index - 1 in (removed or ()) and _joinable(text[source[index - 1].end : word.start]):
            runs[-1].append(word)
        else:
            runs.append([word])
    return tuple(
        (run[0].start, run[-1].end)
        for run in runs
        if any(word.key not in _FUNCTION_WORDS for word in run)
    )


def _removed(source: Sequence[Word], target: Sequence[Word]) -> set[int]:
    left, right = [word.key for word in source], [word.key for word in target]
    gone: set[int] = set()
    for tag, i, j, k, m in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        # "dont" for "don 't" is another spelling of the same word.
        if tag in ("delete", "replace") and _joined(source[i:j]) != _joined(target[k:m]):
            gone.update(range(i, j))
    return gone


def _joined(found: Sequence[Word]) -> str:
    return "".join(word.key for word in found)


def _joinable(gap: str) -> bool:
    """Whether what stands between two words joins them: no sentence end, no line end."""
    return not any(sign in gap for sign in ".!?;:\n\r")
