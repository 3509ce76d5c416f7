"""What the systems are timed on: sentences, paragraphs and documents from the authored records."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.raw import marked
from srllm_guard import Guard
from srllm_guard.engines.base import Request
from srllm_guard.prompt import SLACK, Prompt, Range, rewrite_request
from srllm_guard.text.segments import segments
from train.schema import json_lines, read_records

WORDS = (5, 40)
"""Least and most words of a sentence."""

MOST = 200
"""Unsafe sentences of one source that the guard is asked about."""

SENTENCES = 8
"""Of a paragraph."""


@dataclass(frozen=True, slots=True)
class Case:
    """An unsafe text, and the request that decodes its safe variation."""

    text: str
    marks: tuple[Range, ...]
    """What the guard found in it."""
    request: Request


@dataclass(frozen=True, slots=True)
class Texts:
    """The material."""

    unsafe: tuple[Case, ...]
    """One sentence each, which the guard flags; the sources take turns."""
    safe: tuple[str, ...]
    """Sentences that the guard does not flag, each by itself."""
    prompt: Prompt

    def paragraphs(self, count: int) -> list[Case]:
        """Paragraphs of eight sentences with one unsafe; the request rewrites all of it."""
        found = []
        for number, case in enumerate(self.unsafe[:count]):
            first = number * (SENTENCES - 1)
            rest = [self.safe[(first + n) % len(self.safe)] for n in range(SENTENCES - 1)]
            rest.insert(number % SENTENCES, case.text)
            text = " ".join(rest)
            shift = text.index(case.text)
            marks = [(start + shift, end + shift) for start, end in case.marks]
            found.append(Case(text, tuple(marks), _whole(self.prompt, text, marks)))
        return found

    def document(self, words: int, unsafe: float, seed: int = 0) -> str:
        """Paragraphs of so many words, a share of whose sentences is unsafe.

        Sentences stand in an order of their own each time they are needed again, so no window of a
        long document is that of another part.
        """
        drawn = random.Random(seed)  # noqa: S311
        safe, bad = _endless(self.safe, drawn), _endless([c.text for c in self.unsafe], drawn)
        every = round(1 / unsafe)
        sentences: list[str] = []
        total = 0
        while total < words:
            sentences.append(next(bad if len(sentences) % every == every // 2 else safe))
            total += len(sentences[-1].split())
        paragraphs = (
            " ".join(sentences[n : n + SENTENCES]) for n in range(0, len(sentences), SENTENCES)
        )
        return "\n\n".join(paragraphs)

    def ordinary(self, tokens: int, number: int) -> str:
        """Safe text of about so many tokens; another one for each number."""
        start = number * 7
        text = ""
        while len(ids := self.prompt.encode(text)) < tokens:
            text = f"{text} {self.safe[start % len(self.safe)]}".strip()
            start += 1
        return self.prompt.decode(ids[:tokens])


def texts(
    guard: Guard, authored: Path, more: Iterable[Path], split: str = "dev", seed: int = 0
) -> Texts:
    """Sentences of the authored records and of JSON Lines files with a `text`.

    Raises:
        OSError: a file cannot be read.
        ValueError: the guard flags none of the unsafe sentences, or all of the safe ones.
    """
    records = [r for path in sorted(authored.glob("*.jsonl")) for r in read_records(path)]
    records = [record for record in records if record.split == split]
    sources = [[record.text for record in records if record.unsafe]]
    sources += [[str(row["text"]) for _, row in json_lines(path)] for path in more]
    drawn = random.Random(seed)  # noqa: S311
    columns = []
    for source in sources:
        single = [text for text in dict.fromkeys(source) if _is_sentence(text)]
        drawn.shuffle(single)
        columns.append(single[:MOST])
    unsafe = list(_cases(guard, _in_turn(columns)))
    sentences = dict.fromkeys(s for r in records if not r.unsafe for s in _sentences(r.text))
    passed = zip(sentences, guard.detect_many(sentences), strict=True)
    safe = [text for text, found in passed if not found.unsafe and found.verified]
    drawn.shuffle(safe)
    if not unsafe or not safe:
        raise ValueError(
            f"{authored} gave {len(unsafe)} unsafe and {len(safe)} safe sentences of split {split}"
        )
    return Texts(tuple(unsafe), tuple(safe), guard.runtime.prompt)


def _cases(guard: Guard, found: Sequence[str]) -> Iterator[Case]:
    for text, detection in zip(found, guard.detect_many(found), strict=True):
        places = marked(text, [(span.start, span.end) for span in detection.spans])
        if detection.unsafe and len(places) == 1:
            ((segment, marks),) = places
            at = segment.start
            placed = tuple((start + at, end + at) for start, end in marks)
            yield Case(text, placed, rewrite_request(guard.runtime.prompt, text, segment, marks))


def _sentences(text: str) -> Iterator[str]:
    for segment in segments(text):
        one = text[segment.start : segment.end]
        if segment.kind == "prose" and WORDS[0] <= len(one.split()) <= WORDS[1]:
            yield one if one[-1] in ".!?" else f"{one}."


def _is_sentence(text: str) -> bool:
    found = segments(text)
    return len(found) == 1 and WORDS[0] <= len(text.split()) <= WORDS[1]


def _whole(prompt: Prompt, text: str, marks: Sequence[Range]) -> Request:
    """One rewrite of a whole text, as `rewrite_request` asks for one of a segment."""
    ids = prompt.encode(text)
    return Request(
        prompt=prompt.rewrite(text, marks),
        stop=frozenset({prompt.end}),
        limit=2 * len(ids) + SLACK,
        draft=tuple(ids),
    )


def _in_turn(columns: Sequence[Sequence[str]]) -> list[str]:
    """One of each column after another, as far as the shortest goes."""
    return [text for row in zip(*columns, strict=False) for text in row]


def _endless(items: Sequence[str], drawn: random.Random) -> Iterator[str]:
    """Items in an order that is drawn anew each time they run out."""
    while True:
        yield from drawn.sample(items, len(items))
