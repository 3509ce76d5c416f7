"""Files of texts: read a text a row, write the row back with its result.

Bytes that are no UTF-8 travel as surrogate escapes, so that what is not changed is written back as
it was. Rows are counted from 1, without the header of a table and without blank rows.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srllm_guard.errors import ConfigError
from srllm_guard.labels import LABELS
from srllm_guard.results import Detection, Moderation

Result = Detection | Moderation

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NAME_ONE = "Name the one that holds the text with --column."
_NAME = re.compile(r"[^\W\d][\w.-]{0,39}")
"""What is shown as a name; a blank in it, and it may as well be a text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    text: str
    """The text to judge."""
    raw: Any
    """The row as its format needs it to write it back."""


class Source(ABC):
    """A file of texts; its messages name rows and columns and never quote a text.

    Raises:
        ConfigError: the file cannot be read, or is not of this format.
    """

    def __init__(self, path: Path, column: str | None = None):
        self.path = path
        self.column = column or "text"

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yield the rows in order, from the first one each time.

        Raises:
            ConfigError: a row is not of this format or holds no text. The rows before are good.
        """

    @abstractmethod
    def written(self, raw: Any, result: Result) -> bytes:
        """Return a row with its result, as it stands in the output."""

    def head(self, command: str) -> bytes:  # noqa: ARG002
        """Return what stands before the first row in the output of "rewrite" or "detect"."""
        return self._bom()

    def count(self) -> int:
        """Return how many rows can be read."""
        number = 0
        try:
            for _ in self.rows():
                number += 1
        except ConfigError:
            pass  # whoever reads that far is told
        return number

    @contextmanager
    def _opened(self, newline: str) -> Iterator[io.TextIOWrapper]:
        try:
            stream = self.path.open("rb")
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}.") from error
        with stream:
            if stream.read(2) in _UTF16:
                raise ConfigError(f"{self.path} is UTF-16.", hint="Save it as UTF-8.")
            stream.seek(0)
            yield io.TextIOWrapper(
                stream, encoding="utf-8-sig", errors="surrogateescape", newline=newline
            )

    def _bom(self) -> bytes:
        with self.path.open("rb") as stream:
            start = stream.read(len(codecs.BOM_UTF8))
        return start if start == codecs.BOM_UTF8 else b""


class Lines(Source):
    """One text a line; the ends of lines stay what they are."""

    def rows(self) -> Iterator[Row]:
        """Yield the lines; `raw` is the end of the line."""
        with self._opened(newline="\n") as stream:
            for line in stream:
                text = line.removesuffix("\n").removesuffix("\r")
                yield Row(text, line[len(text) :])

    def written(self, raw: str, result: Result) -> bytes:
        """Return the released text, or the verdict, and the end of the line."""
        if isinstance(result, Detection):
            return to_bytes(verdict(result) + raw)
        # A line break inside would shift all later lines against those of the input.
        return to_bytes(result.text.replace("\n", " ") + raw)


class Table(Source):
    """Comma-separated values with a header; rows shorter than the header are filled up."""

    def __init__(self, path: Path, column: str | None = None):
        super().__init__(path, column)
        with self._opened(newline="") as stream:
            self._end = "\r\n" if stream.readline().endswith("\r\n") else "\n"
        self._header = next(self._records(), [])
        if self.column not in self._header:
            has = _listed(self._header) if self._header else "no header"
            raise ConfigError(
                f'{path} has no column "{self.column}"; it has: {has}.',
                hint=f"Is its first row a header? {_NAME_ONE}",
            )
        if taken := [
            name for name in self._header if name in (*_DETECT_COLUMNS, *_REWRITE_COLUMNS)
        ]:
            raise ConfigError(
                f"{path} already has the column {taken[0]}.", hint="Rename it or leave it out."
            )

    def rows(self) -> Iterator[Row]:
        """Yield the rows below the header; `raw` is the list of fields."""
        width, at = len(self._header), self._header.index(self.column)
        records = self._records()
        next(records, None)
        for number, fields in enumerate(records, start=1):
            if len(fields) > width:
                raise ConfigError(
                    f"{self.path}, row {number}: {len(fields)} fields; the header has {width}.",
                    hint="Put quotes around fields that hold commas.",
                )
            filled = fields + [""] * (width - len(fields))
            yield Row(filled[at], filled)

    def head(self, command: str) -> bytes:
        """Return the header with the columns that the command adds."""
        added = _DETECT_COLUMNS if command == "detect" else _REWRITE_COLUMNS
        return self._bom() + self._line([*self._header, *added])

    def written(self, raw: list[str], result: Result) -> bytes:
        """Return the fields of the row and those of the result."""
        added = _detect_fields(result) if isinstance(result, Detection) else _rewrite_fields(result)
        return self._line([*raw, *added])

    def _records(self) -> Iterator[list[str]]:
        csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
        with self._opened(newline="") as stream:
            reader = csv.reader(stream, strict=True)
            try:
                yield from filter(None, reader)
            except csv.Error as error:
                where = f"{self.path}, line {reader.line_num}"
                raise ConfigError(f"{where}: no valid CSV: {error}.") from error

    def _line(self, fields: Iterable[object]) -> bytes:
        line = io.StringIO(newline="")
        # Python 3.11 quotes the signs of the terminator alone, and readers end a row at either.
        csv.writer(line, lineterminator="\r\n").writerow(fields)
        return to_bytes(line.getvalue().removesuffix("\r\n") + self._end)


class Records(Source):
    """JSON Lines: one object a line; everything but the added field "guard" stays as it is."""

    def rows(self) -> Iterator[Row]:
        """Yield the objects; `raw` is the line."""
        with self._opened(newline="\n") as stream:
            for number, line in enumerate(filter(str.strip, stream), start=1):
                yield Row(self._text(line, f"{self.path}, row {number}"), line)

    def written(self, raw: str, result: Result) -> bytes:
        """Return the line with the field "guard" added to its object."""
        body = raw.rstrip()
        start, rest = body[:-1].rstrip(), raw[len(body) :]
        comma = "" if start == "{" else ", "
        guard = to_json(result.to_dict())
        return b"".join(
            (to_bytes(f'{start}{comma}"guard": '), guard, b"}", to_bytes(rest if rest else "\n"))
        )

    def _text(self, line: str, where: str) -> str:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise ConfigError(f"{where}: no valid JSON.") from None
        if not isinstance(record, dict):
            raise ConfigError(f"{where}: not a JSON object but {type(record).__name__}.")
        if self.column not in record:
            has = _listed(record) if record else "none"
            raise ConfigError(
                f'{where}: no field "{self.column}"; its fields: {has}.', hint=_NAME_ONE
            )
        if "guard" in record:
            raise ConfigError(f'{where}: there is a field "guard" already.', hint="Rename it.")
        text = record[self.column]
        if not isinstance(text, str):
            raise ConfigError(
                f'{where}: the field "{self.column}" is {type(text).__name__}, not a string.'
            )
        return text


FORMATS: dict[str, type[Source]] = {".txt": Lines, ".csv": Table, ".jsonl": Records}
"""The format of a file by its suffix."""


def verdict(found: Detection) -> str:
    """Return a detection as one line, such as "unsafe 0.934 bias=yes toxicity=mild ..."."""
    return f"{outcome(found)} {found.score:.3f} {labels(found)}"


def labels(found: Detection) -> str:
    """Return the labels of a detection, such as "bias=yes toxicity=mild ..."."""
    return " ".join(f"{name}={getattr(found, name).value}" for name in LABELS)


def outcome(result: Result) -> str:
    """Return the word for a result: its action, or "safe", "unsafe" or "unverified"."""
    if isinstance(result, Moderation):
        return result.action
    if result.unsafe:
        return "unsafe"
    return "safe" if result.verified else "unverified"


def to_bytes(text: str) -> bytes:
    """Return the bytes of a text; surrogate escapes become the bytes they stand for."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that never was a byte
        return text.encode("utf-8", "backslashreplace")


def to_json(value: Any) -> bytes:
    """Return a value as JSON on one line, without its end; lone surrogates become escapes."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _listed(names: Collection[str]) -> str:
    """Names for a message; where any of them may be a text, only how many there are."""
    if all(map(_NAME.fullmatch, names)):
        return ", ".join(names)
    return f"{len(names)}, whose names may be texts"


_SCORE_COLUMNS = (
    "guard_score",
    *(f"guard_{name}" for name in LABELS),
    "guard_verified",
    "guard_language",
)
_DETECT_COLUMNS = ("guard_unsafe", *_SCORE_COLUMNS, "guard_spans")
_REWRITE_COLUMNS = ("guard_text", "guard_action", *_SCORE_COLUMNS, "guard_score_after")


def _score_fields(found: Detection) -> tuple[object, ...]:
    values = (getattr(found, name).value for name in LABELS)
    return found.score, *values, found.verified, found.language


def _detect_fields(found: Detection) -> tuple[object, ...]:
    spans = json.dumps([span.to_dict() for span in found.spans])
    return found.unsafe, *_score_fields(found), spans


def _rewrite_fields(result: Moderation) -> tuple[object, ...]:
    after = None if result.after is None else result.after.score
    return result.text, result.action, *_score_fields(result.before), after
