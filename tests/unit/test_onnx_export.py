"""Exports and their manifests: what is refused, and that a failure leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srllm_guard.errors import BundleError, ConfigError, MissingExtra, ModelError
from srllm_guard.export import export
from srllm_guard.export.parity import BOUNDS, Bounds, Parity, accept, flipped
from srllm_guard.models.bundle import Base, Calibration, Manifest, write_manifest
from srllm_guard.models.exported import (
    EXPORT,
    FILES,
    PRECISIONS,
    WEIGHTS,
    Exported,
    Sizes,
    hashes,
    is_exported,
)
from srllm_guard.runtime import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export in all but its graphs."""
    made = tmp_path / "made"
    made.mkdir()
    for name in FILES:
        (made / name).write_bytes(name.encode())
    manifest = Manifest(
        name="tiny",
        version="1",
        base=Base(repo="tests/tiny"),
        prompt="chatml-1",
        layer=2,
        heads={},
        calibration=Calibration(),
        files={},
    )
    write_manifest(made, manifest)
    Exported(made, manifest, "int8", Sizes(3, 2, 16, 64), hashes(made), {"score": 0.5}).write()
    return made


def test_what_was_written_is_read(folder: Path) -> None:
    assert is_exported(folder)
    found = Exported.load(folder)
    assert found == Exported.read(folder)
    assert (found.precision, found.sizes) == ("int8", Sizes(3, 2, 16, 64))
    assert found.parity == {"score": 0.5}
    assert found.manifest.title == "tiny 1"


@pytest.mark.parametrize("name", FILES)
def test_a_changed_or_missing_file_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?" if name != "guard.json" else content + b" ")
    with pytest.raises(BundleError, match=f"{name} is not the file"):
        Exported.load(folder)
    if name != "guard.json":
        path.unlink()
        with pytest.raises(BundleError, match=f"lacks {name}"):
            Exported.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError"),
        ('{"format": 9}', "export format 9"),
        ('{"format": 2, "sizes": {"layers": 3}}', "TypeError"),
    ],
)
def test_a_broken_manifest_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / EXPORT).write_text(content)
    with pytest.raises(BundleError, match=message) as caught:
        Exported.read(folder)
    assert caught.value.hint


