"""A bundle of random weights on a random base: small, and the real thing in all but its sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from srllm_guard.engines.base import Engine, Request
from srllm_guard.models.bundle import (
    ADAPTER,
    HASHED,
    HEADS,
    Base,
    Bundle,
    Calibration,
    Manifest,
    file_hash,
    write_manifest,
)
from srllm_guard.models.exported import Exported
from srllm_guard.prompt import Prompt
from tests import tiny_model
from tests.byte_engine import TEMPLATE, ByteEngine


@dataclass(frozen=True)
class Tiny:
    """Where the files of a tiny model lie."""

    base: Path
    bundle: Bundle
    tuned: Any
    """PEFT's own model, adapter beside the base."""


def write_bundle(folder: Path, tuned: Any, *, hidden: int = 64) -> Bundle:
    """Write a bundle as training does: PEFT's adapter, heads, manifest."""
    import torch
    from safetensors.torch import load_file, save_file

    from srllm_guard.engines.heads import DetectionHeads, HeadsConfig

    tuned.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    halves = {name: value.half() for name, value in load_file(folder / ADAPTER).items()}
    save_file(halves, folder / ADAPTER, metadata={"format": "pt"})
    torch.manual_seed(2)
    heads = DetectionHeads(HeadsConfig(hidden, dim=32, heads=2))
    save_file({k: v.half().contiguous() for k, v in heads.state_dict().items()}, folder / HEADS)
    manifest = Manifest(
        name="tiny",
        version="1",
        base=Base(repo="tests/tiny"),
        prompt=TEMPLATE,
        layer=2,
        heads=heads.config.to_dict(),
        calibration=Calibration(),
        files={name: file_hash(folder / name) for name in HASHED},
    )
    write_manifest(folder, manifest)
    return Bundle.load(folder)


def write_export(tiny: Tiny, folder: Path, precision: str = "fp32") -> Exported:
    """Export the tiny model, as `srllm_guard.export.export` does before it compares."""
    from srllm_guard.export import write

    return write(folder, tiny.bundle, tiny.base, precision)


def drafted(prompt: Prompt, texts: Sequence[str], limit: int) -> list[Request]:
    """Greedy requests for texts whose beginning is marked, each with its draft."""
    return [
        Request(
            prompt.rewrite(text, [(0, 3)]),
            frozenset({prompt.end}),
            limit,
            draft=tuple(prompt.encode(text)),
        )
        for text in texts
    ]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_model.write(tmp_path_factory.mktemp("base"), TEMPLATE, layers=3)
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    tuned = get_peft_model(model, lora)
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:  # zero in a fresh adapter, which would change nothing
            torch.nn.init.normal_(weight, std=0.2)
    # What is stored is float16; what is compared with it must be the same.
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.half().float()
    folder = tmp_path_factory.mktemp("bundle")
    return Tiny(base, write_bundle(folder, tuned), tuned.eval())


@pytest.fixture(scope="session")
def prompt() -> Prompt:
    return Prompt(tiny_model.tokenizer(TEMPLATE), TEMPLATE)


@pytest.fixture(scope="session")
def exported(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    pytest.importorskip("optimum.exporters.onnx")
    return write_export(tiny, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session", params=["bytes", "reference", "torch", "graphs", "onnx"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    if request.param == "bytes":
        return ByteEngine()
    if request.param == "onnx":
        from srllm_guard.engines.onnx import OnnxEngine

        opening = request.getfixturevalue("prompt").opening
        return OnnxEngine(request.getfixturevalue("exported"), "cpu", opening=opening)
    from srllm_guard.engines.reference import ReferenceEngine
    from srllm_guard.engines.torch import TorchEngine

    found: Tiny = request.getfixturevalue("tiny")
    if request.param != "reference":
        prompt: Prompt = request.getfixturevalue("prompt")
        return TorchEngine(
            found.bundle,
            found.base,
            "cpu",
            opening=prompt.opening,
            graphs=request.param == "graphs",
        )
    return ReferenceEngine(found.bundle, found.base, "cpu")
