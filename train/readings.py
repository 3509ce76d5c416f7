"""What readers said of rewrites that a bundle proposed for flagged segments.

One JSON object a line: `record`, the id of the authored record; `source`, the segment; `context`,
what the rewriter was shown before it; `marks`, the ranges of `source` that it was shown as unsafe;
`rewrites`, each with its `text` and its `verdict`, one of `VERDICTS`. `train/readings/README.md`
says how they were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srllm_guard.prompt import Range
from train.schema import SchemaError, json_lines

VERDICTS = ("good", "left", "flipped", "invented", "lost", "clumsy")
"""Good, or what is worst about it: something unsafe is left, something is reversed, invented or
lost, or it is no proper sentence."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One segment, and what readers said of rewrites of it."""

    record: str
    source: str
    context: str
    marks: tuple[Range, ...]
    rewrites: Mapping[str, str]
    """Verdict of each rewrite."""

    @property
    def good(self) -> list[str]:
        """Rewrites that a reader would sign."""
        return [text for text, verdict in self.rewrites.items() if verdict == "good"]

    @property
    def bad(self) -> list[str]:
        """The others."""
        return [text for text, verdict in self.rewrites.items() if verdict != "good"]


def read(folder: Path) -> list[Reading]:
    """All readings of the JSON Lines files in a folder, in order.

    Raises:
        SchemaError: a line is no reading; the message names file and line.
    """
    return [
        found
        for path in sorted(folder.glob("*.jsonl"))
        for place, row in json_lines(path)
        for found in _parsed(row, place)
    ]


def _parsed(row: Any, place: str) -> Iterator[Reading]:
    try:
        marks = tuple((int(start), int(end)) for start, end in row["marks"])
        rewrites = {str(each["text"]): str(each["verdict"]) for each in row["rewrites"]}
        found = Reading(row["record"], row["source"], row["context"], marks, rewrites)
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(f"{place}: no reading ({type(error).__name__} at {error})") from None
    if unknown := sorted(set(rewrites.values()) - set(VERDICTS)):
        raise SchemaError(f"{place}: verdict {unknown[0]!r} is not one of {', '.join(VERDICTS)}")
    ends = [0, *(at for mark in marks for at in mark), len(found.source)]
    if not marks or ends != sorted(ends):
        raise SchemaError(f"{place}: the marks are not in order within the source")
    yield found
