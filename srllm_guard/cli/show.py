"""What a person sees: coloured word diffs on a terminal, a progress bar, plain text in a pipe."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TextIO

from srllm_guard.cli.files import labels, outcome, verdict
from srllm_guard.results import Detection, Moderation

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_ADDED, _REMOVED, _QUIET = "green", "red strike", "dim"
_COLOURS = {"safe": "green", "pass": "green", "unverified": "yellow"}


def terminal(stream: TextIO) -> Console | None:
    """Return a console for a stream that shows colours; None for a pipe or without the extra."""
    if not stream.isatty() or find_spec("rich") is None:
        return None
    from rich.console import Console

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    return None if console.no_color or console.color_system is None else console


def moderated(console: Console, result: Moderation) -> None:
    """Print what was released, with what changed in it."""
    console.print(_diff(result), soft_wrap=True)
    before, after = result.before, result.after
    score = f"{before.score:.3f}" + (f" -> {after.score:.3f}" if after else "")
    line = f"{result.action}, score {score}, {labels(before)}"
    console.print(line, style=_QUIET, soft_wrap=True)


def detected(console: Console, text: str, found: Detection) -> None:
    """Print a text with its unsafe phrases marked, and the verdict."""
    from rich.text import Text

    shown = Text(visible(text))
    for span in found.spans:
        shown.stylize("bold red", span.start, span.end)
    console.print(shown, soft_wrap=True)
    console.print(verdict(found), style=_COLOURS.get(outcome(found), "red"), soft_wrap=True)


def visible(text: str) -> str:
    """Return a text with control characters and lone surrogates made visible, of the same length.

    A text may hold escape sequences that would drive the terminal.
    """
    return "".join(map(_visible, text))


@contextmanager
def progress(stream: TextIO, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Show a bar for `total` rows, `done` of which are done; yields a function that adds to it."""
    console = terminal(stream)
    if console is None:
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    with bar:
        task = bar.add_task("texts", total=total, completed=done)
        yield lambda count: bar.advance(task, count)


def changes(old: str, new: str) -> Iterator[tuple[str, str]]:
    """Yield ("same" | "removed" | "added", piece) that lead from one text to another, by words."""
    old_words, new_words = _WORDS.findall(old), _WORDS.findall(new)
    matcher = difflib.SequenceMatcher(None, old_words, new_words, autojunk=False)
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        if kind == "equal":
            yield "same", "".join(old_words[start:end])
            continue
        if start < end:
            yield "removed", "".join(old_words[start:end])
        if new_start < new_end:
            yield "added", "".join(new_words[new_start:new_end])


def _diff(result: Moderation) -> Text:
    from rich.text import Text

    if not result.edits or result.action == "block":
        return Text(visible(result.text), style=_ADDED if result.changed else "")
    styles = {"same": "", "removed": _REMOVED, "added": _ADDED}
    shown, at = Text(), 0
    for edit in result.edits:
        shown.append(visible(result.original[at : edit.start]))
        for kind, piece in changes(edit.original, edit.replacement):
            shown.append(visible(piece), style=styles[kind])
        at = edit.end
    return shown.append(visible(result.original[at:]))


def _visible(char: str) -> str:
    code = ord(char)
    if char in "\n\t" or (0x20 <= code < 0x7F):
        return char
    if code < 0x20:
        return chr(0x2400 + code)  # the pictures of control characters
    return "\ufffd" if code <= 0x9F or 0xD800 <= code <= 0xDFFF else char
