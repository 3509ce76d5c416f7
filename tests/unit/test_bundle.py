from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srllm_guard.errors import BundleError, ModelError
from srllm_guard.labels import LABELS
from srllm_guard.models.bundle import (
    HASHED,
    HEADS,
    MANIFEST,
    Base,
    Bundle,
    Calibration,
    Manifest,
    file_hash,
    write_manifest,
)

BASE = Base("owner/base", "0123abc", file="base.gguf", sha256="ab" * 32, license="mit")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose weights are three small files."""
    made = tmp_path / "bundle"
    made.mkdir()
    for name in HASHED:
        (made / name).write_bytes(name.encode())
    write_manifest(made, manifest(made))
    return made


def manifest(folder: Path) -> Manifest:
    return Manifest(
        name="some",
        version="1.2",
        base=BASE,
        prompt="chatml-1",
        layer=8,
        heads={"hidden": 64, "dim": 32},
        calibration=Calibration(1.5, -0.2, {"bias": 1.1}, 0.4, 0.3),
        files={name: file_hash(folder / name) for name in HASHED},
        metrics={"dev": {}},
    )


def test_what_was_written_is_read(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert bundle.manifest == manifest(folder)
    assert bundle.manifest.base.id == "owner/base@0123abc/base.gguf"
    assert replace(BASE, file=None).id == "owner/base@0123abc"


def test_the_hash_is_of_what_decides_and_not_of_figures(folder: Path) -> None:
    before = Bundle.load(folder)
    assert len(before.hash) == 64
    write_manifest(folder, replace(before.manifest, metrics={"reported": {"auroc": 0.9}}))
    measured = Bundle.load(folder)
    assert measured.manifest.metrics == {"reported": {"auroc": 0.9}}
    assert measured.hash == before.hash
    stricter = replace(before.manifest.calibration, threshold=0.9)
    write_manifest(folder, replace(before.manifest, calibration=stricter))
    assert Bundle.load(folder).hash != before.hash


@pytest.mark.parametrize("name", HASHED)
def test_a_changed_byte_is_found(folder: Path, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is not the file") as caught:
        Bundle.load(folder)
    assert file_hash(path)[:12] in str(caught.value)
    assert hashlib.sha256(name.encode()).hexdigest()[:12] in str(caught.value)
    assert "download it again" in caught.value.hint


@pytest.mark.parametrize("name", HASHED)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        Bundle.load(folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is no bundle: it has no guard\.json") as caught:
        Bundle.load(tmp_path)
    assert isinstance(caught.value, ModelError)
    assert "train.run" in caught.value.hint


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda found: found.update(format=2), "bundle format 2; this version reads 1"),
        (lambda found: found.pop("format"), "bundle format None"),
        (lambda found: found["labels"].update(bias=["yes", "no"]), "other labels"),
        (lambda found: found.pop("base"), "'base'"),
        (lambda found: found.pop("prompt"), "'prompt'"),
        (lambda found: found["base"].update(url="x"), "unknown key 'url'"),
        (lambda found: found["calibration"].update(bias=1), "unknown key 'bias'"),
        (lambda found: found.update(extra=1), "unknown key 'extra'"),
        (lambda found: found.update(files=[]), "files"),
        (lambda found: found.update(base="owner/base"), "base"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(folder: Path, change: Change, named: str) -> None:
    path = folder / MANIFEST
    found = json.loads(path.read_text())
    assert found["labels"] == {name: list(values) for name, values in LABELS.items()}
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(BundleError, match=r"guard\.json") as caught:
        Bundle.load(folder)
    assert named in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"null"])
def test_a_damaged_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"guard\.json cannot be read"):
        Bundle.load(folder)


def test_a_file_that_the_manifest_does_not_list_is_not_trusted(folder: Path) -> None:
    path = folder / MANIFEST
    found = json.loads(path.read_text())
    del found["files"][HEADS]
    path.write_text(json.dumps(found))
    with pytest.raises(BundleError, match=r"heads\.safetensors.*expected none"):
        Bundle.load(folder)
