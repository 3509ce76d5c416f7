"""Markdown (CommonMark, with tables and strikethrough): the text of blocks is the parts.

markdown-it-py (extra `structure`) reads it. It tells the lines of a block, but not where inline
marks stand, so each inline rule is wrapped to note what it consumed. Front matter, code, link
targets, images, link definitions and all marks stay; a pair of emphasis marks goes with the last
word between them. A block of HTML is read as HTML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from srllm_guard.errors import MissingExtra
from srllm_guard.structure import html_text
from srllm_guard.structure.document import Document, Stretch, spoken
from srllm_guard.structure.part import Builder, Part, Range

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

FRONT_MATTER = re.compile(
    r"\ufeff?(?:"
    r"---[ \t]*\r?\n(?:(?:[\w\"'][^\r\n:]*+:|[ \t#-])[^\r\n]*\r?\n|\r?\n)*?(?:---|\.\.\.)"
    r"|\+\+\+[ \t]*\r?\n(?:(?:[\w\"'][^\r\n=]*+=|[ \t#\[])[^\r\n]*\r?\n|\r?\n)*?\+\+\+"
    r")[ \t]*(?:\r?\n|\Z)"
)
"""YAML or TOML at the very start, every line of which looks like that."""

_LINE_END = re.compile(r"\r\n?|\n")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#|~!&+.-])")
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
    notes = _Notes(references)
    tokens = _parser().parse(text[start:], notes.env)
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


@dataclass(slots=True)
class _Inline:
    """What the inline rules consumed of one block."""

    tokens: list[Token]
    """The list they were pushed to: it says whose notes these are."""
    gone: list[Range] = field(default_factory=list)
    """Marks."""
    kept: list[Range] = field(default_factory=list)
    """Code, addresses and images."""
    read_as: list[tuple[Range, str]] = field(default_factory=list)
    """What reads differently than it is spelled."""
    signs: list[tuple[int, Token]] = field(default_factory=list)
    """Place and token of each mark that may turn out as emphasis or as text."""
    pairs: list[tuple[Range, Range]] = field(default_factory=list)


class _Notes:
    """The notes of all blocks of one text; they travel in the parser's environment."""

    def __init__(self, references: dict[str, Any]) -> None:
        self.env: dict[str, Any] = {"srllm_notes": self, "references": dict(references)}
        self._of: dict[int, _Inline] = {}

    def of(self, tokens: list[Token]) -> _Inline:
        return self._of.setdefault(id(tokens), _Inline(tokens))


class _Reader:
    """Turns block tokens into parts."""

    def __init__(self, text: str, start: int, notes: _Notes) -> None:
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
    return _SPECIAL.sub(r"\\\1", text)


Rule = Callable[["StateInline", bool], bool]


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    try:
        from markdown_it import MarkdownIt, rules_inline
    except ImportError as error:
        raise MissingExtra(extra="structure", needed_for='format="markdown"') from error
    made = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    made.core.ruler.disable("text_join")  # it would part the tokens from their notes
    rules: dict[str, tuple[Rule, Callable[..., None]]] = {
        "newline": (rules_inline.newline, _note_special),
        "escape": (rules_inline.escape, _note_special),
        "entity": (rules_inline.entity, _note_special),
        "backticks": (rules_inline.backtick, _note_code),
        "strikethrough": (rules_inline.strikethrough.tokenize, _note_signs),
        "emphasis": (rules_inline.emphasis.tokenize, _note_signs),
        "link": (rules_inline.link, _note_link),
        "image": (rules_inline.image, _note_image),
        "autolink": (rules_inline.autolink, _note_kept),
        "html_inline": (rules_inline.html_inline, _note_gone),
    }
    for name, (rule, note) in rules.items():
        made.inline.ruler.at(name, _noting(rule, note))
    made.inline.ruler2.before("fragments_join", "srllm_notes", _note_emphasis)
    made.core.ruler.after("block", "srllm_kinds", _note_kinds)
    return made


def _noting(rule: Rule, note: Callable[..., None]) -> Rule:
    def noting(state: StateInline, silent: bool) -> bool:
        start, count = state.pos, len(state.tokens)
        if not rule(state, silent):
            return False
        if not silent:
            notes: _Notes = state.env["srllm_notes"]
            note(notes.of(state.tokens), state, start, state.tokens[count:])
        return True

    return noting


def _note_special(notes: _Inline, state: StateInline, start: int, tokens: list[Token]) -> None:
    token = tokens[-1]
    reads = {"softbreak": " ", "hardbreak": "\n"}.get(token.type, token.content)
    if reads != state.src[start : state.pos]:
        notes.read_as.append(((start, state.pos), reads))


def _note_code(notes: _Inline, state: StateInline, start: int, tokens: list[Token]) -> None:
    if tokens and tokens[-1].type == "code_inline":
        notes.kept.append((start, state.pos))


def _note_kept(notes: _Inline, state: StateInline, start: int, _: list[Token]) -> None:
    notes.kept.append((start, state.pos))


def _note_gone(notes: _Inline, state: StateInline, start: int, _: list[Token]) -> None:
    notes.gone.append((start, state.pos))


def _note_link(notes: _Inline, state: StateInline, start: int, _: list[Token]) -> None:
    end = state.md.helpers.parseLinkLabel(state, start, True)
    notes.gone += [(start, start + 1), (end, state.pos)]


def _note_image(notes: _Inline, state: StateInline, start: int, _: list[Token]) -> None:
    end = state.md.helpers.parseLinkLabel(state, start + 1, False)
    if _SPECIAL.search(state.src, start + 2, end):
        notes.kept.append((start, state.pos))  # its marks are noted elsewhere
    else:
        notes.gone += [(start, start + 2), (end, state.pos)]


def _note_signs(notes: _Inline, state: StateInline, start: int, tokens: list[Token]) -> None:
    end = state.pos
    for token in reversed(tokens):
        if end <= start or token.type != "text" or token.content.strip("*_~"):
            break
        end -= len(token.content)
        notes.signs.append((end, token))


def _note_emphasis(state: StateInline) -> None:
    """Tell, now that it is settled, which signs are emphasis and which are text."""
    notes = state.env["srllm_notes"].of(state.tokens)
    opened: list[Range] = []
    order = {id(token): number for number, token in enumerate(state.tokens)}
    for at, token in sorted(notes.signs, key=lambda sign: order[id(sign[1])]):
        if token.type == "text" and token.content:
            continue
        if token.type == "text":  # the other half of a double sign
            notes.gone.append((at, at + 1))
            continue
        width = len(token.markup)
        strong = token.tag == "strong"
        start = at - strong if token.nesting > 0 else at
        notes.gone.append((at, at + (1 if strong else width)))
        here = (start, start + width)
        if token.nesting > 0:
            opened.append(here)
        elif opened:
            notes.pairs.append((opened.pop(), here))


def _note_kinds(state: Any) -> None:
    """Mark the contents of headings and table cells."""
    for before, token in zip(state.tokens, state.tokens[1:], strict=False):
        if token.type == "inline" and before.type in ("th_open", "td_open"):
            token.meta["cell"] = True
        elif token.type == "inline" and before.type == "heading_open" and before.markup[:1] == "#":
            token.meta["heading"] = True
