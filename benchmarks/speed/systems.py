"""Who is timed: systems by their names, each made when needed, or skipped with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import llama_cpp, rivals
from benchmarks.speed.watched import Watched, watched
from srllm_guard import Guard, Policy
from srllm_guard.engines.base import Continuation, Ids, Request
from srllm_guard.engines.linear import PRECISIONS
from srllm_guard.models.bundle import Bundle
from srllm_guard.models.store import find_base, find_bundle
from srllm_guard.runtime import Runtime, load

REFERENCE = "transformers"
"""The system that all others are compared with."""

LOOKUP = "transformers, prompt lookup"
LLAMA = "llama.cpp"
OPTIMUM = "optimum"

EXPORTED = ("fp32", "fp16", "int8", "int4")
"""Precisions of the ONNX engine."""

LEAD = ("torch fp32", "onnx int8")
"""On a CPU only these of our engines run the rows that take long."""

CUDA = " cuda"
"""End of the names of systems on a GPU."""


@dataclass(frozen=True, slots=True)
class System:
    """One that is timed."""

    name: str
    decode: Callable[[Sequence[Request]], list[Continuation]]
    """Decodes requests together."""
    forward: Callable[[Ids], object] | None = None
    """One pass over ids, to the logits behind them; None where the system does not take part."""
    guard: Guard | None = None
    """The guard on this system; None for those of others."""
    watch: Watched | None = None
    """The time in the model behind `guard`."""
    forget: Callable[[], None] = lambda: None
    """Drops what an earlier run left behind, so that no run takes over the work of another."""
    prepare: Callable[[Sequence[Request]], None] | None = None
    """Of one that decodes along the tokens of another: looks these up before it is timed."""
    batches: bool = True
    """Whether it decodes several requests in one pass."""
    lead: bool = True
    """Whether it runs the rows that take long."""


def names(cuda: bool) -> list[str]:
    """All systems, in the order of the tables; on a machine with a GPU those there as well."""
    torch_ones = [f"torch {name}" for name in PRECISIONS if name != "auto"]
    onnx_ones = [f"onnx {name}" for name in EXPORTED]
    found = [REFERENCE, LOOKUP, OPTIMUM, LLAMA, "reference", *torch_ones, *onnx_ones]
    if cuda:
        there = [REFERENCE, LOOKUP, OPTIMUM, "reference", *torch_ones, "onnx fp32", "onnx fp16"]
        found += [name + CUDA for name in there]
    return found


class Workshop:
    """Makes systems, and what several of them need only once.

    Args:
        model: the bundle; None for the one that ships.
        base: the base weights; None searches for them.
        threads: of every system on the CPU.
        folder: where exports are put.
        policy: of the guards.
    """

    def __init__(
        self,
        model: str | None,
        base: str | None,
        threads: int,
        folder: Path,
        policy: Policy | None = None,
    ) -> None:
        self._model = model
        self._base_folder = base
        self._threads = threads
        self._folder = folder
        self._policy = policy or Policy()
        self._merged = lru_cache(self._load_merged)

    @cached_property
    def bundle(self) -> Bundle:
        """The bundle that is timed."""
        return find_bundle(self._model)

    @cached_property
    def base(self) -> Path:
        """Folder of its base weights."""
        return find_base(self.bundle.manifest.base, self._base_folder)

    def make(self, name: str) -> System:
        """The system of a name.

        Raises:
            Exception: whatever keeps it from running here.
        """
        plain = name.removesuffix(CUDA)
        device = "cuda" if name.endswith(CUDA) else "cpu"
        engine, _, precision = plain.partition(" ")
        if plain in (REFERENCE, LOOKUP, OPTIMUM):
            return self._transformers(name, plain, torch.device(device))
        if plain == LLAMA:
            return self._llama(name)
        lead = device == "cuda" or plain in LEAD
        return of_runtime(name, self.runtime(engine, precision, device), self._policy, lead=lead)

    def runtime(self, engine: str, precision: str, device: str) -> Runtime:
        """One of our engines, loaded."""
        if engine == "onnx":
            return load(
                self.exported(precision), engine=engine, device=device, threads=self._threads
            )
        options: dict[str, Any] = {}
        if engine == "torch":
            options = {"precision": precision, "threads": self._threads}
        return load(self._model, engine=engine, base=self._base_folder, device=device, **options)

    def exported(self, precision: str) -> Path:
        """Folder of the bundle as ONNX in a precision; exported once."""
        from srllm_guard.export import export

        folder = self._folder / f"onnx-{precision}"
        if not folder.exists():
            export(folder, precision=precision, model=self._model, base=self._base_folder)
        return folder

    def gguf(self) -> Path:
        """The base's own GGUF file with the adapter merged; made once.

        Raises:
            ModuleNotFoundError: llama-cpp-python is not installed.
            FileNotFoundError: the package with the file is not.
        """
        import_module("llama_cpp")  # without it the file is of no use
        path = self._folder / "merged.gguf"
        if not path.exists():
            llama_cpp.merge(llama_cpp.source(self.bundle.manifest.base), self.bundle.folder, path)
        return path

    def _transformers(self, name: str, plain: str, device: torch.device) -> System:
        model = self._merged(device)
        if plain == OPTIMUM:
            exported = rivals.optimum(model, self._folder, device, self._threads)
            return System(name, rivals.Transformers(exported, device).decode)
        if plain == LOOKUP:
            guessing = rivals.Transformers(model, device, prompt_lookup_num_tokens=rivals.LOOKUP)
            return System(name, guessing.decode, batches=False)
        rival = rivals.Transformers(model, device)
        return System(name, rival.decode, forward=rival.forward)

    def _llama(self, name: str) -> System:
        path, cpu = self.gguf(), torch.device("cpu")
        truth = rivals.Transformers(self._merged(cpu), cpu).decode
        model = llama_cpp.LlamaCpp(path, self._threads, truth)
        return System(name, model.decode, prepare=model.prepare, batches=False)

    def _load_merged(self, device: torch.device) -> Any:
        return rivals.merged(self.bundle, self.base, device)


def of_runtime(
    name: str, runtime: Runtime, policy: Policy | None = None, *, lead: bool = True
) -> System:
    """One of our engines with a guard on it."""
    seen, watch = watched(runtime)
    guard = Guard(seen, policy=policy)
    forget = getattr(runtime.engine, "forget", lambda: None)
    return System(name, runtime.engine.generate, guard=guard, watch=watch, forget=forget, lead=lead)


def gather(
    wanted: Iterable[str], make: Callable[[str], System]
) -> tuple[list[System], dict[str, str]]:
    """The systems that run here, and why the others do not."""
    found, skipped = [], {}
    for name in wanted:
        try:
            found.append(make(name))
        except Exception as error:  # noqa: BLE001 - a rival that fails is a row less, with its reason
            skipped[name] = told(error)
    return found, skipped


def told(error: Exception) -> str:
    """An error in one line."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}"
