"""One model ready to run: engine, prompt format, calibration, and where they are from."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from srllm_guard.calls import Calls, Gate
from srllm_guard.engines.base import Engine
from srllm_guard.errors import ConfigError
from srllm_guard.language import preload
from srllm_guard.models.bundle import Bundle, Calibration
from srllm_guard.models.exported import Exported, is_exported
from srllm_guard.models.store import base_hash, find_base, find_bundle
from srllm_guard.prompt import Prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from srllm_guard.guard import Guard

ENGINES = ("torch", "reference", "onnx")
"""Names that `Guard(engine=...)` takes."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a guard runs on. Make one by hand to put another engine behind the guard."""

    engine: Engine
    prompt: Prompt
    calibration: Calibration
    bundle: str
    """Name of the bundle."""
    bundle_hash: str
    """sha256 of its manifest without the figures, see `Bundle.hash`."""
    base_hash: str
    """Of the base weights, see `Provenance.base_hash`."""
    gate: Gate = field(init=False, repr=False, compare=False)
    """The one way to the engine, also for several guards that share it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "gate", Gate(self.engine))

    def counting(self) -> Runtime:
        """The same, where deadlines count from now on; where they already do so, itself."""
        if isinstance(self.gate, _CountingGate):
            return self
        counting = copy.copy(self)
        object.__setattr__(counting, "gate", _CountingGate(self.gate))
        return counting


def in_one_deadline(guard: Guard) -> Guard:
    """The guard for several batches of one call: the policy's deadline counts from now for all."""
    if guard.policy.deadline_ms is None:
        return guard
    counting = copy.copy(guard)
    counting.runtime = guard.runtime.counting()
    return counting


class _CountingGate(Gate):
    """A gate whose calls share what is left of a deadline that began with it."""

    def __init__(self, gate: Gate) -> None:
        self.engine, self.batcher = gate.engine, gate.batcher
        self._started = time.perf_counter()

    def open(self, deadline_ms: float | None) -> Calls:
        """See `Gate.open`."""
        if deadline_ms is not None:
            deadline_ms -= (time.perf_counter() - self._started) * 1e3
        return super().open(deadline_ms)


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    engine: str | None = None,
    base: str | os.PathLike[str] | None = None,
    four_bit: bool = False,
    precision: str | None = None,
    threads: int | None = None,
) -> Runtime:
    """Load a bundle into an engine.

    Args:
        model: folder or Hub id of a bundle; None for the one that ships. Also the folder of an
            exported model, see `srllm_guard.export`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        engine: a name in `ENGINES`; None chooses: onnx for an exported model, torch for the
            architectures that it covers, else reference.
        base: folder of the base weights, taken as they are if transformers wrote it; None searches
            for those of the bundle. A folder's weights are also read for `Provenance.base_hash`,
            which is awaited: about 14 GB for a base of 7 billion parameters.
        four_bit: load the base in 4 bits (bitsandbytes); the reference engine does that.
        precision: of the torch engine: "fp32", "fp16", "bf16", "int8", or "auto", which measures.
            None is fp32 on a CPU, half precision on CUDA. An exported model has its own.
        threads: of torch, in the whole process, where None leaves them as they are; or of the onnx
            engine, where None takes one for each physical core.

    Raises:
        ConfigError: an unknown engine, device or precision, or options that exclude one another.
        ModelError: bundle or base weights are missing or corrupt.
        MissingExtra: the engine's packages are not installed.
    """
    _check(engine, four_bit, precision, threads)
    if model is not None and is_exported(Path(model)):
        return _exported(Path(model), device, engine, base, four_bit, precision, threads)
    if engine == "onnx":
        raise ConfigError(
            'engine="onnx" was asked for, and the model is no folder of an exported one.',
            hint="Export it first: srllm-guard export DIR; then Guard(model=DIR).",
        )
    bundle = find_bundle(model)
    weights = find_base(bundle.manifest.base, base)
    manifest = bundle.manifest
    # Tokenizer and language detector are read while the engine's packages are imported.
    with ThreadPoolExecutor(3, "srllm-guard-load") as pool:
        hashed = pool.submit(base_hash, manifest.base, weights, base)
        words = pool.submit(lambda: Prompt(tokenizer(weights), manifest.prompt))
        pool.submit(preload)
        if engine is None:
            engine = "reference" if four_bit else _suited(weights)
        make = _engine(engine, four_bit, precision, threads)
        prompt = words.result()
        running = make(bundle, weights, device, prompt)
    return Runtime(
        engine=running,
        prompt=prompt,
        calibration=manifest.calibration,
        bundle=manifest.title,
        bundle_hash=bundle.hash,
        base_hash=hashed.result(),
    )


