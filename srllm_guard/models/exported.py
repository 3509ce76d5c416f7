"""An exported model: the folder that ONNX Runtime runs, and nothing else is needed for.

    guard.json        the manifest of the bundle that it was made from
    export.json       precision, sizes, hashes of the files, and how near it is to that bundle
    lower.onnx        ids -> hidden states after the layers that detection reads
    upper.onnx        those states -> logits of the next token
    heads.onnx        those states -> label and span logits
    weights.bin       the weights of the three; what several use is stored once
    tokenizer.json

All of them are checked against their hashes when they are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from srllm_guard.errors import BundleError
from srllm_guard.models.bundle import MANIFEST, Manifest, check_file, file_hash, read_manifest

FORMAT = 2
EXPORT = "export.json"
LOWER, UPPER, HEADS_GRAPH = "lower.onnx", "upper.onnx", "heads.onnx"
WEIGHTS = "weights.bin"
TOKENIZER = "tokenizer.json"
FILES = (MANIFEST, LOWER, UPPER, HEADS_GRAPH, WEIGHTS, TOKENIZER)
"""Files whose sha256 export.json holds."""

PRECISIONS = ("fp32", "fp16", "int8", "int4")
"""What weights can be stored as; see `srllm_guard.export`."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the engine has to know of the graphs."""

    layers: int
    """Decoder layers; the manifest's `layer` of them are in the lower graph."""
    kv_heads: int
    """Heads of keys and values in each."""
    head_dim: int
    """Width of such a head."""
    max_tokens: int
    """Most tokens of a prompt with its continuation."""


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported model on disk."""

    folder: Path
    manifest: Manifest
    """Of the bundle that it was made from."""
    precision: str
    """A name in `PRECISIONS`."""
    sizes: Sizes
    files: Mapping[str, str]
    """File name -> sha256."""
    parity: Mapping[str, Any] = field(default_factory=dict)
    """How near it is to the bundle on held texts, see `srllm_guard.export.parity`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that made it."""

    @classmethod
    def load(cls, folder: Path) -> Exported:
        """Read and check an exported model.

        Raises:
            BundleError: it is of another format, or a file is missing or not the one that
                export.json describes.
        """
        exported = cls.read(folder)
        for name in FILES:
            check_file(folder / name, exported.files.get(name))
        return exported

    @classmethod
    def read(cls, folder: Path) -> Exported:
        """Read what export.json says, without a look at the other files but guard.json.

        Raises:
            BundleError: it is missing, broken, or of another format.
        """
        path = folder / EXPORT
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if (version := found.pop("format")) != FORMAT:
                raise BundleError(
                    f"{path} has export format {version!r}; this version reads {FORMAT}.",
                    hint="Export the bundle again with this version.",
                )
            sizes = Sizes(**found.pop("sizes"))
            exported = cls(folder, read_manifest(folder), sizes=sizes, **found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BundleError(
                f"{path} cannot be read ({type(error).__name__}).",
                hint="Copy the folder or export the bundle again.",
            ) from error
        return exported

    def write(self) -> None:
        """Write export.json."""
        kept = {each.name for each in fields(self)} - {"folder", "manifest"}
        values = {name: value for name, value in asdict(self).items() if name in kept}
        text = json.dumps({"format": FORMAT, **values}, indent=2, ensure_ascii=False) + "\n"
        (self.folder / EXPORT).write_text(text, encoding="utf-8")


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of the files of an exported model."""
    return {name: file_hash(folder / name) for name in FILES}


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return (folder / EXPORT).is_file()
