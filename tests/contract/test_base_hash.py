"""Provenance names the base weights that run."""

from __future__ import annotations

import pytest

from srllm_guard import Guard
from srllm_guard.models.bundle import file_hash
from srllm_guard.runtime import load
from tests.contract.conftest import Tiny


@pytest.mark.parametrize("engine", ["torch", "reference"])
def test_results_name_the_weights_of_a_folder_that_was_given(tiny: Tiny, engine: str) -> None:
    runtime = load(tiny.bundle.folder, device="cpu", engine=engine, base=tiny.base)
    weights = file_hash(tiny.base / "model.safetensors")
    assert runtime.base_hash == weights != tiny.bundle.manifest.base.hash
    assert Guard(runtime).moderate("Lunch is at noon.").provenance.base_hash == weights
