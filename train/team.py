"""Several processes train one model: each takes part of a step, and their gradients are added.

Started by torchrun, with one process for each core:

    torchrun --nproc-per-node 2 -m train.run CONFIG --data DATA --out RUN --threads 1

On a small CPU two processes of one thread do twice the work of one, which two threads of one
process do not. What a step sees and drops, and so the result but for rounding, is as with one
process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Team:
    """This process among those that train."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Team:
        """Meet the others that torchrun started; alone where it was not used."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        # Marking texts takes longer than the half hour that a process is waited for.
        distributed.init_process_group("gloo", timeout=timedelta(hours=4))
        return cls(distributed.get_rank(), size)

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, logs and the bundle."""
        return self.rank == 0

    def mine(self, jobs: Sequence[T], costs: Sequence[float]) -> list[T]:
        """The jobs of this process: the costliest first, each to whom has least to do.

        Every process works out the same division. Costs are in any unit.
        """
        loads = [0.0] * self.size
        found = []
        for n in sorted(range(len(jobs)), key=lambda n: (-costs[n], n)):
            chosen = loads.index(min(loads))
            loads[chosen] += costs[n]
            if chosen == self.rank:
                found.append(jobs[n])
        return found

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the sum of all gradients."""
        if self.size == 1:
            return
        parts = [
            (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters
        ]
        there = torch.tensor([float(p.grad is not None) for p in parameters])
        flat = torch.cat([*parts, there])
        distributed.all_reduce(flat)
        known = flat[-len(there) :].tolist()  # what nobody has a gradient of gets none
        at = 0
        for parameter, found in zip(parameters, known, strict=True):
            count = parameter.numel()
            parameter.grad = flat[at : at + count].view_as(parameter).clone() if found else None
            at += count

    def add_numbers(self, numbers: dict[str, float], names: Sequence[str]) -> dict[str, float]:
        """The sums of numbers that stand under the same names in several processes."""
        if self.size == 1:
            return numbers
        known = torch.tensor([[numbers.get(n, 0.0), float(n in numbers)] for n in names])
        distributed.all_reduce(known)
        return {n: float(v) for n, (v, count) in zip(names, known.tolist(), strict=True) if count}

    def wait(self) -> None:
        """Go on when everybody has come this far."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Part; only the one that leads goes on."""
        if self.size > 1:
            distributed.destroy_process_group()


ALONE = Team()
"""A process by itself."""
