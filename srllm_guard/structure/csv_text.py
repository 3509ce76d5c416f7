"""CSV (RFC 4180): cells are the parts; delimiters, quotes and line ends are never touched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from srllm_guard.errors import FormatError
from srllm_guard.structure.document import Document
from srllm_guard.structure.part import Builder, Part
from srllm_guard.structure.prose import is_prose

DELIMITERS = ",;\t|"
SAMPLE = 50
"""Lines that the delimiter is guessed from."""

_QUOTED = re.compile(r'"((?:[^"]|"")*+)"')
_LINE_END = re.compile(r"\r\n|\r|\n")


def read(text: str) -> Document:
    """Read CSV; the delimiter is the one that cuts most lines alike.

    A cell that is not in quotes cannot take a delimiter, a quote or a line break: such a change
    does not hold.

    Raises:
        FormatError: a quoted cell does not end.
    """
    return _read(text, delimiter(text))


def delimiter(text: str) -> str:
    """The likeliest delimiter: a comma, semicolon, tab or pipe."""
    lines = [line for line in _LINE_END.split(_QUOTED.sub("", text))[:SAMPLE] if line]
    scores = []
    for sign in DELIMITERS:
        counts = Counter(line.count(sign) for line in lines)
        del counts[0]
        scores.append(max(counts.values(), default=0))
    return DELIMITERS[scores.index(max(scores))]


def _read(text: str, sign: str) -> Document:
    parts: list[Part] = []
    frame: list[str] = []
    near: list[tuple[int, int, int]] = []
    start = first = 0
    for part, quoted, end, past in _cells(text, sign):
        parts.append(part)
        frame.append(f"{quoted:d}{end}")
        if end != sign:  # the record is complete
            near += [(start, past, first)] * (len(parts) - first)
            start, first = past, len(parts)
    judged = tuple(n for n, part in enumerate(parts) if is_prose(part.text))
    return Document(
        text,
        tuple(parts),
        judged,
        frame,
        lambda new: _read(new, sign),
        lambda new: '"' + new.replace('"', '""') + '"',
        near=tuple(near),
        read_near=lambda record: _read(record, sign),
    )


def _cells(text: str, sign: str) -> Iterator[tuple[Part, bool, str, int]]:
    """Yield each cell, if it is quoted, what ends it (a delimiter, a line end, ""), and where."""
    plain = re.compile(rf"[^\r\n{re.escape(sign)}]*+")
    ends = re.compile(rf"{re.escape(sign)}|\r\n|\r|\n|\Z")
    at, line = int(text.startswith("\ufeff")), 1
    while True:
        made = Builder()
        if quoted := _QUOTED.match(text, at):
            start, last = quoted.span(1)
            at = start
            while (pair := text.find('""', at, last)) >= 0:
                made.add(text[at:pair], at, pair)
                made.add('"', pair, pair + 2)
                at = pair + 2
            made.add(text[at:last], at, last)
            part = made.part(where=(start, last), spellings=(lambda new: new.replace('"', '""'),))
            at = quoted.end()
        else:
            match = plain.match(text, at)
            start, last = match.span() if match else (at, at)
            made.add(text[start:last], start, last)
            part = made.part(where=(start, last))
            at = last
        end = ends.match(text, at)
        if end is None or (quoted is None and text.startswith('"', part.start)):
            raise FormatError(f"The text is no valid CSV: the quotes of a cell in line {line}.")
        yield part, quoted is not None, end.group(), end.end()
        line += len(_LINE_END.findall(text, part.start, end.end()))
        at = end.end()
        if not end.group() or (end.group() != sign and at == len(text)):
            return
