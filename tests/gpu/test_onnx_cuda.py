"""The ONNX engine on CUDA: the provider that runs, and the cache that stays on the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srllm_guard.engines.base import Asked, Request
from srllm_guard.prompt import Prompt
from tests.contract.conftest import Tiny, drafted, write_export

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("optimum.exporters.onnx")

from srllm_guard.engines.onnx import OnnxEngine  # noqa: E402
from srllm_guard.engines.onnx_session import CUDA  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        CUDA not in ort.get_available_providers(), reason="this ONNX Runtime has no CUDA"
    ),
]

TEXTS = ["You are an idiot, and the train leaves at 9:40.", "Hi!", "abcabcabc abcabcabc"]


@pytest.fixture(scope="module")
def engines(
    tiny: Tiny, prompt: Prompt, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OnnxEngine, OnnxEngine]:
    """On CUDA and on the CPU, of one export."""
    folder: Path = tmp_path_factory.mktemp("half")
    made = write_export(tiny, folder, "fp16")
    return (
        OnnxEngine(made, "cuda", opening=prompt.opening),
        OnnxEngine(made, "cpu", opening=prompt.opening),
    )


@pytest.fixture
def requests(prompt: Prompt) -> list[Request]:
    return drafted(prompt, TEXTS, 40)


def test_it_runs_there(engines: tuple[OnnxEngine, OnnxEngine]) -> None:
    there, here = engines
    assert (there.device, here.device) == ("cuda:0", "cpu")
    assert there.info()["providers"][0] == CUDA


def test_it_judges_and_scores_near_the_cpu(
    engines: tuple[OnnxEngine, OnnxEngine], prompt: Prompt
) -> None:
    windows = [prompt.window(text, [(0, len(text))])[0] for text in TEXTS]
    asked = [Asked(windows[0].ids, tuple(prompt.encode("abc")))]
    there, here = engines
    for one, other in zip(there.detect(windows), here.detect(windows), strict=True):
        np.testing.assert_allclose(one.labels, other.labels, atol=5e-2)
        np.testing.assert_allclose(one.spans, other.spans, atol=5e-2)
    np.testing.assert_allclose(there.score(asked)[0], here.score(asked)[0], atol=5e-2)


def test_a_draft_changes_the_passes_only(
    engines: tuple[OnnxEngine, OnnxEngine], requests: list[Request]
) -> None:
    there, _ = engines
    [free] = there.generate([replace(requests[0], draft=())])
    [told] = there.generate([replace(requests[0], draft=free.ids)])
    assert len(told.ids) == len(free.ids) or told.finished
    assert told.steps < free.steps
    assert there.generate(requests) == [there.generate([each])[0] for each in requests]
