"""The ONNX engine on an exported tiny model against torch: the same ids, scores and likelihoods."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srllm_guard.engines.base import Asked, Request, Window
from srllm_guard.errors import ConfigError, EngineError, ModelError
from srllm_guard.prompt import Prompt
from tests.contract.alike import ignore_company, judge_alike, score_alike
from tests.contract.conftest import Tiny, drafted, write_export

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from srllm_guard.engines import onnx_session
from srllm_guard.engines.onnx import OnnxEngine
from srllm_guard.engines.onnx_session import CPU, CUDA, check_providers, choose
from srllm_guard.engines.torch import TorchEngine
from srllm_guard.models.exported import LOWER, UPPER, Exported

TEXTS = [
    "You are an idiot, and the train leaves at 9:40 from platform 2.",
    "Hi!",
    "Müller 😀 is so stupid",
    "abcabcabc abcabcabc",
]


@pytest.fixture(scope="module")
def torch_engine(tiny: Tiny, prompt: Prompt) -> TorchEngine:
    return TorchEngine(tiny.bundle, tiny.base, "cpu", opening=prompt.opening)


@pytest.fixture(scope="module")
def engine(exported: Exported, prompt: Prompt) -> OnnxEngine:
    return OnnxEngine(exported, "cpu", threads=1, opening=prompt.opening)


@pytest.fixture
def requests(prompt: Prompt) -> list[Request]:
    return drafted(prompt, TEXTS, 50)


@pytest.fixture
def windows(prompt: Prompt) -> list[Window]:
    return [
        *(prompt.window(text, [(0, len(text))])[0] for text in TEXTS),
        prompt.window("Go away. You are trash. Bye.", [(0, 8), (9, 23), (24, 28)])[0],
        Window((40, 41, 42), (0, 0, 1), 2),  # no opening
        Window((40, 41, 42), (-1, 1, 1), 3),  # segments without a token
        Window(prompt.opening, (-1,) * len(prompt.opening), 1),  # nothing else
    ]


def test_it_writes_what_torch_writes(
    engine: OnnxEngine, torch_engine: TorchEngine, requests: list[Request]
) -> None:
    [free] = torch_engine.generate(requests[:1])
    asked = [
        *requests,
        *(replace(requests[0], temperature=0.9, seed=seed) for seed in range(4)),
        replace(requests[1], barred=(free.ids[:1], free.ids[1:3])),
        replace(requests[0], stop=frozenset({free.ids[7]})),
        replace(requests[3], draft=()),
        replace(requests[3], limit=1),
        Request((40, 41), frozenset(), 9),  # no opening
    ]
    found = engine.generate(asked)
    assert found == torch_engine.generate(asked)
    assert len({each.ids for each in found}) > 5
    told = engine.generate([replace(requests[0], draft=free.ids)])[0]
    assert told == free
    assert told.steps < 0.3 * len(told.ids)


def test_it_judges_as_torch_does(
    engine: OnnxEngine, torch_engine: TorchEngine, windows: list[Window]
) -> None:
    judge_alike(engine, torch_engine, windows)


def test_its_likelihoods_are_those_of_torch(
    engine: OnnxEngine, torch_engine: TorchEngine, requests: list[Request]
) -> None:
    score_alike(engine, torch_engine, requests)


def test_company_changes_not_a_bit(
    engine: OnnxEngine, requests: list[Request], windows: list[Window]
) -> None:
    ignore_company(engine, requests, windows)


def test_long_prompts_are_run_in_parts(
    engine: OnnxEngine,
    torch_engine: TorchEngine,
    requests: list[Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_session, "PART", 64)
    request = replace(requests[0], prompt=requests[0].prompt * 3, limit=12)
    assert len(request.prompt) > 3 * 64
    ids = request.prompt
    window = Window(ids, tuple(n // 100 for n in range(len(ids))), 1 + (len(ids) - 1) // 100)
    assert engine.generate([request]) == torch_engine.generate([request])
    [one], [other] = engine.detect([window]), torch_engine.detect([window])
    np.testing.assert_allclose(one.labels, other.labels, atol=1e-4)
    asked = [Asked(ids, requests[0].draft)]
    np.testing.assert_allclose(engine.score(asked)[0], torch_engine.score(asked)[0], atol=1e-4)


def test_a_full_model_is_decoded_to_its_last_place(
    engine: OnnxEngine, torch_engine: TorchEngine
) -> None:
    request = Request((40, 41) * 1020, frozenset(), 50)
    [found] = engine.generate([request])
    assert len(found.ids) == 2048 - 2040
    assert [found] == torch_engine.generate([request])
    with pytest.raises(EngineError, match="2048"):
        engine.generate([replace(request, prompt=(40,) * 2048)])


@pytest.mark.parametrize("asked", [Asked((), (4,)), Asked((4,), ()), Asked((4,) * 2048, (4,))])
def test_what_cannot_be_scored_is_an_error(engine: OnnxEngine, asked: Asked) -> None:
    with pytest.raises(EngineError, match="was to be scored") as caught:
        engine.score([asked])
    assert not caught.value.retryable


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_other_precisions_stay_near_and_keep_the_contract(
    tiny: Tiny,
    torch_engine: TorchEngine,
    prompt: Prompt,
    requests: list[Request],
    windows: list[Window],
    precision: str,
    tmp_path: Path,
) -> None:
    engine = OnnxEngine(write_export(tiny, tmp_path, precision), "cpu", opening=prompt.opening)
    assert engine.info()["precision"] == precision
    ours, theirs = (each.detect(windows[:1])[0].labels for each in (engine, torch_engine))
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95
    # What follows, and what was guessed, changes no result: no range is taken over several tokens.
    both = prompt.window("Go away. You are trash.", [(0, 8), (9, 23)])[0]
    alone = prompt.window("Go away.", [(0, 8)])[0]
    [two], [one] = engine.detect([both]), engine.detect([alone])
    np.testing.assert_allclose(two.labels[0], one.labels[0], atol=1e-3)
    told = replace(requests[0], draft=(*requests[1].draft, *requests[0].draft))
    untold = replace(requests[0], draft=(40,))
    assert engine.generate([told]) == engine.generate([untold])


def test_what_is_there_twice_is_stored_once(exported: Exported, tiny: Tiny) -> None:
    base = (tiny.base / "model.safetensors").stat().st_size
    angles = 2 * 2048 * 8 * 4
    heads = (tiny.bundle.folder / "heads.safetensors").stat().st_size
    stored = (exported.folder / "weights.bin").stat().st_size
    padding = 64 * 100
    assert base < stored < base + angles + 2 * heads + padding


def test_a_graph_that_cannot_be_loaded(exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(exported.folder, tmp_path / "broken")
    (tmp_path / "broken" / UPPER).write_bytes(b"\x08\x07 no graph")
    with pytest.raises(ModelError, match=rf"cannot load {UPPER}"):
        OnnxEngine(replace(exported, folder=tmp_path / "broken"), "cpu")


def test_settings_that_make_no_sense_are_refused(exported: Exported) -> None:
    with pytest.raises(ConfigError, match="threads is 0"):
        OnnxEngine(exported, "cpu", threads=0)
    with pytest.raises(ConfigError, match="Unknown device 'tpu'"):
        OnnxEngine(exported, "tpu")
    with pytest.raises(ConfigError, match="exported in fp32"):
        OnnxEngine(exported, "cuda")


def test_cuda_that_is_not_there_says_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CPU])
    assert choose("auto", "fp16") == ("cpu", 0)
    with pytest.raises(ConfigError, match=f"has {CPU}") as caught:
        choose("cuda", "fp16")
    assert "onnx-gpu" in caught.value.hint
    # A session that fell back to the CPU shows it in its providers only.
    with pytest.raises(ConfigError, match="CUDA was asked for"):
        check_providers([CPU])
    check_providers([CUDA, CPU])


def test_cuda_that_is_there_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None, raising=False)
    assert choose("auto", "fp16") == choose("cuda", "fp16") == ("cuda", 0)
    assert choose("cuda:1", "fp16") == ("cuda", 1)
    assert choose("auto", "int8") == choose("cpu", "fp16") == ("cpu", 0)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_build_for_cuda_without_a_gpu_runs_on_the_cpu(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = write_export(tiny, tmp_path, "fp16")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None, raising=False)
    assert OnnxEngine(exported, "auto").device == "cpu"
    with pytest.raises(ConfigError, match="CUDA was asked for"):
        OnnxEngine(exported, "cuda")


def test_a_failure_tells_nothing_of_what_was_run(engine: OnnxEngine) -> None:
    with pytest.raises(EngineError, match="ONNX Runtime failed with") as caught:
        engine.detect([Window((987654,), (0,), 1)])
    assert "987654" not in str(caught.value)


def test_it_needs_neither_torch_nor_transformers(
    exported: Exported, torch_engine: TorchEngine
) -> None:
    script = f"""
import sys
for name in ("torch", "transformers", "peft", "onnx", "optimum"):
    sys.modules[name] = None  # importing them fails
from pathlib import Path
from srllm_guard.engines.base import Request
from srllm_guard.runtime import load
runtime = load(Path({str(exported.folder)!r}))
print(runtime.engine.name, runtime.engine.generate([Request((1, 40, 41), frozenset(), 4)])[0].ids)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [found] = torch_engine.generate([Request((1, 40, 41), frozenset(), 4)])
    assert done.stdout.strip() == f"onnx {found.ids}"


def test_the_lower_graph_is_cut_at_the_layer_of_the_manifest(exported: Exported) -> None:
    import onnx

    graph = onnx.load(exported.folder / LOWER, load_external_data=False).graph
    past = [each.name for each in graph.input if each.name.startswith("past")]
    assert len(past) == 2 * exported.manifest.layer
