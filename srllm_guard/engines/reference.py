"""The reference engine: transformers runs the model, PEFT's adapter merged or beside it.

It takes any causal LM with an adapter, in full precision or in 4 bits, and is what other engines
are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from srllm_guard.engines.base import (
    Asked,
    Continuation,
    Floats,
    Request,
    Scores,
    Window,
    check_asked,
    check_request,
)
from srllm_guard.errors import MissingExtra
from srllm_guard.models.bundle import Bundle

try:
    import torch
    from transformers import LogitsProcessorList
except ImportError as error:
    raise MissingExtra(extra="torch", needed_for="the reference engine") from error

from srllm_guard.engines.batches import padded, parts
from srllm_guard.engines.choice import Choice
from srllm_guard.engines.loading import find_device, load_heads, load_model
from srllm_guard.engines.trunk import Trunk

BATCH = 16
"""Most windows or requests that run together on a GPU. On a CPU, what would not run together alone
does not run together in a crowd: the last bits of a sum depend on the shape of the batch, and a
result must not depend on its neighbours."""


class ReferenceEngine:
    """transformers on CPU or CUDA.

    Args:
        bundle: adapter, heads and manifest.
        base: folder of the base weights, see `srllm_guard.models.store.find_base`.
        device: "cpu", "cuda", "cuda:1" or "auto" (CUDA if it is there).
        four_bit: load the base in 4 bits by bitsandbytes; the adapter then stays beside it.

    Raises:
        ConfigError: the device is not there.
        BundleError: adapter and base do not fit.
        MissingExtra: torch, PEFT or bitsandbytes is needed and not installed.
    """

    name = "reference"

    def __init__(
        self, bundle: Bundle, base: Path, device: str = "auto", *, four_bit: bool = False
    ) -> None:
        self._torch_device = find_device(device)
        self.device = str(self._torch_device)
        self._four_bit = four_bit
        self._shares = self._torch_device.type != "cpu"
        self._model = load_model(bundle, base, self._torch_device, four_bit)
        self.max_tokens = int(self._model.config.max_position_embeddings)
        self._heads = load_heads(bundle, self._model.config.hidden_size).to(self._torch_device)
        self._trunk = Trunk(self._model.model, bundle.manifest.layer)

    def detect(self, windows: Sequence[Window]) -> list[Scores]:
        """See `Engine.detect`."""
        order = sorted(range(len(windows)), key=lambda n: len(windows[n].ids))
        found: dict[int, Scores] = {}
        size = BATCH if self._shares else 1
        with torch.inference_mode():
            for numbers in parts(order, size):
                found.update(zip(numbers, self._judge([windows[n] for n in numbers]), strict=True))
        return [found[n] for n in range(len(windows))]

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """See `Engine.generate`."""

        def kin(number: int) -> tuple[Any, ...]:
            # Requests with other stop ids cannot share a batch; candidates of one prompt always do.
            request = requests[number]
            return sorted(request.stop), () if self._shares else request.prompt

        order = sorted(range(len(requests)), key=lambda n: (kin(n), len(requests[n].prompt)))
        found: dict[int, Continuation] = {}
        for _, group in groupby(order, key=kin):
            for numbers in parts(list(group), BATCH):
                batch = [requests[n] for n in numbers]
                found.update(zip(numbers, self._continue(batch), strict=True))
        return [found[n] for n in range(len(requests))]

    def score(self, asked: Sequence[Asked]) -> list[Floats]:
        """See `Engine.score`."""
        check_asked(asked, self.max_tokens)
        order = sorted(range(len(asked)), key=lambda n: len(asked[n].prompt) + len(asked[n].ids))
        found: dict[int, Floats] = {}
        with torch.inference_mode():
            for numbers in parts(order, BATCH if self._shares else 1):
                batch = [asked[n] for n in numbers]
                found.update(zip(numbers, self._likelihoods(batch), strict=True))
        return [found[n] for n in range(len(asked))]

    def info(self) -> dict[str, Any]:
        """See `Engine.info`."""
        import transformers

        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
            "precision": "4-bit" if self._four_bit else str(self._model.dtype).split(".")[-1],
        }

    def _judge(self, windows: Sequence[Window]) -> list[Scores]:
        rows = max(window.segments for window in windows)
        ids = padded([window.ids for window in windows], 0)
        owner = padded([window.owner for window in windows], -2).to(self._torch_device)
        hidden = self._trunk(ids.to(self._torch_device)).float()
        labels, spans = self._heads(hidden, owner, rows)
        return [
            Scores(
                labels[n, : window.segments].cpu().numpy(),
                spans[n, : len(window.ids)].cpu().numpy(),
            )
            for n, window in enumerate(windows)
        ]

    def _likelihoods(self, asked: Sequence[Asked]) -> list[Floats]:
        # Padding is at the right, so a causal model needs no mask for it.
        ids = padded([(*each.prompt, *each.ids) for each in asked], 0).to(self._torch_device)
        hidden = self._model.model(input_ids=ids, use_cache=False).last_hidden_state
        found = []
        for n, each in enumerate(asked):
            first, last = len(each.prompt), len(each.prompt) + len(each.ids)
            logits = self._model.lm_head(hidden[n, first - 1 : last - 1]).float()  # [T, V]
            chosen = logits.log_softmax(-1).gather(1, ids[n, first:last, None])
            found.append(chosen[:, 0].cpu().numpy())
        return found

    def _continue(self, requests: Sequence[Request]) -> list[Continuation]:
        """Decode requests with one set of stop ids together; prompts are padded at the left."""
        width = max(len(request.prompt) for request in requests)
        limits = [check_request(request, self.max_tokens) for request in requests]
        ids = torch.zeros(len(requests), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for n, request in enumerate(requests):
            ids[n, width - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[n, width - len(request.prompt) :] = 1
        stop = requests[0].stop
        with torch.inference_mode():
            out = self._model.generate(
                ids.to(self._torch_device),
                attention_mask=mask.to(self._torch_device),
                max_new_tokens=max(limits),
                do_sample=False,
                eos_token_id=sorted(stop) or None,
                pad_token_id=min(stop, default=0),
                logits_processor=LogitsProcessorList([Choice(requests, width)]),
            )
        rows = out[:, width:].tolist()
        return [_cut(row[:limit], stop) for row, limit in zip(rows, limits, strict=True)]


def _cut(ids: list[int], stop: frozenset[int]) -> Continuation:
    """What was decoded before the first stop id."""
    for n, index in enumerate(ids):
        if index in stop:
            return Continuation(tuple(ids[:n]), finished=True)
    return Continuation(tuple(ids), finished=False)
