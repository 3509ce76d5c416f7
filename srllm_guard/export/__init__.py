"""Export a bundle for ONNX Runtime, which runs it without torch and transformers.

    from srllm_guard.export import export

    export("guard-int8", precision="int8")
    Guard(model="guard-int8")

It needs the extra `export`; what it writes needs the extra `onnx` only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from srllm_guard.errors import ConfigError, MissingExtra, ModelError
from srllm_guard.models.bundle import Bundle, write_manifest
from srllm_guard.models.exported import PRECISIONS, TOKENIZER, Exported, hashes, is_exported
from srllm_guard.models.store import find_base, find_bundle

PACKAGES = ("srllm-guard", "torch", "transformers", "optimum", "optimum-onnx", "onnx")


def export(
    folder: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    model: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Merge a bundle into its base, export it, and compare it with what it was made from.

    Args:
        folder: is written as a whole when all is done and the comparison is within the bounds of
            `srllm_guard.export.parity`; before that there is nothing.
        precision: "fp32"; "fp16" (for CUDA: on a CPU it computes in fp32); "int8"; "int4".
        model: folder or Hub id of the bundle; None for the one that ships.
        base: folder of the base weights; None searches for them.
        overwrite: put it in the place of an export that is there.

    Raises:
        ConfigError: an unknown precision, or the folder is there already.
        ModelError: no bundle or base, a family that is not exported, or too great a difference.
        MissingExtra: Optimum or ONNX Runtime is not installed.
    """
    target = Path(folder)
    if precision not in PRECISIONS:
        raise ConfigError(
            f"Unknown precision {precision!r}.", hint=f"Known: {', '.join(PRECISIONS)}."
        )
    if target.exists() and not (overwrite and is_exported(target)):
        raise ConfigError(
            f"{target} is there already.",
            hint="Give another folder, or overwrite an export: --overwrite, overwrite=True.",
        )
    _check_packages(("torch", "transformers", "optimum.exporters.onnx", "onnx", "onnxruntime"))
    bundle = find_bundle(model)
    weights = find_base(bundle.manifest.base, base)
    working = _working_folder(target)
    try:
        made = write(working, bundle, weights, precision)
        made = replace(made, parity=_compared(made, model, base))
        made.write()
        _put(working, target)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return replace(made, folder=target)


def write(folder: Path, bundle: Bundle, base: Path, precision: str) -> Exported:
    """Export into a folder that is there, and compare nothing.

    Args:
        folder: where to.
        bundle: adapter, heads and manifest.
        base: folder of the base weights.
        precision: a name in `PRECISIONS`.

    Raises:
        ModelError: as `export`.
    """
    from srllm_guard.export.build import build
    from srllm_guard.export.files import store

    graphs, sizes = build(bundle, base, precision)
    store(folder, graphs)
    shutil.copyfile(base / TOKENIZER, folder / TOKENIZER)
    write_manifest(folder, bundle.manifest)
    made = Exported(folder, bundle.manifest, precision, sizes, hashes(folder), {}, _versions())
    made.write()
    return made


def _compared(
    made: Exported, model: str | os.PathLike[str] | None, base: str | os.PathLike[str] | None
) -> dict[str, float]:
    """Compare an export with its bundle.

    Raises:
        ModelError: they are too far apart.
    """
    from srllm_guard.export.parity import BOUNDS, accept, compare
    from srllm_guard.runtime import load

    ours = load(model, device="cpu", engine="torch", base=base, precision="fp32")
    parity = compare(ours, load(made.folder, device="cpu"))
    accept(parity, BOUNDS[made.precision])
    return parity.to_dict()


def _check_packages(names: Sequence[str]) -> None:
    for name in names:
        try:
            found = find_spec(name)
        except ModuleNotFoundError:  # a parent is missing
            found = None
        if found is None:
            raise MissingExtra(extra="export", needed_for="exporting to ONNX")


def _working_folder(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".exporting-", dir=target.parent))
    except OSError as error:
        raise ModelError(
            f"{target.parent} cannot be written: {error.strerror}.", hint="Give another folder."
        ) from error


def _put(working: Path, target: Path) -> None:
    """Rename, so that a reader never sees half of an export, and none is lost if that fails."""
    working.chmod(0o755)
    if not target.exists():
        working.rename(target)
        return
    old = working.with_name(f"{working.name}.old")
    target.rename(old)
    try:
        working.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in (*PACKAGES, "onnxruntime")}
