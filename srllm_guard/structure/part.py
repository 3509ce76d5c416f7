"""A stretch of prose as it reads, and how a change to it is spelled in the document.

What reads "You & I" may be spelled `You &amp; <b>I</b>`. A part knows for each of its characters
which source spells it; what no character stands for (tags, escapes, quote marks) is never written
to. A rewrite is put in word by word, so words that stay keep their very spelling.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from srllm_guard.prompt import Range

Change = tuple[int, int, str]
"""Range of the source, and what stands there instead."""

Spelling = Callable[[str], str]
"""How a format spells plain text."""

_TOKEN = re.compile(r"\w+|\s|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive characters of a part with the source that spells them."""

    at: int
    """Where it starts in the text of the part."""
    text: str
    """How it reads."""
    start: int
    end: int
    """Range of the source. As long as `text`, it spells it character by character; else as a whole,
    such as an escape."""
    kept: bool = False
    """Whether it must stay as it is, such as inline code."""

    def source(self, at: int) -> Range:
        """The source of the character at `at` of the part."""
        if self.end - self.start != len(self.text):
            return self.start, self.end
        start = self.start + at - self.at
        return start, start + 1


@dataclass(frozen=True, slots=True)
class Part:
    """Prose of a document, judged and rewritten as one text."""

    runs: tuple[Run, ...]
    start: int
    end: int
    """Range of the source that is replaced when the part is withheld."""
    spellings: tuple[Spelling, ...] = (str,)
    """How new text is spelled; the first that keeps the structure is taken."""
    pairs: tuple[tuple[Range, Range], ...] = ()
    """Opening and closing marks that go when nothing is left between them, the inner ones first."""
    markup_stays: bool = False
    """Whether what stands between the runs stays when the part is withheld."""
    text: str = field(init=False)
    """How the part reads."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", "".join(run.text for run in self.runs))

    def source(self, start: int, end: int) -> Range:
        """The source of a range of the text (not an empty one), marks inside of it included."""
        return self._run(start).source(start)[0], self._run(end - 1).source(end - 1)[1]

    def change(self, source: str, start: int, end: int, new: str, spell: Spelling) -> Change | None:
        """What replacing `text[start:end]` by `new` means for the source.

        Returns:
            The change, or None where it would touch what must stay.
        """
        changes: list[Change] = []
        for first, last, words in _differences(self.text[start:end], new):
            found = self._replace(start + first, start + last, words, spell)
            if found is None:
                return None
            changes += found
        for pair in self.pairs:
            changes += _emptied(source, pair, changes)
        here = self.source(start, end)
        first = min([here[0], *(change[0] for change in changes)])
        last = max([here[1], *(change[1] for change in changes)])
        moved = [(a - first, b - first, words) for a, b, words in changes]
        return first, last, apply(source[first:last], moved)

    def withhold(self, source: str, message: str, spell: Spelling) -> Change:
        """Replace all of the part by a message."""
        if not self.markup_stays:
            return self.start, self.end, spell(message)
        changes = [
            (run.start - self.start, run.end - self.start, "" if number else spell(message))
            for number, run in enumerate(self.runs)
        ]
        return self.start, self.end, apply(source[self.start : self.end], changes)

    def within(self, outer: Part) -> Part:
        """This part, read from the text of `outer`, as a part of the document of `outer`."""
        made = Builder()
        for run in self.runs:
            whole = run.end - run.start != len(run.text)
            places = [run.start] if whole else range(run.start, run.end)
            for number, place in enumerate(places):
                last = run.end if whole else place + 1
                text = run.text if whole else run.text[number]
                made.add(text, *outer.source(place, last), kept=run.kept)
        return made.part(
            spellings=tuple(_nested(each, self.spellings[0]) for each in outer.spellings)
        )

    def _run(self, at: int) -> Run:
        return self.runs[bisect_right(self.runs, at, key=lambda run: run.at) - 1]

    def _replace(self, start: int, end: int, new: str, spell: Spelling) -> list[Change] | None:
        if start == end:
            place = self.source(start - 1, start)[1] if start else self.runs[0].start
            return [(place, place, spell(new))]
        changes: list[Change] = []
        for run in self.runs:
            first, last = max(start, run.at), min(end, run.at + len(run.text))
            if first >= last:
                continue
            if run.kept:
                return None
            where, left, right = (run.start, run.end), "", ""
            if run.end - run.start == len(run.text):
                where = run.source(first)[0], run.source(last - 1)[1]
            else:
                left, right = run.text[: first - run.at], run.text[last - run.at :]
            words = left + (new if not changes else "") + right
            changes.append((*where, spell(words) if words else ""))
        return changes


class Builder:
    """Collects the runs of a part."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._length = 0

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, text: str, start: int, end: int, *, kept: bool = False) -> None:
        """Add characters and the source that spells them."""
        if not text:
            return
        if self._runs:
            last = self._runs[-1]
            alike = last.end == start and last.kept == kept
            if (
                alike
                and last.end - last.start == len(last.text)
                and (end - start == len(text) and start < end)
            ):
                self._runs.pop()
                self._length -= len(last.text)
                text, start = last.text + text, last.start
        self._runs.append(Run(self._length, text, start, end, kept))
        self._length += len(text)

    def part(
        self,
        *,
        where: Range | None = None,
        spellings: tuple[Spelling, ...] = (str,),
        pairs: Sequence[tuple[Range, Range]] = (),
        markup_stays: bool = False,
    ) -> Part:
        """The part; `where` is its place in the source if it has no run that tells."""
        runs = tuple(self._runs)
        start, end = where or (runs[0].start, runs[-1].end)
        return Part(runs, start, end, spellings, tuple(pairs), markup_stays)


def apply(source: str, changes: Iterable[Change]) -> str:
    """The source with its changes, which do not overlap; equal places keep their order."""
    pieces, last = [], 0
    for start, end, new in sorted(changes, key=lambda change: change[:2]):
        pieces += [source[last:start], new]
        last = end
    return "".join([*pieces, source[last:]])


def _nested(outer: Spelling, inner: Spelling) -> Spelling:
    return lambda text: outer(inner(text))


def _differences(old: str, new: str) -> list[tuple[int, int, str]]:
    """Ranges of `old` that differ, with the words of `new` that stand there."""
    left, right = _TOKEN.findall(old), _TOKEN.findall(new)
    starts = [0]
    for token in left:
        starts.append(starts[-1] + len(token))
    codes = SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    return [
        (starts[i], starts[j], "".join(right[k:m])) for tag, i, j, k, m in codes if tag != "equal"
    ]


def _emptied(source: str, pair: tuple[Range, Range], changes: Sequence[Change]) -> list[Change]:
    """The changes that take a pair of marks away, if `changes` leave nothing between them."""
    (first, inner), (outer, last) = pair
    inside = [(a - inner, b - inner, new) for a, b, new in changes if inner <= a and b <= outer]
    if not inside or apply(source[inner:outer], inside).strip():
        return []
    return [(first, inner, ""), (outer, last, "")]
