"""The formats by name, and which of them a text is in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

from srllm_guard.errors import ConfigError, FormatError, MissingExtra
from srllm_guard.structure import csv_text, html_text, json_text, mail, markdown, transcript
from srllm_guard.structure.document import Document
from srllm_guard.structure.part import Builder

Format = Literal["text", "auto", "json", "ndjson", "markdown", "html", "csv", "email", "transcript"]
"""What `Guard` takes as `format`."""


def read(text: str, format: Format) -> Document:
    """Read a text in one format.

    Raises:
        ConfigError: an unknown format.
        FormatError: the text is not in this format.
        MissingExtra: the format needs a package that is not installed.
    """
    if format == "auto":
        return _guessed(text)
    if format not in _READERS:
        known = ", ".join(get_args(Format))
        raise ConfigError(f"Unknown format {format!r}.", hint=f"Known: {known}.")
    return _READERS[format](text)


def guess(text: str) -> Format:
    """The format that a text is most likely in, "text" where nothing tells; never "csv"."""
    start = text.lstrip("\ufeff \t\r\n")
    if start[:1] in ("{", "["):
        for format_ in ("json", "ndjson"):
            if _reads(text, format_):
                return format_
    if _HTML.match(start):
        return "html"
    if mail.has_headers(text):
        return "email"
    if markdown.FRONT_MATTER.match(text) or _MARKDOWN.search(text):
        return "markdown"
    lines = sum(not line.isspace() for line in text.splitlines() if line)
    if lines > 1 and 2 * transcript.speakers(text) >= lines:
        return "transcript"
    return "email" if len(_QUOTED.findall(text)) > 1 else "text"


_HTML = re.compile(
    r"<(?:!doctype html|!--|/?(?:html|head|body|title|p|div|span|h[1-6]|[uo]l|li|table|section"
    r"|article|main|header|footer|nav|form|blockquote|pre|b|i|em|strong|a|br|hr|img)\b[^<>]*>)",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(
    r"^#{1,6} \S|^(?:```|~~~)|\]\([^()\s]+\)|\*\*\S[^*\n]*\*\*"
    r"|^(?=[ :-]*+\|)(?=[ |:]*+-{3})[ |:-]++$|`[^`\n]+`",
    re.MULTILINE,
)
_QUOTED = re.compile(r"^>", re.MULTILINE)


def _text(text: str) -> Document:
    made = Builder()
    made.add(text, 0, len(text))
    return Document(text, (made.part(where=(0, len(text))),), (0,))


_READERS: Mapping[str, Callable[[str], Document]] = MappingProxyType(
    {
        "text": _text,
        "json": json_text.read,
        "ndjson": json_text.read_lines,
        "markdown": markdown.read,
        "html": html_text.read,
        "csv": csv_text.read,
        "email": mail.read,
        "transcript": transcript.read,
    }
)


def _reads(text: str, format_: str) -> bool:
    try:
        _READERS[format_](text)
    except FormatError:
        return False
    return True


def _guessed(text: str) -> Document:
    """Read a text as what it looks like, or as plain text where that is not possible."""
    try:
        return _READERS[guess(text)](text)
    except (FormatError, MissingExtra):
        return _text(text)
