"""E-mail as text: quoted and wrapped lines are read as the paragraphs they are.

Quote marks, wrapping, signature dashes, header names and headers for machines stay; other headers
are prose, as the subject is. A line that was wrapped is joined with the next, so that a sentence
is judged as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from srllm_guard.structure.document import Document
from srllm_guard.structure.part import Builder, Part

WRAPPED = 50
"""A line of at least this many characters goes on in the next; shorter ones end on purpose."""

_LINE = re.compile(r"([^\r\n]*+)(\r\n|\r|\n|\Z)")
_QUOTE = re.compile(r"(?:[ \t]{0,3}>)*[ \t]*")
_LIST = re.compile(r"(?:[-*+•–]|\d{1,3}[.)]|[A-Za-z]\))\s|--\s?\Z|_{3,}|-{3,}|={3,}")
_HEADER = re.compile(r"([A-Za-z][A-Za-z0-9-]*):[ \t]*")
_REPLY = re.compile(r"(?:(?:re|fwd?|aw|wg)(?:\[\d+\])?:[ \t]*)*+", re.IGNORECASE)
_NAMES = """
from to cc bcc sender reply-to date sent message-id in-reply-to references received received-spf
return-path delivered-to envelope-to errors-to mime-version dkim-signature domainkey-signature
authentication-results auto-submitted autocrypt feedback-id importance precedence priority
thread-index user-agent
"""
_MACHINE = frozenset(_NAMES.split())
_MACHINE_STARTS = ("x-", "arc-", "list-", "content-", "resent-")
_KNOWN = frozenset({"from", "to", "subject", "date", "cc", "reply-to", "message-id", "sender"})


def read(text: str) -> Document:
    """Read the text of an e-mail, with or without its headers; bodies in base64 are not decoded."""
    start, parts = _headers(text)
    parts += _body(text, start)
    marks = [_mark(line) for line in _LINE.findall(text)] if len(parts) else []
    return Document(text, tuple(parts), tuple(range(len(parts))), _ordered(marks), read)


def has_headers(text: str) -> bool:
    """Whether a text begins with the headers of an e-mail."""
    return _headers_end(text) > 0


def _mark(line: tuple[str, str]) -> str:
    quote = _QUOTE.match(line[0])
    return (quote.group() if quote else "").replace(" ", "").replace("\t", "")


def _ordered(marks: list[str]) -> list[str]:
    """The depth of quotation, level by level; how many lines each has may change."""
    return [mark for n, mark in enumerate(marks) if n == 0 or mark != marks[n - 1]]


def _headers_end(text: str) -> int:
    """Where the headers end; 0 where there are none."""
    known, at = 0, 0
    for match in _LINE.finditer(text):
        line = match.group(1)
        if not line:
            break
        header = _HEADER.match(line)
        if not header and not (at and line[0] in " \t"):
            return 0
        known += bool(header) and header.group(1).lower() in _KNOWN if header else 0
        at = match.end()
        if at == len(text):
            break
    return at if known > 1 else 0


def _headers(text: str) -> tuple[int, list[Part]]:
    """Where the headers end, and those among them that are prose."""
    end = _headers_end(text)
    found: list[Builder] = []
    inside, break_at = False, 0
    for match in _LINE.finditer(text, 0, end):
        start, line = match.start(), match.group(1)
        if header := _HEADER.match(line):
            inside = not _is_for_machines(header.group(1).lower())
            if inside:
                reply = _REPLY.match(line, header.end())
                first = start + (reply.end() if reply else header.end())
                found.append(Builder())
                found[-1].add(text[first : match.end(1)], first, match.end(1))
        elif inside and line:
            first = start + len(line) - len(line.lstrip())
            found[-1].add(" ", break_at, first)
            found[-1].add(text[first : match.end(1)], first, match.end(1))
        break_at = match.end(1)
    return end, [made.part() for made in found if made]


def _is_for_machines(name: str) -> bool:
    return name in _MACHINE or name.startswith(_MACHINE_STARTS)


def _body(text: str, start: int) -> Iterator[Part]:
    made, depth, break_at, width = Builder(), "", start, 0
    for match in _LINE.finditer(text, start):
        quote = _QUOTE.match(match.group(1))
        first = match.start() + (quote.end() if quote else 0)
        here = _mark((match.group(1), ""))
        line = text[first : match.end(1)]
        if made and (not line or here != depth or _LIST.match(line)):
            yield made.part()
            made = Builder()
        if line:
            if made:
                joined = width >= WRAPPED
                made.add(" " if joined else "\n", break_at, first, kept=not joined)
            made.add(line, first, match.end(1))
        depth, break_at, width = here, match.end(1), len(match.group(1))
    if made:
        yield made.part()
