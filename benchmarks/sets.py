"""The evaluation sets, read from a data folder and from the authored records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.metrics import Range
from srllm_guard.labels import LABELS
from train.corpus import FOR_THRESHOLDS
from train.example import Example
from train.schema import Record, json_lines, read_records
from train.sources import Options, files, held_out, load

SOURCES = ("paradetox", "toxic_spans", "edos", "implicit_hate", "diasafety", "hatemoji_build")
"""Sets that `train.sources` knows; their dev split is measured."""

PAIRED = ("sr_bias", "appdia")
"""Sets in `dev/` of texts with rewrites; the rewrites are the safe texts."""

ORDINARY = ("wikitext2", "self_instruct", "llm_replies")
"""Sets in `safe/` of texts that must pass untouched."""

REWRITES = ("paradetox", "appdia", "sr_bias", "authored")
"""Sets of unsafe texts with rewrites by people."""

_CONTEXT = 300
"""Most characters of context before a text, as in training."""


@dataclass(frozen=True, slots=True)
class Case:
    """One text whose truth is known."""

    text: str
    unsafe: bool
    spans: tuple[Range, ...] | None = None
    """Where it is unsafe; () if it is not, None if nobody marked it."""
    start: int = 0
    """Where the text that is judged begins; what stands before is context."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The value of each CMD label that is known exactly."""


@dataclass(frozen=True, slots=True)
class Cases:
    """One set for detection."""

    name: str
    cases: tuple[Case, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """One unsafe text with rewrites by people."""

    id: str
    text: str
    references: tuple[str, ...]
    phrases: tuple[str, ...] = ()
    """Parts of the text that make it unsafe; empty if nobody marked them."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """One set for rewriting."""

    name: str
    pairs: tuple[Pair, ...]
    files: tuple[Path, ...]


def detection(data: Path, authored: Path, split: str) -> Iterator[Cases]:
    """Sets of safe and unsafe texts; those that are not in the folder are left out."""
    examples = load(authored, "cmd", split)
    yield Cases("authored", _cases(examples), tuple(files(authored)))
    for name in SOURCES:
        present = _present(data / "train" / f"{name}.jsonl", data / "dev" / f"{name}.jsonl")
        if data / "train" / f"{name}.jsonl" in present:
            found = load(data, name, "dev", Options(edos_negatives=True))
            yield Cases(name, _cases(found), tuple(present))
    for path in _present(data / "bench" / "toxigen_demonstrations.jsonl"):
        hate = (Case(row["text"], row["label"] == "hate") for row in _rows(path))
        yield Cases("toxigen_demonstrations", tuple(hate), (path,))
    for path in _present(data / "dev" / "toxigen_annotated.jsonl"):
        rated = (Case(row["text"], bool(row["unsafe"])) for row in _rows(path))
        yield Cases("toxigen_annotated", tuple(rated), (path,))
    for name in PAIRED:
        for path in _present(data / "dev" / f"{name}.jsonl"):
            yield Cases(name, _both_sides(path), (path,))


def ordinary(data: Path, authored: Path, split: str) -> Iterator[Cases]:
    """Sets of safe texts."""
    for name in ORDINARY:
        for path in _present(data / "safe" / f"{name}.jsonl"):
            texts = (row["text"] for row in _rows(path))
            # Those that thresholds were chosen by would flatter.
            kept = (text for text in texts if not held_out(text, FOR_THRESHOLDS))
            yield Cases(name, tuple(Case(text, False, ()) for text in kept), (path,))
    safe = tuple(case for case in _cases(load(authored, "cmd", split)) if not case.unsafe)
    yield Cases("authored", safe, tuple(files(authored)))


def rewriting(name: str, data: Path, authored: Path, split: str) -> Pairs:
    """One of `REWRITES`.

    Raises:
        ValueError: unknown set.
        FileNotFoundError: the set is not in the data folder.
    """
    if name not in REWRITES:
        raise ValueError(f"unknown set {name!r}; the sets are {', '.join(REWRITES)}")
    if name == "authored":
        return Pairs(name, tuple(_authored(authored, split)), tuple(files(authored)))
    path = data / "dev" / f"{name}.jsonl"
    pairs = (
        Pair(
            f"{name}-{number}",
            row["text"],
            tuple(row["safe"]),
            tuple(row.get("biased_words") or ()),
        )
        for number, row in enumerate(_rows(path), 1)
        if any(row["safe"])
    )
    return Pairs(name, tuple(pairs), (path,))


def _authored(folder: Path, split: str) -> Iterator[Pair]:
    for path in files(folder):
        for record in read_records(path):
            if record.split == split and record.unsafe and record.safe:
                yield _pair(record)


def _pair(record: Record) -> Pair:
    return Pair(record.id, record.text, (record.safe or "",), record.biased_words)


def _cases(examples: list[Example]) -> tuple[Case, ...]:
    found = []
    for example in examples:
        known = example.labels.get("unsafe", frozenset())
        if len(known) != 1:
            continue
        before = example.context[-_CONTEXT:] + "\n" if example.context else ""
        start = len(before)
        ranges: tuple[Range, ...] | None = None
        if example.spans is not None:
            ranges = tuple((first + start, end + start) for first, end, _ in example.spans)
        exact = {
            n: next(iter(example.labels[n])) for n in LABELS if len(example.labels.get(n, ())) == 1
        }
        found.append(Case(before + example.text, known == {"yes"}, ranges, start, exact))
    return tuple(found)


def _both_sides(path: Path) -> tuple[Case, ...]:
    """Texts as unsafe and their rewrites as safe; a rewrite that changes nothing is left out."""
    found = []
    for row in _rows(path):
        found.append(Case(row["text"], True))
        rewrites = dict.fromkeys(row["safe"])
        found += [Case(s, False, ()) for s in rewrites if s.strip() and s != row["text"]]
    return tuple(found)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return (row for _, row in json_lines(path))


def _present(*paths: Path) -> list[Path]:
    """The files that are there and not empty."""
    return [path for path in paths if path.is_file() and path.stat().st_size]
