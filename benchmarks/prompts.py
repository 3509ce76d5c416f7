"""The paper's prompt baseline: the base model is asked for a safe variation, with examples or none.

The paper gives no wording, so the instruction is ours; examples are unsafe authored records of the
training split that fit on a line, drawn by the seed, one at most of a kind.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.language_model import LanguageModel, Turn
from train.schema import read_records
from train.sources import files

SYSTEM = (
    "Rewrite the user's text into a safe variation: free of bias, toxicity and harm, with the same "
    "message and style. Answer with the rewritten text alone."
)

LONGEST = 160
"""Most characters of an example."""


def shots(authored: Path, count: int, seed: int) -> list[Turn]:
    """Examples of unsafe texts with safe variations."""
    records = [
        record
        for path in files(authored)
        for record in read_records(path)
        if record.split == "train"
        and record.unsafe
        and record.safe
        and len(record.text) <= LONGEST
        and "\n" not in record.text
    ]
    random.Random(seed).shuffle(records)  # noqa: S311
    found: dict[str, Turn] = {}
    for record in records:
        found.setdefault(record.kind, (record.text, record.safe or ""))
    return list(found.values())[:count]


def prompted(
    model: LanguageModel, examples: Sequence[Turn], texts: Sequence[str], name: str
) -> list[str]:
    """The model's answers, greedy."""
    with tqdm(total=len(texts), desc=name, unit="text") as bar:
        return model.answers(SYSTEM, examples, texts, progress=bar)
