"""Our own engine on torch: Llama-family maths, early exit, drafted decoding; on CPU and CUDA.

It imports neither transformers nor PEFT. On a CPU a result does not depend on who shares the batch:
requests run one prompt at a time, windows one by one. On CUDA they share batches, and the last bits
of a sum depend on the shape of the batch.

Detection does not hand its states to the rewrite. The window that is judged and the prompt that
asks for a rewrite are different ids: marks around the unsafe words, other context before the
segment, the question behind it. Keys and values of a token hang on all ids before it, so only
the constant beginning of the format is shared, and that is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from srllm_guard.engines.base import Asked, Continuation, Floats, Request, Scores, Window
from srllm_guard.errors import ConfigError, EngineError, MissingExtra, ModelError
from srllm_guard.models.bundle import Bundle

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise MissingExtra(extra="torch", needed_for="the torch engine") from error

from srllm_guard.engines import linear
from srllm_guard.engines.checkpoint import Checkpoint, read_config
from srllm_guard.engines.graphs import Graphs
from srllm_guard.engines.llama import Llama, Shape, unsupported
from srllm_guard.engines.loading import Adapter, find_device, load_heads
from srllm_guard.engines.loop import decode
from srllm_guard.engines.steps import Steps

WIDTH = 8
"""Tokens that a row is fed in a pass on a CPU: the last one and seven guesses."""

BATCH = 16
"""Most windows that run together on CUDA, and candidates of one prompt on a CPU."""

SCORED = 64
"""Places whose logits are held at once when likelihoods are asked for."""


class TorchEngine:
    """A Llama-family model with its adapter merged.

    Args:
        bundle: adapter, heads and manifest.
        base: folder of the base weights, see `srllm_guard.models.store.find_base`.
        device: "cpu", "cuda", "cuda:1" or "auto" (CUDA if it is there).
        precision: a name in `linear.PRECISIONS`; None is fp32 on a CPU and the fastest half
            precision on CUDA.
        threads: of torch, which are those of the whole process; None leaves them as they are, which
            is one for each physical core.
        graphs: decode in fixed shapes, captured as CUDA graphs where there is CUDA; None does so
            on CUDA only.

    Raises:
        ConfigError: the device or the precision is not there.
        ModelError: the model does not run here, or its weights cannot be read.
        BundleError: adapter and base do not fit.
    """

    name = "torch"

    def __init__(
        self,
        bundle: Bundle,
        base: Path,
        device: str = "auto",
        *,
        precision: str | None = None,
        threads: int | None = None,
        graphs: bool | None = None,
    ) -> None:
        self._device = find_device(device)
        self.device = str(self._device)
        on_cpu = self._device.type == "cpu"
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads is {threads}.", hint="Give 1 or more.")
            torch.set_num_threads(threads)
        config = read_config(base)
        if reason := unsupported(config):
            raise ModelError(
                f"The torch engine does not run this base: {reason}.",
                hint='Use engine="reference".',
            )
        shape = Shape.of(config)
        chosen = precision or ("fp32" if on_cpu else "auto")
        self._precision = linear.choose(chosen, self._device)
        self._shares = not on_cpu
        self.max_tokens = shape.max_tokens
        self._layer = _checked(bundle.manifest.layer, shape.layers)
        with torch.inference_mode():
            self._heads = load_heads(bundle, shape.hidden).to(self._device)
            weights = Checkpoint(base, Adapter(bundle.folder))
            self._model = Llama(shape, weights, self._precision, self._device)
            wanted = self._shares if graphs is None else graphs
            self._graphs = Graphs(self._model) if wanted else None

    def detect(self, windows: Sequence[Window]) -> list[Scores]:
        """See `Engine.detect`."""
        order = sorted(range(len(windows)), key=lambda n: len(windows[n].ids))
        found: dict[int, Scores] = {}
        with torch.inference_mode():
            for numbers in _parts(order, BATCH if self._shares else 1):
                found.update(zip(numbers, self._judge([windows[n] for n in numbers]), strict=True))
        return [found[n] for n in range(len(windows))]

    def generate(self, requests: Sequence[Request]) -> list[Continuation]:
        """See `Engine.generate`."""
        # Who asks the same gets the same: it is decoded once.
        asked = list(dict.fromkeys(requests))
        found: dict[Request, Continuation] = {}
        with torch.inference_mode():
            for batch in self._batches(asked):
                found.update(zip(batch, self._continue(batch), strict=True))
        return [found[request] for request in requests]

    def score(self, asked: Sequence[Asked]) -> list[Floats]:
        """See `Engine.score`."""
        for each in asked:
            if len(each.prompt) + len(each.ids) > self.max_tokens or not (each.prompt and each.ids):
                raise EngineError(
                    f"A prompt of {len(each.prompt)} tokens with a continuation of {len(each.ids)} "
                    f"was to be scored; the model takes 1 and 1 at least, {self.max_tokens} at "
                    "most.",
                    hint="Send shorter segments.",
                    retryable=False,
                )
        order = sorted(range(len(asked)), key=lambda n: len(asked[n].prompt) + len(asked[n].ids))
        found: dict[int, Floats] = {}
        with torch.inference_mode():
            for numbers in _parts(order, BATCH if self._shares else 1):
                batch = [asked[n] for n in numbers]
                found.update(zip(numbers, self._likelihoods(batch), strict=True))
        return [found[n] for n in range(len(asked))]

    def info(self) -> dict[str, Any]:
        """See `Engine.info`."""
        return {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "precision": self._precision,
            "width": WIDTH if self._graphs is None else self._graphs.width,
        }

    def _batches(self, asked: Sequence[Request]) -> Iterator[list[Request]]:
        """Requests that run together. On a CPU those are candidates of one prompt only."""
        if self._graphs is not None:
            for numbers in self._graphs.shares(asked):
                yield [asked[n] for n in numbers]
            return
        order = sorted(asked, key=lambda r: (r.prompt, r.temperature, r.seed, r.barred))
        for _, group in groupby(order, key=lambda request: request.prompt):
            together = list(group)
            for start in range(0, len(together), BATCH):
                yield together[start : start + BATCH]

    def _continue(self, batch: Sequence[Request]) -> list[Continuation]:
        if self._graphs is not None:
            step: Any = self._graphs.open(batch)
            width = self._graphs.width
        else:
            longest = max(len(request.prompt) + request.limit for request in batch)
            step = Steps(self._model, min(longest, self.max_tokens) + WIDTH)
            width = WIDTH
        return decode(batch, step, width=width, max_tokens=self.max_tokens)

    def _judge(self, windows: Sequence[Window]) -> list[Scores]:
        ids = _padded([window.ids for window in windows], 0).to(self._device)
        owner = _padded([window.owner for window in windows], -2).to(self._device)
        rows = max(window.segments for window in windows)
        hidden = self._read(ids, self._layer).float()
        labels, spans = self._heads(hidden, owner, rows)
        labels, spans = labels.cpu(), spans.cpu()
        return [
            Scores(labels[n, : window.segments].numpy(), spans[n, : len(window.ids)].numpy())
            for n, window in enumerate(windows)
        ]

    def _likelihoods(self, asked: Sequence[Asked]) -> list[Floats]:
        rows = [(*each.prompt, *each.ids) for each in asked]
        ids = _padded(rows, 0).to(self._device)
        hidden = self._read(ids, self._model.shape.layers)
        found = []
        for n, each in enumerate(asked):
            first, last = len(each.prompt), len(each.prompt) + len(each.ids)
            parts = []
            for start in range(first, last, SCORED):
                end = min(start + SCORED, last)
                logits = self._model.logits(hidden[n, start - 1 : end - 1])  # [end - start, V]
                chosen = logits.gather(1, ids[n, start:end, None])[:, 0]
                parts.append(chosen - logits.logsumexp(-1))
            found.append(torch.cat(parts).cpu().numpy())
        return found

    def _read(self, ids: Tensor, layers: int) -> Tensor:
        """States `[B, T, H]` after so many layers; `ids` [B, T], padded at the right."""
        rows, longest = ids.shape
        positions = torch.arange(longest, device=self._device).expand(rows, -1)
        cache = self._model.new_cache(rows, longest, layers)
        return self._model.forward(ids, positions, cache, longest, layers)


def _checked(layer: int, layers: int) -> int:
    if not 0 < layer <= layers:
        raise ModelError(
            f"Detection reads the states after {layer} layers; this base has {layers}.",
            hint="Use the base model that the bundle was trained on.",
        )
    return layer


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """`[B, T]`, int64, padded at the right."""
    found = torch.full((len(rows), max(map(len, rows))), filler, dtype=torch.long)
    for n, row in enumerate(rows):
        found[n, : len(row)] = torch.tensor(row)
    return found


def _parts(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
