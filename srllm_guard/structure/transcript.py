"""Chat transcripts: what was said is the parts; times and speakers' names are not touched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from srllm_guard.structure.document import Document
from srllm_guard.structure.part import Builder, Part
from srllm_guard.text.segments import may_name

_LINE = re.compile(r"([^\r\n]*+)(?:\r\n|\r|\n|\Z)")
_TIME = (
    r"\[?(?:\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4},?[ T])?\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,3})?)?"
    r"(?:\s?[AaPp]\.?[Mm]\.?)?\]?"
)
_WORD = r"[^\W_][\w.'’-]{0,30}"
_NAME = rf"{_WORD}(?: {_WORD})?(?: \((?:{_TIME}|[\w.'/-]{{1,30}})\))?"
"""Two words at most: what is longer may be a sentence, and is judged."""
_TIMED = rf"{_TIME}[ \t]*(?:[-–][ \t]*)?"
_MARKED = re.compile(rf"[ \t]*(?:{_TIMED}(?:<[^<>\s]{{1,40}}>:?|(?=\S))|<[^<>\s]{{1,40}}>:?)[ \t]*")
"""An opening that its form gives away: a time, <nick>."""
_NAMED = re.compile(
    rf"[ \t]*(?:({_NAME}):[ \t]+(?=\S)|{_TIMED}({_NAME}):[ \t]*"
    rf"|(\*\*|__)({_NAME})(?::\3|\3:)[ \t]*)"
)
"""An opening with what may be a name, which is the last group."""
_SETTING = (
    r"(?:(?:vertical|line|position|size|align):"
    r"(?:[\d.,%-]|start|center|middle|end|left|right|line|auto|rl|lr)+|[XY][12]:\d+)"
)
_CUE = re.compile(rf"[ \t]*(?:\d+|WEBVTT|{_TIME} --> {_TIME}(?:[ \t]+{_SETTING})*)[ \t]*\Z")
"""Lines of subtitles that nobody says."""


def read(text: str) -> Document:
    """Read a transcript: a line that opens with a speaker or a time begins what is said.

    A name and a colon open it if the name is written like one ("Anna Smith", "Agent 2"), or if
    it does so in two lines at least ("anna"). What speaks about people ("Women") is no name.
    """
    openings = [_NAMED.match(match.group(1)) for match in _LINE.finditer(text)]
    counts = Counter(_name(opening) for opening in openings if opening)
    twice = {name for name, n in counts.items() if n > 1 and may_name(_words(name))}
    names = twice | set(filter(_is_name, counts))
    frame: list[str] = []
    parts = tuple(_parts(text, names, frame))
    return Document(text, parts, tuple(range(len(parts))), frame, read)


def speakers(text: str) -> int:
    """How many lines open with a speaker whose form gives the opening away, or a name."""
    count = 0
    for match in _LINE.finditer(text):
        named = _NAMED.match(match.group(1))
        count += bool(_MARKED.match(match.group(1)) or (named and _is_name(_name(named))))
    return count


def _name(opening: re.Match[str]) -> str:
    return str(opening[opening.lastindex or 0])


def _is_name(name: str) -> bool:
    words = _words(name)
    return may_name(words) and all(word[0].isupper() or word.isdigit() for word in words.split())


def _words(name: str) -> str:
    """A name without what stands in brackets behind it."""
    return name.partition(" (")[0]


def _parts(text: str, names: set[str], frame: list[str]) -> Iterator[Part]:
    made, break_at = Builder(), 0
    for match in _LINE.finditer(text):
        line = match.group(1)
        named = _NAMED.match(line)
        opening = named if named and _name(named) in names else _MARKED.match(line)
        cue = _CUE.match(line)
        first = match.end(1) if cue else match.start() + (opening.end() if opening else 0)
        if made and (opening or cue or not line.strip()):
            yield made.part()
            made = Builder()
        if opening or cue:
            frame.append(line if cue else line[: opening.end()] if opening else "")
        if first < match.end(1) and line.strip():
            if made:
                made.add("\n", break_at, first, kept=True)
            made.add(text[first : match.end(1)], first, match.end(1))
        break_at = match.end(1)
    if made:
        yield made.part()
