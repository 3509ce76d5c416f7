"""The examples of a run: those of each source that its configuration names.

`cmd` are the authored records; `hub` is the paper's own set on the Hub. All else lies in a data
folder: `csv` is its `train/csv.csv`, `pairs` its `train/pairs.jsonl`, any other source its
`train/SOURCE.jsonl`.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from srllm_guard.errors import ConfigError
from train import readings, rewriting, sources
from train.config import Config
from train.epochs import Corpus
from train.example import Example, labelled
from train.schema import json_lines

DEV = sources.Options(edos_negatives=True)
"""For dev examples: a set with one class has no average precision."""

FOR_THRESHOLDS = 0.25
"""Share of the safe sets that thresholds are chosen by."""

READINGS = "readings"
"""Folder of `train.readings` within that of the authored records."""

EVALUATION = ("dev", "bench", "judge", "safe")
"""Folders of the data whose texts are for evaluation alone."""


def corpus(config: Config, data: Path | None, authored: Path) -> Corpus:
    """Training and dev examples of every source that the configuration names.

    Training texts that also stand in a dev or test set, or in any other set of `data` that is for
    evaluation, are dropped.

    Raises:
        ConfigError: a source needs the data folder and none was given, or it lacks the source;
            there are no readings, and the configuration learns from them.
    """
    options = sources.Options(edos_negatives=config.data.edos_negatives)
    train: dict[str, list[Example]] = {}
    dev: dict[str, list[Example]] = {}
    for name in names(config):
        where = place(config, name, data, authored)
        try:
            train[name] = sources.load(where, name, "train", options)
            dev[name] = sources.load(where, name, "dev", DEV)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{config.name} trains on {name!r}, and its file is not there: {error}",
                hint="Check --data and --authored.",
            ) from error
    if config.data.edos_negatives and {"edos", "paradetox"} <= train.keys():
        train["edos"] = without_coarse(train["edos"], coarse_words(train["paradetox"]))
    if config.data.variations and "cmd" in train:
        train["cmd"] += variations(train["cmd"])
    held = [text for part in dev.values() for example in part for text in _said(example)]
    if "cmd" in train:
        own = sources.load(authored, "cmd", "test")
        held += [text for example in own for text in _said(example)]
    if data is not None:
        held += evaluation_texts(data)
    return Corpus(
        {k: sources.without(v, held) for k, v in train.items()},
        dev,
        [] if data is None else ordinary(data),
        readings=[] if config.preference is None else _readings(config, authored, held),
    )


def _readings(config: Config, authored: Path, held: list[str]) -> list[readings.Reading]:
    own = [e.text for split in ("dev", "test") for e in sources.load(authored, "cmd", split)]
    found = readings.read(authored / READINGS)
    if not found:
        raise ConfigError(
            f"{config.name} learns from readings, and there are none in {authored / READINGS}.",
            hint="Check --authored, or leave [preference] out.",
        )
    barred = {sources.plain(text) for text in (*held, *own)}
    return [each for each in found if sources.plain(each.source) not in barred]


def variations(examples: Iterable[Example]) -> list[Example]:
    """The sentences that people changed in unsafe examples, as they became: safe in every respect.

    They are what a rewrite is judged beside, and they tell what made a sentence unsafe from the
    people that it is about.
    """
    labels = labelled(unsafe="no", bias="no", toxicity="none", harm="low")
    draw = random.Random(0)
    return [
        replace(
            example,
            text=pair.safe,
            safe=(),
            labels=labels,
            spans=(),
            context=pair.context,
            id=f"{example.id}-safe-{number}",
        )
        for example in examples
        for number, pair in enumerate(rewriting.pairs(example, draw))
    ]


def coarse_words(examples: Iterable[Example], least: int = 5) -> frozenset[str]:
    """Words that rewrites by people take away: marked at least so often, and mostly marked."""
    marked, seen = Counter[str](), Counter[str]()
    for example in examples:
        seen.update(_words(example.text))
        for start, end, _ in example.spans or ():
            marked.update(_words(example.text[start:end]))
    return frozenset(w for w, n in marked.items() if n >= least and 2 * n > seen[w])


def without_coarse(examples: Iterable[Example], coarse: frozenset[str]) -> list[Example]:
    """Drop examples that are safe in one respect only, if a coarse word says that they are not."""
    return [e for e in examples if e.unsafe or coarse.isdisjoint(_words(e.text))]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def ordinary(data: Path) -> list[str]:
    """The part of the safe sets that thresholds are chosen by; benchmarks report on the rest."""
    return [text for text in _texts(data / "safe") if sources.held_out(text, FOR_THRESHOLDS)]


def names(config: Config) -> list[str]:
    """The sources of a configuration, each once."""
    again = () if config.refit is None else config.refit.detection
    return list(dict.fromkeys((*config.data.rewriting, *config.data.detection, *again)))


def place(config: Config, name: str, data: Path | None, authored: Path) -> Path | str:
    """Where `train.sources.load` finds a source.

    Raises:
        ConfigError: it is in the data folder, and none was given.
    """
    if name == "cmd":
        return authored
    if name == "hub":
        return sources.HUB_DATASET
    if data is None:
        raise ConfigError(
            f"{config.name} trains on {name!r}, which is not in this repository.",
            hint="Give its folder with --data.",
        )
    single = {"csv": "csv.csv", "pairs": "pairs.jsonl"}
    return data / "train" / single[name] if name in single else data


def evaluation_texts(data: Path) -> list[str]:
    """What the files for evaluation alone say in more than one word, rewrites and all variants."""
    found: list[str] = []
    for part in EVALUATION:
        for path in sorted((data / part).glob("*.jsonl")):
            found += (text for _, row in json_lines(path) for text in _strings(row))
        for path in sorted((data / part).glob("*.json")):
            found += _strings(json.loads(path.read_text("utf-8")))
    return [text for text in found if len(text.split()) > 1]


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _said(example: Example) -> tuple[str, ...]:
    return example.text, *example.safe


def _texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.jsonl")):
        for _, row in json_lines(path):
            if isinstance(row, dict) and isinstance(row.get("text"), str):
                yield row["text"]


def files(config: Config, name: str, data: Path | None, authored: Path) -> list[Path]:
    """The training files of a source, in order; none for a set on the Hub.

    Raises:
        ConfigError: as `place`.
    """
    where = place(config, name, data, authored)
    if isinstance(where, str):
        return []
    if name == "cmd":
        return sources.files(where)
    return [where] if where.is_file() else [where / "train" / f"{name}.jsonl"]
