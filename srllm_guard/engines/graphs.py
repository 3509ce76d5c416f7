"""Passes of the decode loop on CUDA: fixed shapes in fixed buffers, replayed as CUDA graphs.

A small model's pass is hundreds of kernels of a few microseconds; launching them one by one takes
longer than running them. A graph is captured once for each bucket of rows, tokens and slots, and
replayed by one call. What changes between passes is written into the buffers that it reads, in one
copy; one synchronisation a pass brings the result back.

Capturing is behind one seam, `capture`: on a CPU the same work on the same buffers is simply done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srllm_guard.engines.base import Request
from srllm_guard.engines.llama import Cache, Llama
from srllm_guard.engines.loop import Feed

ROWS = (1, 2, 4, 8, 16, 32)
"""Buckets of rows, B."""
TOKENS = (16, 64, 128, 256, 512)
"""Buckets of tokens that a row is fed, T; the first is the width of a verified draft. Longer
prompts are fed in parts."""
SLOTS = (128, 256, 512, 1024, 2048, 4096, 8192)
"""Buckets of cache slots, S; beyond, multiples of the last."""
ARENA = 16_384
"""Tokens that the cache holds, all rows together; more where one row alone needs more."""
WARM = 3
"""Passes before a capture: libraries set themselves up in them."""

Work = Callable[[], None]


def capture(work: Work, device: torch.device, pool: Any = None) -> Work:
    """`work` as one replayable CUDA graph; on another device `work` itself.

    Graphs that share a `pool` share the memory of what they compute on the way: nothing of that may
    be read after a replay.
    """
    if device.type != "cuda":
        return work
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # What other threads of the process do on the device meanwhile must not break the capture.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph.replay


class Graphs:
    """The buffers of one model, and the passes over them that were captured so far.

    Args:
        model: runs.
        arena: tokens that its cache holds.
    """

    def __init__(self, model: Llama, arena: int = ARENA) -> None:
        self._model = model
        self._passes: dict[tuple[int, int, int], Pass] = {}
        self._arena = model.new_cache(1, arena)
        self._logits = torch.empty(0, device=model.device)
        self._pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None

    @property
    def width(self) -> int:
        """Most tokens that a row is fed after its prompt."""
        return TOKENS[0]

    def shares(self, requests: Sequence[Request]) -> list[list[int]]:
        """Numbers of the requests that run together: of like length, as many as the cache holds."""
        order = sorted(range(len(requests)), key=lambda n: self._needed(requests[n]))
        found: list[list[int]] = []
        for number in order:
            slots = bucket(self._needed(requests[number]), SLOTS)
            last = found[-1] if found else []
            rows = bucket(len(last) + 1, ROWS)
            if last and rows <= ROWS[-1] and rows * slots <= self._arena.shape[3]:
                last.append(number)
            else:
                found.append([number])
        return found

    def open(self, requests: Sequence[Request]) -> GraphSteps:
        """Passes for requests that run together."""
        slots = bucket(max(self._needed(request) for request in requests), SLOTS)
        rows = bucket(len(requests), ROWS)
        if rows * slots > self._arena.shape[3]:
            self._passes.clear()  # they write into the old one
            self._arena = self._model.new_cache(1, rows * slots)
        return GraphSteps(self, rows, slots)

    def run(self, rows: int, tokens: int, slots: int) -> Pass:
        """The pass of this shape; captured when it is asked for the first time."""
        key = (rows, tokens, slots)
        if key not in self._passes:
            count = rows * self.width * self._model.shape.vocabulary
            if len(self._logits) < count:
                self._passes.clear()
                self._logits = torch.empty(count, device=self._model.device)
            cache = self._arena[:, :, 0, : rows * slots].unflatten(2, (rows, slots))
            self._passes[key] = Pass(
                self._model, cache, tokens, self.width, self._logits[:count], self._pool
            )
        return self._passes[key]

    def _needed(self, request: Request) -> int:
        longest = self._model.shape.max_tokens
        # Padding behind the last place needs slots of its own.
        return min(len(request.prompt) + request.limit, longest) + TOKENS[0]


class Pass:
    """One pass of a fixed shape.

    Args:
        model: runs.
        cache: `[layers, 2, B, S, M, D]`.
        tokens: T.
        width: W, the most places of a row that are asked about.
        logits: room for `[B, W, V]`, float32.
        pool: see `capture`.
    """

    def __init__(
        self, model: Llama, cache: Cache, tokens: int, width: int, logits: Tensor, pool: Any
    ) -> None:
        rows, slots = cache.shape[2:4]
        self._model, self._cache, self._reach = model, cache, slots
        pinned = model.device.type == "cuda"
        sizes = (rows, 2 * tokens + width)
        self._host = torch.zeros(sizes, dtype=torch.long, pin_memory=pinned)
        self._given = torch.zeros(sizes, dtype=torch.long, device=model.device)
        self._parts = (tokens, tokens, width)
        self.ids, self.positions, self.wanted = (
            part.numpy() for part in self._host.split(self._parts, 1)
        )
        # A capture runs the pass on what is there now, perhaps between two passes of a text: it
        # must not write where a row reads.
        self.positions[:] = slots - 1
        self._given.copy_(self._host)
        self._best = torch.zeros(rows, width, dtype=torch.long, device=model.device)
        self.best = torch.zeros(rows, width, dtype=torch.long, pin_memory=pinned)
        self.logits = logits.view(rows, width, -1)
        with _on(model.device):
            self._run = capture(self._work, model.device, pool)

    def _work(self) -> None:
        ids, positions, wanted = self._given.split(self._parts, 1)
        hidden = self._model.forward(ids, positions, self._cache, self._reach)  # [B, T, H]
        chosen = wanted.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        self.logits.copy_(self._model.logits(hidden.gather(1, chosen)))  # [B, W, V]
        self._best.copy_(self.logits.argmax(-1))

    def __call__(self, rows: Sequence[int]) -> list[NDArray[np.float32]]:
        """Run on what was written into `ids`, `positions` and `wanted`; `best` then has the result.

        Returns:
            Logits `[W, V]` of each of `rows`.
        """
        with _on(self._model.device):
            self._given.copy_(self._host, non_blocking=True)
            self._run()
            self.best.copy_(self._best, non_blocking=True)
            full = [self.logits[row].to("cpu", non_blocking=True) for row in rows]
            if self._given.is_cuda:
                torch.cuda.current_stream().synchronize()
        return [each.numpy() for each in full]


class GraphSteps:
    """Passes of a `Graphs` for `loop.decode`; one at a time over one `Graphs`."""

    def __init__(self, graphs: Graphs, rows: int, slots: int) -> None:
        self._graphs = graphs
        self._rows = rows
        self._slots = slots

    def __call__(self, feeds: Sequence[Feed]) -> list[NDArray[Any]]:
        """See `loop.Step`. Rows keep their place in the batch; ended ones become padding."""
        behind = [len(feed.ids) for feed in feeds]
        done = [0] * len(feeds)
        # All but the last part of a long prompt: nobody asks what follows them.
        while (longest := max(behind)) > TOKENS[-1]:
            step = [max(0, min(TOKENS[-1], left - self._graphs.width)) for left in behind]
            self._pass(feeds, done, step, TOKENS[-1])
            done = [d + s for d, s in zip(done, step, strict=True)]
            behind = [left - s for left, s in zip(behind, step, strict=True)]
        return self._pass(feeds, done, behind, bucket(longest, TOKENS))

    def _pass(
        self, feeds: Sequence[Feed], done: list[int], step: list[int], tokens: int
    ) -> list[NDArray[Any]]:
        """Feed each row `step` ids behind the first `done`, and read what it wants."""
        run = self._graphs.run(self._rows, tokens, self._slots)
        run.ids[:] = 0
        run.wanted[:] = 0
        run.positions[:] = self._slots - 1  # padding writes where no row ever reads
        for feed, first, count in zip(feeds, done, step, strict=True):
            run.ids[feed.row, :count] = feed.ids[first : first + count]
            run.positions[feed.row, :count] = np.arange(feed.at + first, feed.at + first + count)
            run.wanted[feed.row, : feed.want] = np.arange(count - feed.want, count).clip(min=0)
        full = [feed.row for feed in feeds if not feed.greedy]
        logits = dict(zip(full, run(full), strict=True))
        return [
            run.best[feed.row, : feed.want].numpy()
            if feed.greedy
            else logits[feed.row][: feed.want]
            for feed in feeds
        ]


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a CUDA device the current one: graphs and streams are those of the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def bucket(size: int, sizes: Sequence[int]) -> int:
    """The least of `sizes` that holds `size`; beyond them a multiple of the last."""
    for each in sizes:
        if size <= each:
            return each
    return -(-size // sizes[-1]) * sizes[-1]
