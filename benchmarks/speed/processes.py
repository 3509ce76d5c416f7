"""What needs a process of its own: the time to a first answer, and the peak of memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.stopwatch import summary
from benchmarks.startup import IMPORT, TIMED
from srllm_guard.engines.base import Ids

SAFE = "The bus leaves at 9."
UNSAFE = "You stupid idiot, get lost."

PEAK = """
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""
"""Prints the peak of resident memory in KiB. What `getrusage` gives counts the parent's as well."""

NEW = 40
"""Tokens that other systems decode when their memory is measured."""


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """How a guard is made in another process: the arguments of `Guard`."""

    values: Mapping[str, Any]

    def code(self, *texts: str) -> str:
        """Code that makes the guard and gives it the texts."""
        told = ", ".join(f"{name}={value!r}" for name, value in self.values.items() if value)
        calls = "; ".join(f"guard.rewrite({text!r})" for text in texts)
        return f"from srllm_guard import Guard; guard = Guard({told}); {calls}"


def start(guards: Mapping[str, GuardOptions], rounds: int, cold: int = 1) -> dict[str, Any]:
    """Seconds from the import to an answer, in fresh processes that take turns.

    Args:
        guards: what is started, by name; the first one also with nothing in the cache of weights.
        rounds: how often each is started.
        cold: how often the cold start is.
    """
    codes = {"import srllm_guard": IMPORT}
    for name, guard in guards.items():
        codes[f"{name}: warm, to a safe answer"] = guard.code(SAFE)
        codes[f"{name}: warm, to a rewritten answer"] = guard.code(UNSAFE)
    taken: dict[str, list[float]] = {name: [] for name in codes}
    for number in range(rounds + 1):
        for name, code in codes.items():
            spent = _printed(TIMED.format(code)) * 1e3
            if number:  # the first round fills caches
                taken[name].append(spent)
    for name, guard in list(guards.items())[:1]:
        label = f"{name}: cold, weights not yet converted"
        for _ in range(cold):
            with tempfile.TemporaryDirectory() as folder:
                place = f"import os; os.environ['SRLLM_GUARD_CACHE'] = {folder!r}; "
                spent = _printed(TIMED.format(place + guard.code(SAFE))) * 1e3
                taken.setdefault(label, []).append(spent)
    return {name: summary(ms) for name, ms in taken.items()}


def peaks(codes: Mapping[str, str]) -> dict[str, Any]:
    """Peak of resident memory in MB of processes that run the code of each system."""
    return {
        name: {"mb": round(_printed(code + PEAK) * 1024 / 1e6, 1)} for name, code in codes.items()
    }


def transformers_code(model: str | None, base: Path, ids: Ids, threads: int) -> str:
    """Code that loads the merged model into transformers and decodes."""
    return f"""
import torch
from pathlib import Path
from srllm_guard.engines.loading import load_model
from srllm_guard.models.store import find_bundle
torch.set_num_threads({threads})
model = load_model(find_bundle({model!r}), Path({str(base)!r}), torch.device("cpu"), False)
model.generate(torch.tensor([{list(ids)}]), max_new_tokens={NEW}, do_sample=False, pad_token_id=0)
"""


def llama_code(path: Path, ids: Ids, threads: int) -> str:
    """Code that loads a GGUF file into llama.cpp and decodes."""
    return f"""
from llama_cpp import Llama
model = Llama({str(path)!r}, n_ctx=4096, n_threads={threads}, verbose=False)
for _ in zip(range({NEW}), model.generate({list(ids)}, temp=0.0)):
    pass
"""


def _printed(code: str) -> float:
    """The number on the last line that `code` prints in a fresh interpreter.

    Raises:
        RuntimeError: the code failed.
    """
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"a process ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return float(done.stdout.splitlines()[-1])
