from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from srllm_guard.prompt import Prompt
from tests import tiny_model
from train.config import Config

DATA = Path(__file__).parents[2] / "train" / "data"

CONFIG = """
name = "tiny"
prompt = "chatml-1"

[base]
repo = "tests/tiny"
license = "cc0-1.0"

[lora]
r = 8
alpha = 16
dropout = 0.1

[heads]
layer = 2
dim = 32
blocks = 1
lr = 5e-3

[data]
copies = 0.5

[data.detection]
cmd = 0

[data.rewriting]
cmd = 0

[training]
epochs = 4
lr = 2e-2
rewriting_tokens = 1500
detection_tokens = 2000
save_every = 3
evaluate_every = 6
seed = 3
"""
"""A run of a few seconds."""


ROW: dict[str, Any] = {
    "record": "a-1",
    "source": "Ed, you fool, call me.",
    "context": "",
    "marks": [[4, 12]],
    "rewrites": [
        {"text": "Ed, call me.", "verdict": "good"},
        {"text": "Ed, you, call me.", "verdict": "clumsy"},
        {"text": "Ed, you clown, call me.", "verdict": "left"},
    ],
}
"""A line of `train.readings`."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in another order differ in their last bit, and exactness is tested here.

    What the command line of a run sets for the whole process is undone after each test.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deep enough for the layer that the paper's recipe names here."""
    folder = tmp_path_factory.mktemp("llama")
    return tiny_model.write(folder, "llama2-1", layers=9, tie_word_embeddings=False)


@pytest.fixture(scope="session")
def authored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 short authored records: 28 train, 8 dev, 4 test; half of each unsafe."""
    wanted = {(split, unsafe): n for split, n in SIZES.items() for unsafe in (True, False)}
    chosen: list[dict[str, Any]] = []
    for path in sorted(DATA.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            key = record["split"], record["kind"] != "none"
            if len(record["text"]) <= 110 and wanted[key]:
                wanted[key] -= 1
                chosen.append(record)
    assert not any(wanted.values())
    folder = tmp_path_factory.mktemp("authored")
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in chosen]
    (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


SIZES = {"train": 14, "dev": 4, "test": 2}
"""Unsafe records of each split, and as many safe ones."""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture
def config(config_file: Path) -> Config:
    return Config.from_toml(config_file)


@pytest.fixture(scope="session")
def prompt(base: Path) -> Prompt:
    return Prompt(Tokenizer.from_file(str(base / "tokenizer.json")), "chatml-1")