def _check(engine: str | None, four_bit: bool, precision: str | None, threads: int | None) -> None:
    """Refuse options that exclude one another, before anything is loaded."""
    if engine not in (None, *ENGINES):
        raise ConfigError(f"Unknown engine {engine!r}.", hint=f"Known: {', '.join(ENGINES)}.")
    others = precision is not None or threads is not None
    if four_bit and (engine == "torch" or others):
        raise ConfigError(
            "four_bit was asked for together with the torch engine or an option of it.",
            hint='Only engine="reference" runs a base in 4 bits; it takes no precision or threads.',
        )
    if engine == "reference" and others:
        raise ConfigError(
            "precision or threads was given, and the reference engine takes neither.",
            hint='Leave them out, or use engine="torch".',
        )


def _exported(
    folder: Path,
    device: str,
    engine: str | None,
    base: str | os.PathLike[str] | None,
    four_bit: bool,
    precision: str | None,
    threads: int | None,
) -> Runtime:
    """Load an exported model."""
    if engine not in (None, "onnx") or base is not None or four_bit:
        raise ConfigError(
            f"{folder} holds an exported model, and engine={engine!r}, base or four_bit was given.",
            hint='Only engine="onnx" runs it, and it needs no base; name the bundle for others.',
        )
    with ThreadPoolExecutor(3, "srllm-guard-load") as pool:
        checked = pool.submit(Exported.load, folder)
        pool.submit(preload)
        exported = Exported.read(folder)
        if precision not in (None, exported.precision):
            raise ConfigError(
                f"precision={precision!r} was asked for; this model was exported in "
                f"{exported.precision}.",
                hint=f"Leave it out, or: srllm-guard export DIR --precision {precision}",
            )
        from srllm_guard.engines.onnx import OnnxEngine

        manifest = checked.result().manifest
        prompt = Prompt(tokenizer(folder), manifest.prompt)
        running = OnnxEngine(exported, device, threads=threads, opening=prompt.opening)
    return Runtime(
        engine=running,
        prompt=prompt,
        calibration=manifest.calibration,
        bundle=manifest.title,
        bundle_hash=manifest.hash,
        base_hash=manifest.base.hash,
    )


def _suited(base: Path) -> str:
    """Name of the engine that runs a base best."""
    from srllm_guard.engines.torch import suits

    return "torch" if suits(base) else "reference"


Make = Callable[[Bundle, Path, str, Prompt], Engine]
"""Loads an engine: bundle, base, device, prompt format."""


def _engine(name: str, four_bit: bool, precision: str | None, threads: int | None) -> Make:
    """Import the engine of that name, which takes longer than all else."""
    if name == "torch":
        from srllm_guard.engines.torch import TorchEngine

        return lambda bundle, base, device, prompt: TorchEngine(
            bundle, base, device, precision=precision, threads=threads, opening=prompt.opening
        )
    _check(name, four_bit, precision, threads)
    from srllm_guard.engines.reference import ReferenceEngine

    return lambda bundle, base, device, _: ReferenceEngine(bundle, base, device, four_bit=four_bit)


def tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a base folder; a fresh one, whose settings are nobody else's."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))
