"""Markdown (CommonMark, with tables and strikethrough): the text of blocks is the parts.

markdown-it-py (extra `structure`) reads it. It tells the lines of a block, but not where inline
marks stand; see `markdown_inline`. Front matter, code, targets of links and images, link
definitions and all marks stay; a pair of emphasis marks goes with the last word between them. The
text that stands for an image is text. A block of HTML is read as HTML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from srllm_guard.prompt import Range
from srllm_guard.structure import html_text
from srllm_guard.structure.document import Document, Stretch, spoken
from srllm_guard.structure.markdown_inline import SPECIAL, Notes, parser
from srllm_guard.structure.part import Builder, Part

if TYPE_CHECKING:
    from markdown_it.token import Token

_KEY = r"[\"']?\w[\w.-]*+(?: [\w.-]++)?[\"']?[ \t]*+"
_YAML = rf"{_KEY}:(?=[ \t\r\n])"
_TOML = rf"(?:{_KEY}=|\[+{_KEY}\])"
_BLANK = r"(?:[ \t]*+\r?\n)*+"
FRONT_MATTER = re.compile(
    r"\ufeff?(?:"
    rf"---[ \t]*\r?\n{_BLANK}(?={_YAML})"
    rf"(?:(?:{_YAML}|[ \t#-])[^\r\n]*\r?\n|\r?\n)*?(?:---|\.\.\.)"
    rf"|\+\+\+[ \t]*\r?\n{_BLANK}(?={_TOML})"
    rf"(?:(?:{_TOML}|[ \t#])[^\r\n]*\r?\n|\r?\n)*?\+\+\+"
    r")[ \t]*(?:\r?\n|\Z)"
)
"""YAML or TOML at the very start: its first line is a key, and every line looks like that."""

_LINE_END = re.compile(r"\r\n?|\n")
_FREE = """
text text_special softbreak em_open em_close strong_open strong_close s_open s_close
"""
_TEXT = frozenset(_FREE.split())
"""Inline tokens that may come and go."""


def read(text: str) -> Document:
    """Read Markdown.

    Raises:
        MissingExtra: markdown-it-py is not installed.
    """
    front = FRONT_MATTER.match(text)
    return _read(text, front.end() if front else 0, {}, read)


def _read_block(block: str, references: dict[str, Any]) -> Document:
    """Read a block; `references` are the link definitions of the text that it stands in."""
    return _read(block, 0, references, lambda changed: _read_block(changed, references))


def _read(
    text: str, start: int, references: dict[str, Any], again: Callable[[str], Document]
) -> Document:
    notes = Notes(references)
    tokens = parser().parse(text[start:], notes.env)
    found = list(_Reader(text, start, notes).parts(tokens))
    parts = tuple(part for part, _, _ in found)
    near: list[Stretch] = []
    for number, (_, _, block) in enumerate(found):
        same = bool(near) and near[-1][:2] == block
        near.append(near[-1] if same else (*block, number))
    known = notes.env.get("references", {})
    return Document(
        text,
        parts,
        spoken(parts),
        (text[:start], [_shape(token) for token in tokens]),
        again,
        inner=tuple(inner for _, inner, _ in found),
        near=tuple(near),
        read_near=lambda block: _read_block(block, known),
    )


class _Reader:
    """Turns block tokens into parts."""

    def __init__(self, text: str, start: int, notes: Notes) -> None:
        self._text = text
        self._notes = notes
        self._lines: list[Range] = []
        for end in _LINE_END.finditer(text, start):
            self._lines.append((start, end.start()))
            start = end.end()
        self._lines.append((start, len(text)))

    def parts(self, tokens: Sequence[Token]) -> Iterator[tuple[Part, object, Range]]:
        """Yield each part with the marks in it that must stay, and the range of its block."""
        row = (-1, 0)  # line of a table, and the end of its last cell
        block = (0, 0)
        for token in tokens:
            first, last = token.map or (0, 0)
            if token.level == 0 and token.map:
                block = self._lines[first][0], self._lines[last - 1][1]
            if token.type == "html_block":
                start, end = self._lines[first][0], self._lines[last - 1][1]
                html = _html(self._text[start:end])
                yield from ((_moved(part, start), None, block) for part in html)
            elif token.type == "inline" and token.content:
                in_row = self._row(token, row)
                if in_row is not None:
                    row = first, in_row[-1][1]
                places = in_row or self._places(token)
                if places is None:
                    start, end = self._lines[first][0], self._lines[last - 1][1]
                    made = Builder()
                    made.add(self._text[start:end], start, end)
                    yield made.part(), None, block
                else:
                    yield self._part(token, places), _inner_shape(token), block

    def _row(self, token: Token, row: tuple[int, int]) -> list[Range] | None:
        """Places of the characters of a table cell; None where it is none."""
        if token.meta.get("cell") is None or token.map is None:
            return None
        line = token.map[0]
        at = row[1] if row[0] == line else self._lines[line][0]
        raw = token.content.replace("|", "\\|")
        found = self._text.find(raw, at, self._lines[line][1])
        if found < 0:
            return None
        places, at = [], found
        for character in token.content:
            past = at + 1 + (character == "|")
            places.append((at, past))
            at = past
        return places

    def _places(self, token: Token) -> list[Range] | None:
        """Where each character of the content of a block stands; None where that is not clear."""
        first, last = token.map or (0, 0)
        contents = token.content.split("\n")
        if len(contents) > last - first:
            return None
        places: list[Range] = []
        broken: int | None = None
        for content, (start, end) in zip(contents, self._lines[first:last], strict=False):
            words = content.strip()
            line = self._text[start:end].replace("\0", "\ufffd")
            at = start + (line.find(words) if token.meta.get("heading") else line.rfind(words))
            if at < start:
                return None
            lead = len(content) - len(content.lstrip())
            here = [min(at, max(start, at - lead + n)) for n in range(lead)]
            here += range(at, at + len(content) - lead + 1)
            if broken is not None:  # the break reaches behind the marks of the line
                places.append((broken, here[0]))
            places += pairwise(here)
            broken = end
        return places

    def _part(self, token: Token, places: list[Range]) -> Part:
        notes = self._notes.of(token.children or [])
        content, made, last = token.content, Builder(), 0

        def where(start: int, end: int) -> Range:
            return places[start][0], places[end - 1][1]

        def plain(start: int, end: int) -> None:
            for n in range(start, end):
                made.add(content[n], *where(n, n + 1))

        holes: list[tuple[Range, str | None, bool]] = [
            *((there, None, False) for there in notes.gone),
            *((there, content[slice(*there)], True) for there in notes.kept),
            *((there, reads, reads == "\n") for there, reads in notes.read_as),
        ]
        for (start, end), reads, kept in sorted(holes, key=lambda hole: hole[0]):
            if start < last:
                continue
            plain(last, start)
            if reads is not None:
                made.add(reads, *where(start, end), kept=kept)
            last = end
        plain(last, len(content))
        pairs = [(where(*a), where(*b)) for a, b in sorted(notes.pairs, key=lambda p: -p[0][0])]
        return made.part(where=where(0, len(content)), spellings=(str, _escaped), pairs=pairs)


def _html(text: str) -> Sequence[Part]:
    return html_text.read(text).parts


def _moved(part: Part, by: int) -> Part:
    made = Builder()
    for run in part.runs:
        made.add(run.text, run.start + by, run.end + by, kept=run.kept)
    return made.part(spellings=part.spellings, markup_stays=part.markup_stays)


def _shape(token: Token) -> object:
    """What of a token must stay the same."""
    content = token.content if token.type in ("code_inline", "code_block", "fence") else ""
    return token.type, token.tag, sorted(token.attrs.items()), token.info, content


def _inner_shape(token: Token) -> list[object]:
    return [_shape(child) for child in token.children or () if child.type not in _TEXT]


def _escaped(text: str) -> str:
    return SPECIAL.sub(r"\\\1", text)
