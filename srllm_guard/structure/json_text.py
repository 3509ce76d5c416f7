"""JSON and NDJSON: the string values are the parts; keys and all else are never touched.

The text is edited in place within the quotes of a string, never dumped anew. Escapes are written
the way the document writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from srllm_guard.errors import FormatError
from srllm_guard.structure.document import Document
from srllm_guard.structure.part import Builder, Part
from srllm_guard.structure.prose import is_prose

DEEPEST = 4
"""How many documents in strings of documents are opened, such as the arguments of a tool call."""

_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)"(\s*+:)?')
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w|u\w{4}|.)")
_MUST = re.compile('["\\\\\x00-\x1f\ud800-\udfff]')
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)  # a number of any length is a number


def read(text: str) -> Document:
    """Read one JSON document.

    Raises:
        FormatError: it is none; the message says where.
    """
    _check(text.removeprefix("\ufeff"), "JSON", 0)
    return _document(text)


def read_lines(text: str) -> Document:
    """Read NDJSON: one JSON document in each line that is not blank; errors as `read`."""
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n")):
        if line.strip():
            _check(line, "NDJSON", number)
    return _document(text)


def _check(text: str, name: str, line: int) -> None:
    try:
        _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno}, column {error.colno}"
        raise FormatError(f"The text is no valid {name}: {error.msg} ({where}).") from None
    except RecursionError:
        raise FormatError(f"The {name} is nested too deeply.") from None


def _document(text: str) -> Document:
    parts = tuple(_parts(text, 0))
    judged = tuple(n for n, part in enumerate(parts) if is_prose(part.text))
    return Document(text, parts, judged, message=lambda new: json.dumps(new))


def _parts(text: str, depth: int) -> Iterator[Part]:
    spelled: dict[str, str] = {}
    for escape in set(_ESCAPE.findall(text)) if "\\" in text else ():
        read_as = _decoded(escape)
        spelled[read_as] = min(escape, spelled.get(read_as, escape))
    ascii_only = text.isascii() and any(escape > "\x7f" for escape in spelled)

    def spell(new: str) -> str:
        return "".join(
            spelled.get(c) or (json.dumps(c)[1:-1] if _MUST.match(c) or ascii_only else c)
            for c in new
        )

    for match in _STRING.finditer(text):
        if match.group(2) is not None:
            continue
        made, last = Builder(), match.start(1)
        for escape in _ESCAPE.finditer(text, *match.span(1)):
            made.add(text[last : escape.start()], last, escape.start())
            made.add(_decoded(escape.group()), *escape.span())
            last = escape.end()
        made.add(text[last : match.end(1)], last, match.end(1))
        part = made.part(where=match.span(1), spellings=(spell,))
        inner = list(_inside(part.text, depth + 1))
        yield from [each.within(part) for each in inner if each.runs] if inner else [part]


def _inside(text: str, depth: int) -> Iterator[Part]:
    """Parts of a document that a string holds."""
    if depth < DEEPEST and text.lstrip()[:1] in ("{", "["):
        try:
            _check(text, "JSON", 0)
        except FormatError:
            return
        yield from _parts(text, depth)


def _decoded(escape: str) -> str:
    return str(json.loads(f'"{escape}"'))
