"""Loads the examples of a source, split by split, from files or from the Hub.

What the rows of each source mean stands in `train.mappings`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from srllm_guard.errors import MissingExtra
from train.example import Example
from train.mappings import SOURCES, Options, Row, paper_columns
from train.schema import SPLITS, SchemaError, csv_table, json_lines

__all__ = [
    "HUB_DATASET",
    "SOURCES",
    "Example",
    "Options",
    "files",
    "held_out",
    "load",
    "load_csv",
    "load_hub",
    "without",
]

HUB_DATASET = "newsmediabias/instruction-safe-llm"
"""CMD as its authors put it on the Hub (access on request); its one split is named "test"."""

_OWN_SPLITS = ("cmd", "pairs")
"""Sources whose rows may say which split they belong to."""

_DEFAULTS = Options()


def load(where: str | Path, source: str, split: str, options: Options = _DEFAULTS) -> list[Example]:
    """Examples of one source that belong to one split, in file order.

    Args:
        where: the data folder with `train/SOURCE.jsonl` and, maybe, `dev/SOURCE.jsonl`; for "cmd" a
            folder of JSON Lines files (or one with a folder `authored`) or one file; for "csv" and
            "pairs" one file; for "hub" the name of the data set.
        source: a name in `SOURCES`.
        split: "train" or "dev"; also "test" where rows name their split ("cmd", "pairs").
        options: see `Options`.

    Where neither the rows nor a dev file (an empty one counts as none) divide a source, the dev
    split is held out of it by a hash of the text, so that dev and train never share one.

    Raises:
        ValueError: unknown source or split, or a source that has no test split.
        SchemaError: a row is not as the source's rows are; names file and line.
        FileNotFoundError: the source's file is not there.
    """
    _check(source, split)
    if source == "hub":
        return load_hub(str(where), split, options)
    if source == "csv":
        return load_csv(where, split, options)
    where = Path(where)
    if source in _OWN_SPLITS:
        rows = (row for path in files(where) for row in json_lines(path))
        return _divided(rows, source, split, options)
    train, dev = (where / part / f"{source}.jsonl" for part in ("train", "dev"))
    if not dev.is_file() or not dev.stat().st_size:
        return _divided(json_lines(train), source, split, options)
    path = train if split == "train" else dev
    return [
        replace(example, split=split) for _, example in _examples(json_lines(path), source, options)
    ]


def load_csv(path: str | Path, split: str = "train", options: Options = _DEFAULTS) -> list[Example]:
    """Examples of a CSV file with the columns of the paper's repository, see `hub`.

    Raises:
        SchemaError: a column is missing; the message names the columns there are.
    """
    _check("csv", split)
    path = Path(path)
    table = csv_table(path)
    try:
        paper_columns(table.fieldnames or ())
    except SchemaError as error:
        raise SchemaError(f"{path.name}: {error}") from None
    rows = ((f"{path.name} row {number}", row) for number, row in enumerate(table, 1))
    return _divided(rows, "csv", split, options)


def load_hub(
    name: str = HUB_DATASET, split: str = "train", options: Options = _DEFAULTS
) -> list[Example]:
    """Examples of the paper's CMD on the Hub, of all its splits, divided anew; see `hub`.

    Raises:
        MissingExtra: the package `datasets` is not installed.
    """
    _check("hub", split)
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError:
        raise MissingExtra(extra="train", needed_for=f"reading {name} from the Hub") from None
    parts = load_dataset(name)
    rows = (
        (f"{name} {part} row {number}", row)
        for part, data in parts.items()
        for number, row in enumerate(data, 1)
    )
    return _divided(rows, "hub", split, options)


def without(examples: Iterable[Example], texts: Iterable[str]) -> list[Example]:
    """Drop the examples whose text, or a rewrite of it, is among the texts of an evaluation set.

    Case and white space do not count.
    """
    barred = {plain(text) for text in texts}
    return [
        example
        for example in examples
        if barred.isdisjoint(plain(text) for text in (example.text, *example.safe))
    ]


def held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the dev split; the same for all texts of the same letters."""
    digest = hashlib.sha256(plain(text).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def _check(source: str, split: str) -> None:
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; the sources are {', '.join(SOURCES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if split == "test" and source not in _OWN_SPLITS:
        raise ValueError(f"source {source!r} has no test split; it has train and dev")


def plain(text: str) -> str:
    """A text without case and with single spaces: two that are alike here count as one."""
    return " ".join(text.casefold().split())


def files(where: Path) -> list[Path]:
    """The JSON Lines files of CMD records that a path means, in order of their names.

    Raises:
        FileNotFoundError: there is none.
    """
    if where.is_file():
        return [where]
    found = sorted(where.glob("*.jsonl")) or sorted((where / "authored").glob("*.jsonl"))
    if not found:
        raise FileNotFoundError(f"no .jsonl file in {where}, nor in its folder authored")
    return found


def _divided(
    rows: Iterable[tuple[str, Row]], source: str, split: str, options: Options
) -> list[Example]:
    """Examples of one split, where the rows or else the hash of their text tell the split."""
    result = []
    for text, example in _examples(rows, source, options):
        part = example.split or ("dev" if held_out(text, options.dev_share) else "train")
        if part == split:
            result.append(replace(example, split=part))
    return result


def _examples(
    rows: Iterable[tuple[str, Row]], source: str, options: Options
) -> Iterator[tuple[str, Example]]:
    """Examples with source and id, each beside the text of its row.

    The parts of a row stay together: rewrites go where their source goes.
    """
    for number, (place, row) in enumerate(rows, 1):
        try:
            if not isinstance(row, Mapping):
                raise SchemaError("expected a JSON object")
            parts = list(SOURCES[source](row, options))
        except ValueError as error:
            raise SchemaError(f"{place}: {error}") from None
        for part, example in enumerate(parts):
            name = example.id or f"{source}-{number:06d}" + (f"-{part}" if part else "")
            yield parts[0].text, replace(example, source=source, id=name)
