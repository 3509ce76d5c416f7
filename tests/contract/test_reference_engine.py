"""What only the reference engine does: adapters merged, in 4 bits, and refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srllm_guard import Guard
from srllm_guard.engines.base import Asked, Request
from srllm_guard.errors import BundleError, ConfigError, EngineError
from srllm_guard.models.bundle import ADAPTER, ADAPTER_CONFIG, HEADS, Bundle
from srllm_guard.prompt import Prompt
from srllm_guard.runtime import Runtime
from tests import tiny_model
from tests.byte_engine import TEMPLATE
from tests.contract.conftest import Tiny, write_bundle

torch = pytest.importorskip("torch")

from srllm_guard.engines.loading import merge_adapter  # noqa: E402
from srllm_guard.engines.reference import ReferenceEngine  # noqa: E402
from srllm_guard.engines.torch import TorchEngine  # noqa: E402


def load(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    return model.eval()


def changed(bundle: Bundle, folder: Path, **settings: Any) -> Path:
    """A copy of a bundle's folder whose adapter config says something else."""
    shutil.copytree(bundle.folder, folder)
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | settings))
    return folder


def test_the_merged_adapter_is_that_of_peft(tiny: Tiny) -> None:
    ids = torch.arange(20).view(1, -1) + 30
    plain, merged = load(tiny.base), load(tiny.base)
    merge_adapter(merged, tiny.bundle.folder)
    with torch.inference_mode():
        expected = tiny.tuned(ids).logits
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain(ids).logits, expected, atol=1e-2)


