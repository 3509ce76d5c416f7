"""Checks records of the CMD schema and counts them.

    python -m train.audit train/data/*.jsonl
    python -m train.audit train/data/*.jsonl --against DATA/dev/*.jsonl

Errors (a record that breaks the schema or contradicts itself, an id that comes twice) end with exit
status 1. Remarks are for a reader to judge: near-duplicates, and numbers, URLs and the like outside
of the biased words that a safe variation lost.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import ceil
from pathlib import Path

from srllm_guard.labels import LABELS
from srllm_guard.text.protect import missing
from train.example import occurrences
from train.schema import GENRES, KINDS, SPLITS, TARGETS, Record, SchemaError, json_lines

NEAR = 0.6
"""Jaccard similarity of character 5-grams from which two texts count as near-duplicates."""

_LENGTHS = {
    "below 100": 100,
    "100 to 199": 200,
    "200 to 399": 400,
    "400 to 799": 800,
    "800 and more": sys.maxsize,
}


def read(paths: Iterable[Path]) -> tuple[list[Record], list[str]]:
    """All records that follow the schema, and the errors of all."""
    records: list[Record] = []
    errors: list[str] = []
    places: dict[str, str] = {}
    for path in paths:
        for place, data in json_lines(path):
            try:
                record = Record.from_dict(data, place)
            except SchemaError as error:
                errors.append(str(error))
                continue
            records.append(record)
            errors += [f"{place} ({record.id}): {text}" for text in record.contradictions()]
            if record.id in places:
                errors.append(f"{place}: id {record.id} is that of {places[record.id]}")
            places.setdefault(record.id, place)
    return records, errors


def lost_parts(record: Record) -> list[str]:
    """Kinds of the protected parts (numbers, URLs, ...) that `safe` lost.

    Parts that touch biased words are part of the attack and may go.
    """
    if record.safe is None:
        return []
    attack = [span[:2] for span in occurrences(record.text, record.biased_words, "bias")]
    return [part.kind for part in missing(record.text, record.safe, skip=attack)]


def near_duplicates(texts: Sequence[str], least: float = NEAR) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, similarity), i < j, for all pairs of texts at least that similar.

    Prefix filtering (Bayardo et al., "Scaling Up All Pairs Similarity Search", WWW 2007): two sets
    that similar share one of the rarest grams of each, so only those are looked up.
    """
    grams = [_grams(text) for text in texts]
    frequency = Counter(gram for one in grams for gram in one)
    holders: dict[str, list[int]] = defaultdict(list)
    for j, mine in enumerate(grams):
        ordered = sorted(mine, key=lambda gram: (frequency[gram], gram))
        prefix = ordered[: len(mine) - ceil(least * len(mine) - 1e-9) + 1]
        for i in sorted({i for gram in prefix for i in holders[gram]}):
            shared = len(mine & grams[i])
            similarity = shared / (len(mine) + len(grams[i]) - shared)
            if similarity >= least:
                yield i, j, similarity
        for gram in prefix:
            holders[gram].append(j)


def tables(records: Sequence[Record]) -> str:
    """Counts of safe and unsafe records as Markdown tables."""

    def table(title: str, keys: Callable[[Record], Iterable[str]], names: Iterable[str]) -> str:
        safe, unsafe = Counter[str](), Counter[str]()
        for record in records:
            (unsafe if record.unsafe else safe).update(keys(record))
        lines = [f"| {title} | safe | unsafe | all |", "|---|--:|--:|--:|"]
        for name in names:
            counts = safe[name], unsafe[name], safe[name] + unsafe[name]
            lines.append(f"| {name} | {counts[0]} | {counts[1]} | {counts[2]} |")
        return "\n".join(lines)

    values = {"kind": KINDS, "genre": GENRES, **LABELS}
    parts = [
        table("split", lambda record: (record.split, "all"), (*SPLITS, "all")),
        *(table(name, _value_of(name), allowed) for name, allowed in values.items()),
        table(
            "target (a record may have several)",
            lambda record: record.targets or ("no target",),
            (*TARGETS, "no target"),
        ),
        table("characters", lambda record: (_length(record.text),), _LENGTHS),
    ]
    return "\n\n".join(parts)


def _value_of(name: str) -> Callable[[Record], Iterable[str]]:
    return lambda record: (getattr(record, name),)


def _length(text: str) -> str:
    return next(name for name, below in _LENGTHS.items() if len(text) < below)


def _grams(text: str, n: int = 5) -> frozenset[str]:
    text = " ".join(text.casefold().split())
    return frozenset(text[i : i + n] for i in range(max(1, len(text) - n + 1)))


def main(argv: Sequence[str] | None = None) -> int:
    """Print errors, remarks and counts; 0 if there is no error."""
    parser = argparse.ArgumentParser(prog="python -m train.audit", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="JSON Lines of the CMD schema")
    parser.add_argument("--against", nargs="*", type=Path, default=[], metavar="JSONL")
    args = parser.parse_args(argv)
    try:
        records, errors = read(args.paths)
        others = [
            (place, data["text"])
            for path in args.against
            for place, data in json_lines(path)
            if isinstance(data, dict) and isinstance(data.get("text"), str)
        ]
    except (SchemaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    names = [record.id for record in records] + [place for place, _ in others]
    texts = [record.text for record in records] + [text for _, text in others]
    pairs = [pair for pair in near_duplicates(texts) if pair[0] < len(records)]
    remarks = [f"{names[i]} and {names[j]}: {value:.2f} similar" for i, j, value in pairs]
    remarks += [
        f"{record.id}: the safe variation lost {', '.join(lost)}"
        for record in records
        if (lost := lost_parts(record))
    ]
    for title, lines in (("Errors", errors), ("Remarks", remarks)):
        print(f"{title}: {len(lines)}")
        print("".join(f"  {line}\n" for line in lines))
    print(tables(records))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
