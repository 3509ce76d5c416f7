"""A bundle: the folder that makes a base model SR-LLM.

    guard.json                   the manifest: base, prompt format, layer, calibration, hashes
    adapter_config.json          PEFT's format, so that PEFT loads it as it is
    adapter_model.safetensors
    heads.safetensors            the detection heads
    README.md                    the model card

Nothing in it is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from srllm_guard.errors import BundleError
from srllm_guard.labels import LABELS

FORMAT = 1
MANIFEST = "guard.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
HEADS = "heads.safetensors"
HASHED = (ADAPTER_CONFIG, ADAPTER, HEADS)
"""Files whose sha256 the manifest holds."""


@dataclass(frozen=True, slots=True)
class Base:
    """The base model, to the byte."""

    repo: str
    """Hub repository."""
    revision: str = "main"
    """Hub revision; a commit, for a bundle that ships."""
    file: str | None = None
    """The one GGUF file of the repository that is the base; None: a transformers repository."""
    sha256: str | None = None
    """Of `file`."""
    package: str | None = None
    """An installable package that holds the same file."""
    license: str = ""

    @property
    def id(self) -> str:
        """Repository, revision and file in one string."""
        return f"{self.repo}@{self.revision}" + (f"/{self.file}" if self.file else "")

    @property
    def hash(self) -> str:
        """sha256 of the weights, or the id of a base that has no single file."""
        return self.sha256 or self.id


@dataclass(frozen=True, slots=True)
class Calibration:
    """From logits to probabilities and decisions, fitted on dev data."""

    scale: float = 1.0
    """Probability of unsafe = sigmoid(scale * logit + shift) (Platt, 1999)."""
    shift: float = 0.0
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """For each label the number that its logits are divided by; 1 where absent."""
    threshold: float = 0.5
    """Probability from which a segment is unsafe, unless the policy says otherwise."""
    release: float = 1.0
    """A rewrite is released only below this probability, and only below the threshold. Stricter,
    because doubt about a rewrite costs another attempt, not a safe text."""
    span_threshold: float = 0.5
    """Probability from which a token belongs to an unsafe span."""
    likelihood: float | None = None
    """A rewrite is released only if the model gives it at least this likelihood, the natural
    logarithm of the probability of all its tokens: what it is not sure of is mostly made up. None
    asks for none."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What guard.json says."""

    name: str
    version: str
    base: Base
    prompt: str
    """Name of the instruction format, see `srllm_guard.prompt.TEMPLATES`."""
    layer: int
    """Detection reads the hidden states after this many layers."""
    heads: Mapping[str, int | float]
    """Sizes of the detection heads, see `HeadsConfig`."""
    calibration: Calibration
    files: Mapping[str, str]
    """File name -> sha256."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Data hashes, seed, code revision."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Figures on dev data, as measured when the bundle was made."""

    @property
    def title(self) -> str:
        """Name and version, as results have them."""
        return f"{self.name} {self.version}"

    def to_dict(self) -> dict[str, Any]:
        """Return what guard.json holds."""
        return {"format": FORMAT, "labels": {k: list(v) for k, v in LABELS.items()}, **asdict(self)}

    @property
    def hash(self) -> str:
        """sha256 of all that it says but the `metrics`."""
        content = {k: v for k, v in self.to_dict().items() if k != "metrics"}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk whose files are what its manifest says."""

    folder: Path
    manifest: Manifest
    hash: str
    """sha256 of the manifest, which holds the hashes of the rest. Its `metrics` are left out:
    a figure that is measured on a bundle and then written into it does not make it another."""

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read and check a bundle.

        Raises:
            BundleError: no bundle, of another format, or a file is missing or not the one that
                the manifest describes.
        """
        manifest = read_manifest(folder)
        for name in HASHED:
            check_file(folder / name, manifest.files.get(name))
        return cls(folder, manifest, manifest.hash)


def read_manifest(folder: Path) -> Manifest:
    """What guard.json in a folder says.

    Raises:
        BundleError: there is none, or it is of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder} is no bundle: it has no {MANIFEST}.",
            hint="Give a folder that `python -m train.run` wrote, or leave the model out.",
        )
    return _manifest(path.read_bytes(), path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write guard.json beside the other files of a bundle."""
    text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def file_hash(path: Path) -> str:
    """sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, expected: str | None) -> None:
    """Make sure that a file is there and has the sha256 that a manifest says.

    Raises:
        BundleError: it is not.
    """
    if not path.is_file():
        raise BundleError(f"The bundle lacks {path.name}.", hint="Copy or download it again.")
    if (found := file_hash(path)) != expected:
        raise BundleError(
            f"{path.name} is not the file that the manifest describes: sha256 {found[:12]}..., "
            f"expected {(expected or 'none')[:12]}...",
            hint="The bundle is corrupt or was changed by hand; copy or download it again.",
        )


def _manifest(content: bytes, path: Path) -> Manifest:
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        version = found.pop("format", None)
        if version != FORMAT:
            raise BundleError(
                f"{path} has bundle format {version!r}; this version reads {FORMAT}.",
                hint="Install the srllm-guard that the bundle was made for.",
            )
        if found.pop("labels", None) != {name: list(values) for name, values in LABELS.items()}:
            raise BundleError(
                f"{path} has other labels than this version.",
                hint="Install the srllm-guard that the bundle was made for.",
            )
        for name in ("base", "calibration", "heads", "files"):
            if not isinstance(found[name], dict):
                raise ValueError(f"{name!r} is no JSON object")
        found["base"] = _of(Base, found["base"])
        found["calibration"] = _of(Calibration, found["calibration"])
        return _of(Manifest, found)
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(
            f"{path} cannot be read: {error}", hint="Copy or download the bundle again."
        ) from error


T = TypeVar("T")


def _of(kind: type[T], values: Mapping[str, Any]) -> T:
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    if unknown := set(values) - known:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
    return kind(**values)