def test_rank_stabilised_scaling_is_that_of_peft(tiny: Tiny, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = changed(tiny.bundle, tmp_path / "rs", use_rslora=True)
    merged = load(tiny.base)
    merge_adapter(merged, folder)
    tuned = PeftModel.from_pretrained(load(tiny.base), str(folder))
    ids = torch.arange(20).view(1, -1) + 30
    with torch.inference_mode():
        torch.testing.assert_close(merged(ids).logits, tuned(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"peft_type": "IA3"},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 2}},
    ],
)
def test_another_kind_of_adapter_is_refused(
    tiny: Tiny, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = changed(tiny.bundle, tmp_path / "odd", **settings)
    with pytest.raises(BundleError, match="not plain LoRA"):
        merge_adapter(load(tiny.base), folder)


def test_an_adapter_with_other_weights_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = changed(tiny.bundle, tmp_path / "more")
    weights = load_file(folder / ADAPTER)
    weights["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 9)
    save_file(weights, folder / ADAPTER)
    with pytest.raises(BundleError, match="not plain LoRA"):
        merge_adapter(load(tiny.base), folder)


@pytest.mark.parametrize("made", [ReferenceEngine, TorchEngine])
@pytest.mark.parametrize("settings", [{"intermediate_size": 96}, {"layers": 2}])
def test_a_wrong_base_is_refused(
    tiny: Tiny, tmp_path: Path, settings: dict[str, Any], made: type[ReferenceEngine | TorchEngine]
) -> None:
    other = tiny_model.write(tmp_path, TEMPLATE, **settings)
    with pytest.raises(BundleError, match="does not fit this base") as caught:
        made(tiny.bundle, other, "cpu")
    assert "trained on" in caught.value.hint


@pytest.mark.parametrize("made", [ReferenceEngine, TorchEngine])
def test_heads_of_another_width_are_refused(
    tiny: Tiny, tmp_path: Path, made: type[ReferenceEngine | TorchEngine]
) -> None:
    bundle = write_bundle(tmp_path / "wide", tiny.tuned, hidden=48)
    with pytest.raises(BundleError, match="width 48; this base has 64"):
        made(bundle, tiny.base, "cpu")


def test_heads_that_are_not_those_of_the_manifest_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "less"
    shutil.copytree(tiny.bundle.folder, folder)
    weights = load_file(folder / HEADS)
    weights.popitem()
    save_file(weights, folder / HEADS)
    with pytest.raises(BundleError, match="not the file that the manifest describes"):
        Bundle.load(folder)
    with pytest.raises(BundleError, match="does not fit its manifest"):
        ReferenceEngine(Bundle(folder, tiny.bundle.manifest, ""), tiny.base, "cpu")


def test_a_device_that_is_not_there(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="Unknown device 'gpu'"):
        ReferenceEngine(tiny.bundle, tiny.base, "gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no CUDA GPU"):
            ReferenceEngine(tiny.bundle, tiny.base, "cuda")


@pytest.mark.parametrize("length", [0, 2048])
def test_a_prompt_without_room_is_an_error(tiny: Tiny, length: int) -> None:
    engine = ReferenceEngine(tiny.bundle, tiny.base, "cpu")
    request = Request((40,) * length, frozenset({2}), 10)
    with pytest.raises(EngineError, match=f"{length} tokens; the model takes 2048") as caught:
        engine.generate([Request((40,), frozenset({2}), 10), request])
    assert not caught.value.retryable


def test_sampling_leaves_the_random_numbers_of_others_alone(tiny: Tiny) -> None:
    engine = ReferenceEngine(tiny.bundle, tiny.base, "cpu")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    engine.generate([Request((1, 40, 41), frozenset({2}), 4, temperature=1.0, seed=9)])
    assert torch.equal(torch.rand(3), expected)


def test_a_guard_runs_on_it(tiny: Tiny, prompt: Prompt) -> None:
    engine = ReferenceEngine(tiny.bundle, tiny.base, "cpu")
    manifest = tiny.bundle.manifest
    guard = Guard(Runtime(engine, prompt, manifest.calibration, "tiny 1", tiny.bundle.hash, "0"))
    text = "The train leaves at 9:40. You are late, said Müller 😀."
    result = guard.moderate(text)
    assert result.original == text
    assert 0 <= result.before.score <= 1
    assert result.provenance.engine == "reference"
    texts = [text, "Hello.", "", "What a fine day it is, said Ed. And so it is."]
    together = guard.moderate_many(texts)
    for one, other in zip(together, [guard.moderate(each) for each in texts], strict=True):
        assert (one.action, one.text) == (other.action, other.text)
        assert one.before.score == pytest.approx(other.before.score, abs=1e-3)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
def test_a_base_in_four_bits_has_its_adapter_beside_it(tiny: Tiny, prompt: Prompt) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = ReferenceEngine(tiny.bundle, tiny.base, "cpu", four_bit=True)
        full = ReferenceEngine(tiny.bundle, tiny.base, "cpu")
        text = "The train leaves at 9:40."
        window, _ = prompt.window(text, [(0, len(text))])
        [scores], [exact] = engine.detect([window]), full.detect([window])
        request = Request(prompt.rewrite(text, []), frozenset({prompt.end}), 8)
        [continuation] = engine.generate([request])
    assert engine.info()["precision"] == "4-bit"
    assert 0 < len(continuation.ids) <= 8
    near = np.corrcoef(scores.labels.ravel(), exact.labels.ravel())[0, 1]
    assert near > 0.8


def test_scores_are_what_transformers_says(tiny: Tiny, prompt: Prompt) -> None:
    import torch

    engine = ReferenceEngine(tiny.bundle, tiny.base, "cpu")
    asked = Asked(prompt.rewrite("You fool.", [(4, 8)]), prompt.target("You there."))
    with torch.no_grad():
        logits = tiny.tuned(torch.tensor([[*asked.prompt, *asked.ids]])).logits[0]
    first = len(asked.prompt)
    wanted = [
        float(logits[first + n - 1].log_softmax(-1)[index]) for n, index in enumerate(asked.ids)
    ]
    [found] = engine.score([asked])
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_greedy_continuation_is_likelier_than_others(tiny: Tiny, prompt: Prompt) -> None:
    engine = ReferenceEngine(tiny.bundle, tiny.base, "cpu")
    asked = prompt.rewrite("You fool.", [(4, 8)])
    [greedy] = engine.generate([Request(asked, frozenset(), 1)])
    others = [Asked(asked, (index,)) for index in range(100)]
    best, *rest = (float(s[0]) for s in engine.score([Asked(asked, greedy.ids), *others]))
    assert best >= max(rest)


@pytest.mark.parametrize(
    ("prompt_ids", "ids"), [((), (1,)), ((1,), ()), ((1,) * 4096, (2,) * 4096)]
)
def test_what_cannot_be_scored_is_refused(
    tiny: Tiny, prompt_ids: tuple[int, ...], ids: tuple[int, ...]
) -> None:
    engine = ReferenceEngine(tiny.bundle, tiny.base, "cpu")
    with pytest.raises(EngineError, match="tokens"):
        engine.score([Asked(prompt_ids, ids)])