def test_a_corrupt_export_is_refused_when_it_is_loaded(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"other")
    with pytest.raises(BundleError, match=WEIGHTS):
        load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "torch"}, "holds an exported model"),
        ({"engine": "reference"}, "holds an exported model"),
        ({"base": "elsewhere"}, "holds an exported model"),
        ({"four_bit": True}, "holds an exported model"),
        ({"precision": "fp32"}, "exported in int8"),
    ],
)
def test_options_that_an_export_does_not_take(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(folder, **options)
    assert caught.value.hint


@pytest.mark.parametrize("model", [None, "some/where"])
def test_a_bundle_has_to_be_exported_first(model: str | None) -> None:
    with pytest.raises(ConfigError, match="no folder of an exported one") as caught:
        load(model, engine="onnx")
    assert "srllm-guard export DIR" in caught.value.hint


def test_settings_that_make_no_sense_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown precision 'int2'"):
        export(tmp_path / "new", precision="int2")
    with pytest.raises(ConfigError, match="is there already"):
        export(folder)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        export(other, overwrite=True)  # no export: it is not ours to replace


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srllm_guard.export.find_spec", lambda _: None)
    with pytest.raises(MissingExtra) as caught:
        export(tmp_path / "new")
    assert caught.value.extra == "export"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Exported:
    """An export that is made at once."""
    made = Exported.read(folder)

    def write(working: Path, *_: Any) -> Exported:
        for name in (*FILES, EXPORT):
            (working / name).write_bytes((folder / name).read_bytes())
        return Exported.read(working)

    monkeypatch.setattr("srllm_guard.export.write", write)
    monkeypatch.setattr("srllm_guard.export.find_base", lambda *_: folder)
    monkeypatch.setattr("srllm_guard.export._check_packages", lambda _: None)
    return made


def test_what_is_too_far_from_its_bundle_leaves_nothing_behind(
    tmp_path: Path, quick: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far(*_: Any) -> dict[str, float]:
        accept(Parity(10, 0.9, 0.5, 0.0, 100), BOUNDS["int8"])
        return {}

    monkeypatch.setattr("srllm_guard.export._compared", far)
    with pytest.raises(ModelError, match=r"score 0\.9000"):
        export(tmp_path / "deep" / "new", precision="int8")
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_export_is_put_in_the_place_of_another(
    tmp_path: Path, quick: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srllm_guard.export._compared", lambda *_: {"score": 0.25})
    (folder / "old").write_text("")
    found = export(folder, precision="int8", overwrite=True)
    assert found.parity == {"score": 0.25}
    assert Exported.load(folder) == found
    assert not (folder / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_tokens_are_compared_up_to_the_first_that_differs() -> None:
    assert flipped((1, 2, 3), (1, 2, 3)) == (4, False)
    assert flipped((1, 2, 3), (1, 9, 3)) == (2, True)
    assert flipped((1, 2), (1, 2, 3)) == (3, True)
    assert flipped((), ()) == (1, False)


def test_each_precision_has_bounds_that_grow() -> None:
    assert tuple(BOUNDS) == PRECISIONS
    given = [(bounds.score, bounds.flips) for bounds in BOUNDS.values()]
    assert given == sorted(given)
    accept(Parity(1, 0.1, 0.1, 0.0, 9), Bounds(0.1, 0.0))
    with pytest.raises(ModelError, match="flips"):
        accept(Parity(1, 0.1, 0.1, float("nan"), 9), Bounds(0.1, 1.0))


def test_four_bits_keep_each_block_within_half_a_step() -> None:
    pytest.importorskip("onnx")
    from srllm_guard.export.precision import _blocks

    weight = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    values, scales, zeros = _blocks(weight)
    assert (values.shape, scales.shape, zeros.shape) == ((5, 3, 16), (5, 3), (5, 2))
    low, high = (values & 15).astype(float), (values >> 4).astype(float)
    levels = np.stack((low, high), -1).reshape(5, 3, 32)
    middle = np.stack((zeros & 15, zeros >> 4), -1).reshape(5, 4)[:, :3]
    back = ((levels - middle[..., None]) * scales[..., None]).reshape(5, 96)
    assert np.abs(back - weight).max() <= scales.max() * 0.51


def test_eight_bits_keep_each_row_within_half_a_step() -> None:
    pytest.importorskip("onnx")
    from srllm_guard.export.precision import _levels

    weight = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    weight[2] *= 1000
    weight[3] = 0
    values, scales = _levels(weight)
    assert values.dtype == np.uint8
    assert (values.shape, scales.shape) == ((5, 96), (5,))
    back = (values.astype(np.float64) - 128) * scales[:, None]
    steps = np.abs(weight).max(1, keepdims=True) / 127
    assert (np.abs(back - weight) <= steps * 0.51).all()


def test_only_large_weights_begin_on_pages(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from onnx import GraphProto, ModelProto, load_model, numpy_helper

    from srllm_guard.export.files import store

    rng = np.random.default_rng(0)
    sizes = {"small": 500, "large": 2**18, "odd": 501, "again": 500, "inside": 3}
    weights = {name: rng.random(size, np.float32) for name, size in sizes.items()}
    weights["again"] = weights["small"]
    held = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    store(tmp_path, {"graph.onnx": ModelProto(ir_version=8, graph=GraphProto(initializer=held))})
    stored = load_model(tmp_path / "graph.onnx", load_external_data=False).graph.initializer
    places = [
        next((int(each.value) for each in tensor.external_data if each.key == "offset"), None)
        for tensor in stored
    ]
    assert places == [0, 65_536, 65_536 + 2**20, 0, None]
    for tensor in load_model(tmp_path / "graph.onnx").graph.initializer:
        assert np.array_equal(numpy_helper.to_array(tensor), weights[tensor.name])
