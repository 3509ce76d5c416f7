"""Where the inline marks of Markdown stand: markdown-it-py, made to note what its rules consume."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from srllm_guard.errors import MissingExtra
from srllm_guard.prompt import Range

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token


SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#|~!&+.-])")
"""Signs that may mean something."""


@dataclass(slots=True)
class Inline:
    """What the inline rules consumed of one block."""

    tokens: list[Token]
    """The list they were pushed to: it says whose notes these are."""
    gone: list[Range] = field(default_factory=list)
    """Marks."""
    kept: list[Range] = field(default_factory=list)
    """Code and addresses."""
    read_as: list[tuple[Range, str]] = field(default_factory=list)
    """What reads differently than it is spelled."""
    signs: list[tuple[int, Token]] = field(default_factory=list)
    """Place and token of each mark that may turn out as emphasis or as text."""
    pairs: list[tuple[Range, Range]] = field(default_factory=list)

    def add(self, inner: Inline, by: int) -> None:
        """Take over the notes on a text that begins at `by` of this one."""

        def moved(there: Range) -> Range:
            return there[0] + by, there[1] + by

        self.gone += map(moved, inner.gone)
        self.kept += map(moved, inner.kept)
        self.read_as += [(moved(there), reads) for there, reads in inner.read_as]
        self.pairs += [(moved(first), moved(last)) for first, last in inner.pairs]


class Notes:
    """The notes of all blocks of one text; they travel in the parser's environment."""

    def __init__(self, references: dict[str, Any]) -> None:
        self.env: dict[str, Any] = {"srllm_notes": self, "references": dict(references)}
        self._of: dict[int, Inline] = {}

    def of(self, tokens: list[Token]) -> Inline:
        """The notes on the block with these inline tokens."""
        return self._of.setdefault(id(tokens), Inline(tokens))


Rule = Callable[["StateInline", bool], bool]


@lru_cache(maxsize=1)
def parser() -> MarkdownIt:
    """The parser; give it `Notes.env`, and the notes are filled.

    Raises:
        MissingExtra: markdown-it-py is not installed.
    """
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
            notes: Notes = state.env["srllm_notes"]
            note(notes.of(state.tokens), state, start, state.tokens[count:])
        return True

    return noting


def _note_special(notes: Inline, state: StateInline, start: int, tokens: list[Token]) -> None:
    token = tokens[-1]
    reads = {"softbreak": " ", "hardbreak": "\n"}.get(token.type, token.content)
    if reads != state.src[start : state.pos]:
        notes.read_as.append(((start, state.pos), reads))


def _note_code(notes: Inline, state: StateInline, start: int, tokens: list[Token]) -> None:
    if tokens and tokens[-1].type == "code_inline":
        notes.kept.append((start, state.pos))


def _note_kept(notes: Inline, state: StateInline, start: int, _: list[Token]) -> None:
    notes.kept.append((start, state.pos))


def _note_gone(notes: Inline, state: StateInline, start: int, _: list[Token]) -> None:
    notes.gone.append((start, state.pos))


def _note_link(notes: Inline, state: StateInline, start: int, _: list[Token]) -> None:
    end = state.md.helpers.parseLinkLabel(state, start, True)
    notes.gone += [(start, start + 1), (end, state.pos)]


def _note_image(notes: Inline, state: StateInline, start: int, tokens: list[Token]) -> None:
    end = state.md.helpers.parseLinkLabel(state, start + 1, False)
    notes.gone += [(start, start + 2), (end, state.pos)]
    # The text that stands for the image was parsed by itself, with places of its own.
    notes.add(state.env["srllm_notes"].of(tokens[-1].children or []), start + 2)


def _note_signs(notes: Inline, state: StateInline, start: int, tokens: list[Token]) -> None:
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
