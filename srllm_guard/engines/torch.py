"""Our own engine on torch: Llama-family maths, early exit, drafted decoding; on CPU and CUDA.

It imports neither transformers nor PEFT. On a CPU a result does not depend on who shares the batch:
requests run one prompt at a time, windows one by one. On CUDA they share batches, and the last bits
of a sum depend on the shape of the batch.

Detection does not hand its states to the rewrite. The window that is judged and the prompt that
asks for a rewrite are different ids: marks around the unsafe words, nothing before the segment,
the question behind it. Keys and values of a token hang on all ids before it, so only
the constant beginning of the format is shared, and that is computed once. Prompts come again: what
was decoded is scored, barred and drawn anew. Their keys and values are kept for a while, but for
decoding in fixed shapes, which has a cache of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from srllm_guard.engines.base import (
    Asked,
    Continuation,
    Floats,
    Ids,
    Request,
    Scores,
    Window,
    check_asked,
)
from srllm_guard.errors import ConfigError, MissingExtra, ModelError
from srllm_guard.models.bundle import Bundle

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise MissingExtra(extra="torch", needed_for="the torch engine") from error

from srllm_guard.engines import linear
from srllm_guard.engines.batches import padded, parts
from srllm_guard.engines.checkpoint import Checkpoint, read_config
from srllm_guard.engines.graphs import ROWS, Graphs
from srllm_guard.engines.kin import Begun, candidates, scored
from srllm_guard.engines.llama import Llama, Shape, unsupported
from srllm_guard.engines.loading import Adapter, find_device, load_heads
from srllm_guard.engines.loop import decode
from srllm_guard.engines.opening import Opening
from srllm_guard.engines.steps import Steps

WIDTH = 12
"""Most tokens that a row is fed in a pass on a CPU: the last one and eleven guesses."""

BATCH = 16
"""Most windows that run together on CUDA, and candidates of one prompt on a CPU."""


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
        opening: ids that prompts and windows begin with as a rule; they are computed once for rows
            that run by themselves, which on a CPU are all.
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
        opening: Ids = (),
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
        self.together = 1 if on_cpu else ROWS[-1]
        """Most items that share a call, see `srllm_guard.batcher`."""
        self.max_tokens = shape.max_tokens
        self._layer = _checked(bundle.manifest.layer, shape.layers)
        with torch.inference_mode():
            self._heads = load_heads(bundle, shape.hidden).to(self._device)
            weights = Checkpoint(base, Adapter(bundle.folder))
            self._model = Llama(shape, weights, self._precision, self._device)
            self._opening = Opening(self._model, opening)
            wanted = self._shares if graphs is None else graphs
            self._graphs = Graphs(self._model) if wanted else None

    def detect(self, windows: Sequence[Window]) -> list[Scores]:
        """See `Engine.detect`."""
        order = sorted(range(len(windows)), key=lambda n: len(windows[n].ids))
        found: dict[int, Scores] = {}
        with torch.inference_mode():
            for numbers in parts(order, BATCH if self._shares else 1):
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
        check_asked(asked, self.max_tokens)
        with torch.inference_mode():
            return scored(asked, self._begin)

    def info(self) -> dict[str, Any]:
        """See `Engine.info`."""
        return {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "precision": self._precision,
            "width": WIDTH if self._graphs is None else self._graphs.width,
        }

    def forget(self) -> None:
        """Drop what was kept of prompts; the next rewrite takes as long as the first one did."""
        self._opening.forget()

    def _batches(self, asked: Sequence[Request]) -> Iterator[list[Request]]:
        """Requests that run together. On a CPU those are candidates of one prompt only."""
        if self._graphs is not None:
            for numbers in self._graphs.shares(asked):
                yield [asked[n] for n in numbers]
            return
        yield from candidates(asked, BATCH)

    def _continue(self, batch: Sequence[Request]) -> list[Continuation]:
        if self._graphs is not None:
            graphs = self._graphs
            return decode(batch, graphs.open(batch), width=graphs.width, max_tokens=self.max_tokens)
        longest = max(len(request.prompt) + request.limit for request in batch)
        slots = min(longest, self.max_tokens) + WIDTH
        step = Steps(self._model, self._opening, slots)
        return decode(batch, step, width=WIDTH, max_tokens=self.max_tokens, careful=True)

    def _judge(self, windows: Sequence[Window]) -> list[Scores]:
        owner = padded([window.owner for window in windows], -2).to(self._device)
        rows = max(window.segments for window in windows)
        hidden = self._read([window.ids for window in windows], self._layer).float()
        labels, spans = self._heads(hidden, owner, rows)
        labels, spans = labels.cpu(), spans.cpu()
        return [
            Scores(labels[n, : window.segments].numpy(), spans[n, : len(window.ids)].numpy())
            for n, window in enumerate(windows)
        ]

    def _begin(self, prompt: Ids, more: int) -> Begun:
        """Run a prompt whose continuations are scored; they have at most `more` ids."""
        layers, start = self._model.shape.layers, len(prompt)
        cache = self._model.new_cache(1, start + more, layers)
        last = self._opening.prompt(prompt, cache)  # [1, 1, H]

        def run(ids: Ids, at: int) -> Tensor:
            return self._model.logits(self._opening.go_on(ids, start + at, cache, layers)[0])

        return Begun(self._model.logits(last[0]), run, _chances)

    def _read(self, rows: Sequence[Ids], layers: int) -> Tensor:
        """States `[B, T, H]` of rows after so many layers, padded at the right."""
        longest = max(map(len, rows))
        cache = self._model.new_cache(len(rows), longest, layers)
        if len(rows) == 1:
            return self._opening.run(rows[0], cache, layers)
        ids = padded(rows, 0).to(self._device)
        positions = torch.arange(longest, device=self._device).expand(len(rows), -1)
        return self._model.forward(ids, positions, cache, longest, layers)


def suits(base: Path) -> bool:
    """Whether this engine runs the model in a folder.

    Raises:
        ModelError: its config.json cannot be read.
    """
    return unsupported(read_config(base)) is None


def _chances(logits: Tensor, chosen: Ids) -> Floats:
    """Natural logarithm of the probability of one id in each row of logits `[T, V]`, `[T]`."""
    index = torch.tensor(chosen, device=logits.device).unsqueeze(1)
    found: Floats = (logits.gather(1, index)[:, 0] - logits.logsumexp(-1)).cpu().numpy()
    return found


def _checked(layer: int, layers: int) -> int:
    if not 0 < layer <= layers:
        raise ModelError(
            f"Detection reads the states after {layer} layers; this base has {layers}.",
            hint="Use the base model that the bundle was trained on.",
        )
    return layer
