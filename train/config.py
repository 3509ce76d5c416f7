"""The settings of a training run, read from TOML."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from srllm_guard.errors import ConfigError
from srllm_guard.models.bundle import Base
from srllm_guard.prompt import TEMPLATES
from train.mappings import SOURCES

_CHOICES = {
    "prompt": tuple(TEMPLATES),
    "schedule": ("cosine", "constant"),
    "optimizer": ("adamw", "paged_adamw_32bit"),
    "quant_type": ("nf4", "fp4"),
    "compute_dtype": ("float16", "bfloat16", "float32"),
}
"""Settings that take one of a few names."""

_NATURAL = {
    *("r", "alpha", "layer", "dim", "blocks", "epochs", "max_length"),
    *("rewriting_tokens", "detection_tokens", "save_every", "evaluate_every"),
    *("authored_turns", "most", "tokens"),
}
"""Settings that are at least 1."""

_SHARES = ("average", "copies", "noisy_marks", "detected_marks", "warmup", "dropout")
"""Settings that are at most 1."""


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
    authored_turns: int = 1
    """How often an epoch judges the authored records, each time in other groupings."""
    edos_negatives: bool = False
    """Also learn what `edos` calls not sexist as safe, but for texts with words that rewrites of
    `paradetox` take away; noisy, see `train.mappings`."""
    variations: bool = False
    """Detection also learns what people made of unsafe authored sentences as safe: nearly the same
    words, and harmless. See `train.corpus.variations`."""
    copies: float = 0.1
    """Share of the safe authored records that are also taught to be copied."""
    noisy_marks: float = 0.5
    """Share of pairs whose marks are made imperfect."""
    most_new: int = 0
    """Pairs of authored records whose variation brings more new words of content are not taught;
    0 teaches all."""
    detected_marks: float = 0.0
    """Share of examples whose marks are those that the bundle which training starts from finds,
    where it finds any. See `train.detected`."""
    nearest: bool = False
    """Hold pairs of every source to `most_new`, and of several variations teach the one that
    brings fewest new words."""
    deletions: float = 0.0
    """Also teach deletions as answers to the pairs that `most_new` leaves out: those that the
    bundle which training starts from finds at least this likely (natural logarithm, negative); 0
    teaches none. See `train.deletions`."""


@dataclass(frozen=True, slots=True)
class Refit:
    """Heads fitted on the finished adapter, see `train.refit`."""

    layer: int
    """The layer whose states they read."""
    fresh: bool = True
    """Whether they are new; else those of the run go on, which must read this layer."""
    epochs: int = 5
    lr: float = 1e-3
    schedule: str = "cosine"
    """As in `Training`; only heads that go on have a warm-up."""
    average: float = 0.0
    """The heads are a running mean of what they were after each step, in which a step keeps this
    share of the mean before (less at the beginning); 0 keeps the last."""
    authored_turns: int = 2
    """How often an epoch has the authored records, each time in other groupings."""
    detection: dict[str, int] = field(default_factory=dict)
    """Source -> examples, drawn once; 0 takes all of them."""


@dataclass(frozen=True, slots=True)
class Preference:
    """Rewriting tuned by what readers said, after joint training; see `train.preference`."""

    epochs: int = 2
    lr: float = 1e-4
    beta: float = 0.2
    """How strongly the model is held to what it said before; less is freer."""
    anchor: float = 0.1
    """Weight of the cross-entropy of good rewrites."""
    most: int = 4
    """Bad rewrites of a segment that are learned from."""
    tokens: int = 2048
    """Padded tokens of a step."""


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
    """Stop after this many dev losses without a better one, and keep the weights of the best; 0
    never stops and keeps the last."""
    stop: int = 0
    """End after this many steps, on the schedule of the whole run; 0 does all of them."""
    rewriting_only: bool = False
    """Train nothing but the adapter's layers behind the detection layer, so that what is detected
    stays as it is to the last bit."""
    unlikelihood: float = 0.0
    """Weight of the unlikelihood of copying on where a variation leaves its source; see
    `train.model`."""
    compile: bool = False
    """Train with compiled layers, see `train.fast`; a resumed run is then the same but for
    rounding."""
    frozen_layers: int = 0
    """The adapter's first layers that stay as they are."""
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
    refit: Refit | None = None
    """None keeps the heads of the joint training."""
    preference: Preference | None = None
    """None leaves the rewriter as it was trained."""
    likelihood: float | None = None
    """`Calibration.likelihood` of the bundle, at most 0; chosen by reading rewrites of dev texts,
    and put in by `train.recalibrate`."""

    @property
    def only_tunes(self) -> bool:
        """Whether there is no joint training, but only what comes after it."""
        trained = self.data.rewriting or self.data.detection
        return not trained and bool(self.refit or self.preference)

    @classmethod
    def from_toml(cls, path: Path) -> Config:
        """Read a configuration.

        Raises:
            ConfigError: unreadable; a key that is not known or missing; a value of another type
                or not among those that the key takes. Names file and key.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # bad UTF-8 and bad TOML are ValueErrors
            raise ConfigError(
                f"{path.name} cannot be read: {error}", hint="Check path and TOML."
            ) from error
        sections: dict[str, Any] = {
            "base": Base,
            "lora": Lora,
            "quantization": Quantization,
            "heads": Heads,
            "data": Data,
            "training": Training,
            "refit": Refit,
            "preference": Preference,
        }
        parts: dict[str, Any] = {"name": path.stem}
        for key, value in content.items():
            if key in sections:
                parts[key] = _section(sections[key], value, f"{path.name} [{key}]")
            elif key in ("name", "prompt"):
                parts[key] = _checked(value, str, f"{path.name} {key}")
            elif key == "likelihood":
                parts[key] = _checked(value, float, f"{path.name} {key}")
            else:
                known = ", ".join(("name", "prompt", "likelihood", *sections))
                raise ConfigError(f"{path.name}: unknown key {key!r}.", hint=f"Known: {known}.")
        try:
            return cls(**parts)
        except TypeError as error:
            raise ConfigError(f"{path.name}: {error}", hint="Add what is missing.") from error


def _section(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is {values!r}.", hint="It is a table of settings.")
    types = get_type_hints(kind)
    known = [entry.name for entry in fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}.", hint=f"Known: {', '.join(sorted(known))}."
        )
    try:
        return kind(**{k: _checked(v, types[k], f"{where} {k}") for k, v in values.items()})
    except TypeError as error:
        raise ConfigError(f"{where}: {error}", hint="Add what is missing.") from error


def _checked(value: Any, kind: Any, where: str) -> Any:
    """A value of TOML as the field's type wants it."""
    name = where.rpartition(" ")[2]
    if kind == dict[str, int]:
        return _draws(value, where)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    # `tuple[str, ...]` stands for itself as `tuple`; bool is no number here.
    allowed = [getattr(each, "__origin__", each) for each in get_args(kind) or (kind,)]
    if type(value) not in allowed:
        wanted = " or ".join(each.__name__ for each in allowed if each is not type(None))
        raise ConfigError(f"{where} is {value!r}.", hint=f"It is of type {wanted}.")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigError(f"{where} is {value!r}.", hint=f"Known: {', '.join(_CHOICES[name])}.")
    least = 1 if name in _NATURAL else 0
    if name in ("deletions", "likelihood"):
        if value > 0:
            raise ConfigError(f"{where} is {value!r}.", hint="It is a logarithm: at most 0.")
    elif isinstance(value, int | float) and not value >= least:  # nor is it "nan"
        raise ConfigError(f"{where} is {value!r}.", hint=f"It is at least {least}.")
    if name in _SHARES and value > 1:
        raise ConfigError(f"{where} is {value!r}.", hint="It is a share: at most 1.")
    return value


def _draws(value: Any, where: str) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}.", hint="It is a table: source = examples.")
    for name, most in value.items():
        if name not in SOURCES:
            raise ConfigError(
                f"{where}: unknown source {name!r}.", hint=f"Known: {', '.join(SOURCES)}."
            )
        if type(most) is not int or most < 0:
            raise ConfigError(
                f"{where} {name} is {most!r}.", hint="It is a number of examples; 0 takes all."
            )
    return value
