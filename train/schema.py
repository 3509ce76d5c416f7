"""Records of the Content Moderation Dataset (CMD), read strictly and written back unchanged.

One JSON object a line, twelve fields, UTF-8. The labels are those of `srllm_guard.labels`; what the
remaining fields may hold stands here.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from srllm_guard.labels import LABELS

TARGETS: tuple[str, ...] = (
    "age",
    "gender",
    "race_or_ethnicity",
    "nationality",
    "religion",
    "physical_disability",
    "mental_illness",
    "neurodivergence",
    "intellectual_disability",
    "illness",
    "sexual_orientation",
    "gender_identity",
    "income",
    "education",
    "occupation",
    "appearance_or_weight",
    "politics",
    "migrants",
    "family_status",
    "region",
    "language_or_accent",
    "diet_or_lifestyle",
    "hobbies",
    "technology_adoption",
    "environment",
    "individual",
)
"""Groups a text can be about; "individual" is one person and no group."""

KINDS: tuple[str, ...] = (
    "stereotype",
    "generalisation",
    "exclusion",
    "derogation",
    "loaded_wording",
    "microaggression",
    "insult",
    "threat",
    "dehumanisation",
    "benevolent_bias",
    "none",
)
"""How a text is unsafe; "none" for safe texts."""

GENRES: tuple[str, ...] = (
    "assistant_reply",
    "news",
    "news_comment",
    "tweet",
    "forum",
    "job_ad",
    "email",
    "performance_review",
    "product_review",
    "marketing",
    "encyclopedia",
    "school",
    "support_reply",
    "dialogue",
    "policy",
)
"""What sort of text it is."""

SPLITS: tuple[str, ...] = ("train", "dev", "test")
"""Part of the data set; nothing is ever trained on "test"."""

_CHOICES: dict[str, tuple[str, ...]] = {**LABELS, "kind": KINDS, "genre": GENRES, "split": SPLITS}
_LISTS = ("targets", "biased_words")


class SchemaError(ValueError):
    """A record does not follow the CMD schema; the message names place, field and allowed values.

    Texts never appear in the message.
    """


@dataclass(frozen=True, slots=True)
class Record:
    """One text with its labels and its safe variation."""

    id: str
    """Unique within the data set."""
    text: str
    """The text as it was written."""
    safe: str | None
    """The safe variation; equal to `text` for a safe text, None where nobody wrote one yet."""
    bias: str
    """"no" or "yes"."""
    toxicity: str
    """"none", "mild" or "high"."""
    sentiment: str
    """"negative", "neutral" or "positive"."""
    harm: str
    """"low", "medium" or "high"."""
    targets: tuple[str, ...]
    """Groups the text is about, of `TARGETS`; a safe text lists those it mentions."""
    kind: str
    """One of `KINDS`."""
    biased_words: tuple[str, ...]
    """Substrings of `text` that make it unsafe."""
    genre: str
    """One of `GENRES`."""
    split: str
    """One of `SPLITS`."""

    @property
    def unsafe(self) -> bool:
        """Whether bias, toxicity or harm was found; negative sentiment alone is a complaint."""
        return self.bias == "yes" or self.toxicity != "none" or self.harm != "low"

    @classmethod
    def from_dict(cls, data: object, where: str = "record") -> Record:
        """Build a record from decoded JSON; `where` names its place in errors.

        Raises:
            SchemaError: a field is missing, unknown, of the wrong type or has a value that is not
                allowed.
        """
        if not isinstance(data, Mapping):
            raise SchemaError(f"{where}: expected a JSON object, found {_type(data)}")
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in data]:
            raise SchemaError(f"{where}: missing {_listed(missing)}; a record has {_listed(names)}")
        if unknown := sorted(str(name)[:40] for name in data if name not in names):
            raise SchemaError(f"{where}: unknown {_listed(unknown)}; a record has {_listed(names)}")
        values: dict[str, Any] = {}
        for name in names:
            value, place = data[name], f'{where}, field "{name}"'
            if name in _CHOICES:
                values[name] = _choice(value, _CHOICES[name], place)
            elif name in _LISTS:
                values[name] = _strings(value, place)
            else:
                values[name] = None if name == "safe" and value is None else _string(value, place)
        for target in values["targets"]:
            _choice(target, TARGETS, f'{where}, field "targets"')
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values, in the order of the schema."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def contradictions(self) -> tuple[str, ...]:
        """What the fields say against each other, one sentence each; empty if they agree."""
        checks = {
            '"text" is empty': not self.text.strip(),
            '"safe" is empty': self.safe is not None and not self.safe.strip(),
            'labels say unsafe (bias, toxicity or harm), but "safe" equals "text"': (
                self.unsafe and self.safe == self.text
            ),
            'labels say safe, but "safe" differs from "text"': (
                not self.unsafe and self.safe not in (None, self.text)
            ),
            '"kind" must be "none" exactly when the labels say safe': (
                self.unsafe == (self.kind == "none")
            ),
            '"biased_words" must be empty exactly when the labels say safe': (
                self.unsafe != bool(self.biased_words)
            ),
        }
        for number, words in enumerate(self.biased_words, 1):
            place = f'entry {number} of "biased_words" is not a substring of "text"'
            checks[place] = not words.strip() or words not in self.text
        for name in _LISTS:
            values = getattr(self, name)
            checks[f'"{name}" holds an entry twice'] = len(set(values)) != len(values)
        return tuple(message for message, wrong in checks.items() if wrong)


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, decoded value) for each line of a UTF-8 JSON Lines file, but for blank lines.

    The place is "NAME line N", for errors.

    Raises:
        SchemaError: a line is not JSON or not UTF-8.
    """
    with path.open("rb") as lines:
        yield from decoded(lines, path.name)


def decoded(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, Any]]:
    """As `json_lines`, of the lines of a file with this name."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            yield place, json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise SchemaError(f"{place}: not UTF-8 (byte {error.start})") from None
        except json.JSONDecodeError as error:
            reason = f"{error.msg}, column {error.colno}"
            raise SchemaError(f"{place}: not JSON ({reason})") from None


def csv_table(path: Path) -> csv.DictReader[str]:
    """A reader of the rows of a UTF-8 CSV file with a header.

    Raises:
        SchemaError: it is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SchemaError(f"{path.name}: not UTF-8 (byte {error.start}); save it as such") from None
    return csv.DictReader(io.StringIO(text, newline=""))


def read_records(path: str | Path) -> list[Record]:
    """Read all records of a JSON Lines file, in order.

    Raises:
        SchemaError: a line is not a record; the message names file, line and field.
    """
    return [Record.from_dict(data, place) for place, data in json_lines(Path(path))]


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON Lines; the file appears whole or not at all."""
    write_lines(Path(path), (record.to_dict() for record in records))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines, with the folders that they need; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(_line(row) for row in rows)
    partial.replace(path)


def to_line(record: Record) -> str:
    """The record as one line of JSON, with its line end."""
    return _line(record.to_dict())


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _choice(value: object, allowed: tuple[str, ...], place: str) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    shown = repr(value[:30]) if isinstance(value, str) else _type(value)
    raise SchemaError(f"{place}: {shown} is not one of {_listed(allowed)}")


def _strings(value: object, place: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise SchemaError(f"{place}: expected a list of strings, found {_type(value)}")
    return tuple(_string(item, place) for item in value)


def _string(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise SchemaError(f"{place}: expected a string, found {_type(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SchemaError(f"{place}: lone surrogate at character {error.start}") from None
    return value


def _type(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
