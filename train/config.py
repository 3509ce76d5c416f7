"""The settings of a training run, read from TOML."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from srllm_guard.errors import ConfigError
from srllm_guard.models.bundle import Base


@dataclass(frozen=True, slots=True)
class Lora:
    """PEFT's LoRA settings."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True, slots=True)
class Quantization:
    """Load the frozen base in 4 bits (QLoRA); needs bitsandbytes."""

    load_in_4bit: bool = False
    quant_type: str = "nf4"
    double_quant: bool = True
    compute_dtype: str = "float16"


@dataclass(frozen=True, slots=True)
class Heads:
    """Which layer detection reads and how large its heads are."""

    layer: int = 8
    dim: int = 256
    blocks: int = 2
    lr: float = 1e-3


@dataclass(frozen=True, slots=True)
class Data:
    """What is drawn in each epoch."""

    detection: dict[str, int] = field(default_factory=dict)
    """Source -> examples an epoch, drawn anew each time; 0 takes all of them."""
    rewriting: dict[str, int] = field(default_factory=dict)
    """Source -> examples an epoch; 0 takes all of them."""
    copies: float = 0.1
    """Share of the safe authored records that are also taught to be copied."""
    noisy_marks: float = 0.5
    """Share of pairs whose marks are made imperfect."""


@dataclass(frozen=True, slots=True)
class Training:
    """The optimiser and its course."""

    epochs: int = 4
    lr: float = 3e-4
    schedule: str = "cosine"
    """"cosine" or "constant", both after the warm-up."""
    warmup: float = 0.03
    """Share of all steps."""
    weight_decay: float = 0.001
    max_grad_norm: float = 0.3
    optimizer: str = "adamw"
    """"adamw", or "paged_adamw_32bit" of bitsandbytes."""
    rewriting_tokens: int = 1024
    """Padded tokens of a rewriting batch."""
    detection_tokens: int = 2048
    """Padded tokens of a detection batch."""
    max_length: int = 512
    """Longer items are left out."""
    save_every: int = 25
    """Steps between checkpoints."""
    evaluate_every: int = 50
    """Steps between dev losses."""
    patience: int = 0
    """Stop after this many dev losses without a better one; 0 never."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """One training run."""

    name: str
    base: Base
    prompt: str
    lora: Lora = Lora()
    quantization: Quantization = Quantization()
    heads: Heads = Heads()
    data: Data = field(default_factory=Data)
    training: Training = Training()

    @classmethod
    def from_toml(cls, path: Path) -> Config:
        """Read a configuration.

        Raises:
            ConfigError: unreadable, or a key that is not known; names it.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path.name} cannot be read: {error}", hint="Check path and TOML.") from error
        parts: dict[str, Any] = {"name": path.stem}
        sections = {
            "base": Base,
            "lora": Lora,
            "quantization": Quantization,
            "heads": Heads,
            "data": Data,
            "training": Training,
        }
        for key, value in content.items():
            if key in sections:
                parts[key] = _section(sections[key], value, f"{path.name} [{key}]")
            elif key in ("name", "prompt"):
                parts[key] = value
            else:
                known = ", ".join(("name", "prompt", *sections))
                raise ConfigError(f"{path.name}: unknown key {key!r}.", hint=f"Known: {known}.")
        try:
            return cls(**parts)
        except TypeError as error:
            raise ConfigError(f"{path.name}: {error}", hint="Add what is missing.") from error


def _section(kind: Any, values: dict[str, Any], where: str) -> Any:
    known = {entry.name for entry in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}.", hint=f"Known: {', '.join(sorted(known))}."
        )
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise ConfigError(f"{where}: {error}", hint="Add what is missing.") from error
