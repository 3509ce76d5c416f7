"""Deletion: a segment without its unsafe phrases, tidied so that it still is a sentence.

A detector marks the words that hurt, seldom the whole of what has to go with them: "by lazy
plumbers" leaves "by" behind. So each phrase is cut in several ways, from the bare phrase to its
whole clause, and whoever calls chooses among the results.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product

from srllm_guard.prompt import Range

MOST = 12
"""Most ways of cutting that are tried for one segment."""
MOST_VARIED = 3
"""Phrases up to which each is cut in several ways."""

_CLAUSE = re.compile(r"[,;:.!?…()\[\]\"“”\n]+|\s[-–—]+\s|[–—]")
"""What a clause ends with."""
_JOINING = """
and but or so because since as which who whom whose that like although though while when if than
unless until cuz coz where for
"""
_JOINS = frozenset(_JOINING.split())
"""Words that join a clause to what stands before it."""
_LEANING = """
a all an and any are as at about be because being but by even for from her his in is its just like
more most my not of on only or our pretty quite rather really so some such than that the their
these this those to too very was were with your
"""
_LEANS = frozenset(_LEANING.split())
"""Words that cannot stand before a gap: they lean on what follows."""
_CLOSING = "and but or so because since as which who that like than of by with a an the"
_DANGLING = frozenset(_CLOSING.split())
"""Words that no sentence ends with."""
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_VOWEL_SOUND = re.compile(
    r"(?!(?:uni|us[ei]|eu|one\b|once\b))(?:[aeio]|u|hour|hon(?:est|our|or))", re.I
)
_PAIRS = (("(", ")"), ("[", "]"), ("“", "”"))


def trims(source: str, marks: Sequence[Range]) -> list[str]:
    """The source with its marked phrases cut in several ways; those that cut least come first.

    Args:
        source: one segment.
        marks: its unsafe phrases, sorted and apart.

    Returns:
        At most `MOST` texts, each another, none without a word, none equal to the source.
    """
    ways = [list(dict.fromkeys(_ways(source, mark))) for mark in marks]
    if len(ways) > MOST_VARIED:
        ways = [each[:1] for each in ways]
    found: dict[str, None] = {}
    for cuts in sorted(product(*ways), key=lambda cuts: sum(end - start for start, end in cuts)):
        text = _without(source, _joined(source, cuts))
        if _WORD.search(text) and text != source and _balanced(source, text):
            found[text] = None
        if len(found) == MOST:
            break
    return list(found)


def _ways(source: str, mark: Range) -> Iterator[Range]:
    """The phrase; with words before it that lean on it; its clause; with the commas around it."""
    start, end = mark
    yield mark
    yield _leaning(source, start), end
    first, last = _clause(source, mark)
    yield first, last
    yield _leaning(source, first), last
    yield first, end
    yield start, last
    if (before := re.search(r",\s*$", source[:start])) and (
        behind := re.match(r"\s*,", source[end:])
    ):
        yield before.start(), end + behind.end()


def _leaning(source: str, start: int) -> int:
    """Where the run of leaning words that ends at `start` begins."""
    while (word := _word_before(source, start)) and word.group().casefold() in _LEANS:
        start = word.start()
    return start


def _word_before(source: str, start: int) -> re.Match[str] | None:
    """The word right before `start`, with nothing but blanks between."""
    found = [*_WORD.finditer(source, 0, start)]
    return found[-1] if found and not source[found[-1].end() : start].strip() else None


def _clause(source: str, mark: Range) -> Range:
    """From the word that joins the clause of a phrase, or the sign before it, to its end."""
    start, end = mark
    left = max((m.end() for m in _CLAUSE.finditer(source, 0, start)), default=0)
    joins = [m.start() for m in _WORD.finditer(source, left, start) if _is_join(m)]
    right = next((m.start() for m in _CLAUSE.finditer(source, end)), len(source))
    behind = [m.start() for m in _WORD.finditer(source, end, right) if _is_join(m)]
    return (joins[-1] if joins else left), min([right, *behind])


def _is_join(word: re.Match[str]) -> bool:
    return word.group().casefold() in _JOINS


def _joined(source: str, cuts: Sequence[Range]) -> list[Range]:
    """Cuts in order; those that overlap, or have no word between them, become one."""
    found: list[Range] = []
    for start, end in sorted(cuts):
        if found and not _WORD.search(source, found[-1][1], max(start, found[-1][1])):
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _without(source: str, cuts: Sequence[Range]) -> str:
    text = source
    for start, end in reversed(cuts):
        text = _spliced(text[:start].rstrip(" \t"), text[end:].lstrip(" \t"))
    return _ended(source, _begun(source, text))


def _spliced(left: str, right: str) -> str:
    """Two parts put together where something was cut out, with one sign between them at most."""
    right = re.sub(r"^[,;:]+\s*", "", right) if re.search(r"(?:^|[,;:(\[“\n–—-])$", left) else right
    if re.match(r"[.!?)\]”…]|\s*$|\s[-–—]\s", right):
        left = left.rstrip(",;:–—- ")
    if left.endswith(("(", "[", "“", '"')) and (shut := re.match(r"[.,!?]*[)\]”\"]", right)):
        left, right = left[:-1].rstrip(), right[shut.end() :].lstrip()
    if re.search(r"[.!?…]$", left):
        right = re.sub(r"^[.!?…]+", "", right).lstrip()
    gap = "" if not left or left[-1] in "([“\n" or re.match(r"[,;:.!?)\]”…\n]|$", right) else " "
    if (article := re.search(r"\b(an?)$", left, re.IGNORECASE)) and right:
        wanted = "an" if _VOWEL_SOUND.match(right) else "a"
        left = left[: article.start()] + (wanted.capitalize() if article[1][0] == "A" else wanted)
    return left + gap + right


def _begun(source: str, text: str) -> str:
    """Without signs and joining words that led on from what is gone; a capital where one was."""
    text = text.lstrip(" \t")
    if not source.startswith(text[:1]) or not text[:1].isalnum():
        text = re.sub(r"^[\s,;:.!?…–—-]+", "", text)
    if not source.casefold().startswith(first := text.split(" ", 1)[0].casefold()) and (
        first in ("and", "but", "so", "or", "because", "then")
    ):
        text = text[len(first) :].lstrip(" ,")
    if next((c for c in source if c.isalpha()), "").isupper() and text[:1].islower():
        text = text[:1].upper() + text[1:]
    return text


def _ended(source: str, text: str) -> str:
    """Without signs and words that led on to what is gone; with the end that the source had."""
    end = re.search(r"[.!?…]+[\"”’')\]]*$|$", source)
    body = re.sub(r"[\s,;:–—-]+$", "", text)
    match = re.search(r"[.!?…]+[\"”’')\]]*$", body)
    stem = body[: match.start()].rstrip(" ,;:–—-") if match else body
    while (word := _word_before(stem, len(stem))) and word.group().casefold() in _DANGLING:
        stem = stem[: word.start()].rstrip(" ,;:–—-")
    return stem + (match.group() if match else end.group() if end else "")


def _balanced(source: str, text: str) -> bool:
    """Whether brackets and quotation marks still come in pairs, as far as they did."""
    straight = text.count('"') % 2 <= source.count('"') % 2
    return straight and all(
        text.count(left) - text.count(right) == source.count(left) - source.count(right)
        for left, right in _PAIRS
    )
