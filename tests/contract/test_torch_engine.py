"""Our engine against transformers: the same logits, ids and scores, whatever the architecture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srllm_guard.engines.base import Asked, Request, Window
from srllm_guard.errors import ConfigError, EngineError, ModelError
from srllm_guard.prompt import Prompt
from tests.contract.alike import ignore_company, judge_alike, score_alike
from tests.contract.conftest import Tiny, drafted

torch = pytest.importorskip("torch")

from srllm_guard.engines import graphs, linear, opening  # noqa: E402
from srllm_guard.engines.checkpoint import Checkpoint, read_config  # noqa: E402
from srllm_guard.engines.graphs import Graphs, GraphSteps  # noqa: E402
from srllm_guard.engines.llama import Llama, Shape, unsupported  # noqa: E402
from srllm_guard.engines.loading import Adapter  # noqa: E402
from srllm_guard.engines.loop import decode  # noqa: E402
from srllm_guard.engines.reference import ReferenceEngine  # noqa: E402
from srllm_guard.engines.torch import TorchEngine, suits  # noqa: E402

CPU = torch.device("cpu")
TEXTS = [
    "You are an idiot, and the train leaves at 9:40 from platform 2.",
    "Hi!",
    "Müller 😀 is so stupid",
    "abcabcabc abcabcabc",
]

ROPE_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "untied": ("Llama", {"tie_word_embeddings": False}),
    "biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "one head of keys for each": ("Llama", {"num_key_value_heads": 4}),
    "head width": ("Llama", {"head_dim": 32}),
    "linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama 3": ("Llama", {"rope_scaling": ROPE_3, "rope_theta": 500000.0}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen 2": ("Qwen2", {}),
    "qwen 3": ("Qwen3", {"head_dim": 16}),
}


def write(folder: Path, family: str, settings: dict[str, Any]) -> tuple[Path, Any]:
    """A random model of a family in a folder, and itself."""
    import transformers

    torch.manual_seed(3)
    options: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.15,
    }
    config = getattr(transformers, f"{family}Config")(**options | settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # zeros and ones would hide a mistake
                weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder, safe_serialization=True)
    return folder, model


def ours(folder: Path, precision: str = "fp32") -> Llama:
    shape = Shape.of(read_config(folder))
    return Llama(shape, Checkpoint(folder), precision, CPU)


def logits(model: Llama, ids: Any) -> Any:
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
    cache = model.new_cache(len(ids), ids.shape[1])
    return model.logits(model.forward(ids, positions, cache, ids.shape[1]))


@pytest.mark.parametrize("name", MODELS)
def test_each_family_has_the_logits_and_the_text_of_transformers(name: str, tmp_path: Path) -> None:
    folder, theirs = write(tmp_path, *MODELS[name])
    assert unsupported(read_config(folder)) is None
    model = ours(folder)
    ids = torch.randint(3, 300, (2, 150))
    with torch.inference_mode():
        torch.testing.assert_close(logits(model, ids), theirs(ids).logits, atol=1e-3, rtol=0)
        passes = Graphs(model, 1024)
        for row in ids[:, :20].tolist():
            request = Request(tuple(row), frozenset(), 60)
            expected = theirs.generate(
                torch.tensor([row]),
                attention_mask=torch.ones(1, 20, dtype=torch.long),
                max_new_tokens=60,
                do_sample=False,
                pad_token_id=0,
            )[0, 20:].tolist()
            [found] = decode([request], passes.open([request]), width=16, max_tokens=256)
            assert list(found.ids) == expected


def test_weights_in_several_files_are_the_same_model(tmp_path: Path) -> None:
    theirs = write(tmp_path / "one", "Llama", {})[1]
    theirs.save_pretrained(tmp_path / "many", max_shard_size="100KB", safe_serialization=True)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    ids = torch.arange(20).view(1, -1) + 30
    with torch.inference_mode():
        one, many = (logits(ours(tmp_path / name), ids) for name in ("one", "many"))
    assert torch.equal(one, many)


def test_the_merged_adapter_is_that_of_peft(tiny: Tiny) -> None:
    shape = Shape.of(read_config(tiny.base))
    model = Llama(shape, Checkpoint(tiny.base, Adapter(tiny.bundle.folder)), "fp32", CPU)
    ids = torch.arange(20).view(1, -1) + 30
    with torch.inference_mode():
        expected = tiny.tuned(ids).logits
        torch.testing.assert_close(logits(model, ids), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def reference(tiny: Tiny) -> ReferenceEngine:
    return ReferenceEngine(tiny.bundle, tiny.base, "cpu")


@pytest.fixture(scope="module", params=[False, True], ids=["steps", "graphs"])
def engine(tiny: Tiny, prompt: Prompt, request: pytest.FixtureRequest) -> TorchEngine:
    return TorchEngine(
        tiny.bundle, tiny.base, "cpu", opening=prompt.opening, graphs=bool(request.param)
    )


@pytest.fixture
def requests(prompt: Prompt) -> list[Request]:
    return drafted(prompt, TEXTS, 50)


def test_it_writes_what_the_reference_writes(
    engine: TorchEngine, reference: ReferenceEngine, requests: list[Request]
) -> None:
    [free] = reference.generate(requests[:1])
    asked = [
        *requests,
        *(replace(requests[0], temperature=0.9, seed=seed) for seed in range(4)),
        replace(requests[1], barred=(free.ids[:1], free.ids[1:3])),
        replace(requests[2], barred=(free.ids[:2],), temperature=1.3, seed=5),
        replace(requests[0], stop=frozenset({free.ids[7]})),
        replace(requests[3], draft=()),
        replace(requests[3], limit=1),
    ]
    found = engine.generate(asked)
    assert found == reference.generate(asked)
    assert len({each.ids for each in found}) > 5
    assert all(0 < each.steps <= len(each.ids) + 1 for each in found)


def test_a_draft_saves_passes_and_changes_nothing(
    engine: TorchEngine, requests: list[Request]
) -> None:
    [free] = engine.generate([replace(requests[0], draft=())])
    [told] = engine.generate([replace(requests[0], draft=free.ids)])
    assert told == free
    assert told.accepted > 0.8 * len(told.ids)
    assert told.steps < 0.3 * len(told.ids)
    assert told.steps < free.steps


def test_it_judges_as_the_reference_does(
    engine: TorchEngine, reference: ReferenceEngine, prompt: Prompt
) -> None:
    windows = [prompt.window(text, [(0, len(text))])[0] for text in TEXTS]
    windows.append(Window((40, 41, 42), (0, 0, 1), 2))  # no opening
    windows.append(Window(prompt.opening, (-1,) * len(prompt.opening), 1))  # nothing else
    judge_alike(engine, reference, windows)


def test_its_likelihoods_are_those_of_the_reference(
    engine: TorchEngine, reference: ReferenceEngine, requests: list[Request]
) -> None:
    asked, found = score_alike(engine, reference, requests)
    # To the bit whatever is asked of other prompts.
    by_prompt = {
        prompt: [a for a in asked if a.prompt == prompt] for prompt in {a.prompt for a in asked}
    }
    alone = {
        a: f
        for group in by_prompt.values()
        for a, f in zip(group, engine.score(group), strict=True)
    }
    assert all(np.array_equal(f, alone[a]) for a, f in zip(asked, found, strict=True))
    assert engine.score([]) == []


@pytest.mark.parametrize("asked", [Asked((), (4,)), Asked((4,), ()), Asked((4,) * 2048, (4,))])
def test_what_cannot_be_scored_is_an_error(engine: TorchEngine, asked: Asked) -> None:
    with pytest.raises(EngineError, match="was to be scored") as caught:
        engine.score([asked])
    assert not caught.value.retryable


def test_on_a_cpu_company_changes_not_a_bit(
    tiny: Tiny, prompt: Prompt, requests: list[Request]
) -> None:
    engine = TorchEngine(tiny.bundle, tiny.base, "cpu", opening=prompt.opening)
    windows = [prompt.window(text, [(0, len(text))])[0] for text in TEXTS]
    ignore_company(engine, requests, windows)


@pytest.mark.parametrize("kept", [0, 60, 1024])
def test_what_is_kept_of_prompts_changes_not_a_bit(
    tiny: Tiny, prompt: Prompt, requests: list[Request], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "KEPT", kept)
    fresh, used = (
        TorchEngine(tiny.bundle, tiny.base, "cpu", opening=prompt.opening) for _ in range(2)
    )
    found = used.generate(requests)
    assert sum(map(len, used._opening._prompts)) <= kept
    assert used.generate(requests[::-1]) == found[::-1]
    asked = [Asked(request.prompt, request.draft) for request in requests]
    for one, other in zip(used.score(asked), fresh.score(asked), strict=True):
        assert np.array_equal(one, other)


def test_a_prompt_longer_than_the_largest_pass_is_fed_in_parts(
    tiny: Tiny, reference: ReferenceEngine, requests: list[Request]
) -> None:
    engine = TorchEngine(tiny.bundle, tiny.base, "cpu", graphs=True)
    long = replace(requests[0], prompt=requests[0].prompt * 14, limit=12)
    assert len(long.prompt) > 1024
    asked = [long, requests[1], replace(long, prompt=requests[0].prompt * 6)]
    assert engine.generate(asked) == reference.generate(asked)


def test_a_full_model_is_decoded_to_its_last_place(
    engine: TorchEngine, reference: ReferenceEngine
) -> None:
    request = Request((40, 41) * 1020, frozenset(), 50)
    [found] = engine.generate([request])
    assert len(found.ids) == 2048 - 2040
    assert [found] == reference.generate([request])
    with pytest.raises(EngineError, match="2048"):
        engine.generate([replace(request, prompt=(40,) * 2048)])


def test_passes_of_one_shape_are_captured_once(tiny: Tiny, requests: list[Request]) -> None:
    model = Llama(Shape.of(read_config(tiny.base)), Checkpoint(tiny.base), "fp32", CPU)
    passes = Graphs(model, 4096)
    with torch.inference_mode():
        first = passes.run(1, 16, 256)
        assert passes.run(1, 16, 256) is first
        decode(requests[:1], passes.open(requests[:1]), width=16, max_tokens=2048)
        assert passes.run(1, 16, 256) is first
        many = passes.open([replace(requests[0], limit=300)] * 20)
        assert isinstance(many, GraphSteps)
        assert passes.run(1, 16, 256) is not first  # a larger cache took the place of the old one


def test_a_capture_between_passes_spoils_nothing(
    tiny: Tiny, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warmed(work: Any, *rest: Any) -> Any:
        for _ in range(graphs.WARM):
            work()
        return work

    expected = TorchEngine(tiny.bundle, tiny.base, "cpu", graphs=True).generate(requests)
    monkeypatch.setattr(graphs, "capture", warmed)
    assert TorchEngine(tiny.bundle, tiny.base, "cpu", graphs=True).generate(requests) == expected


def test_like_lengths_run_together_as_far_as_the_cache_goes(tiny: Tiny) -> None:
    model = Llama(Shape.of(read_config(tiny.base)), Checkpoint(tiny.base), "fp32", CPU)
    short, long = Request((40,) * 20, frozenset(), 50), Request((40,) * 400, frozenset(), 50)
    asked = [short, long] * 20
    together = Graphs(model, 2048).shares(asked)
    assert sorted(n for part in together for n in part) == list(range(40))
    assert [len(part) for part in together] == [16, 4, *[4] * 5]
    assert all(len({asked[n] for n in part}) == 1 for part in together[-4:])


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "auto"])
def test_other_precisions_stay_near(
    tiny: Tiny, reference: ReferenceEngine, prompt: Prompt, precision: str
) -> None:
    engine = TorchEngine(tiny.bundle, tiny.base, "cpu", precision=precision)
    used = engine.info()["precision"]
    assert used == precision or (precision == "auto" and used in linear.MEASURED)
    window = prompt.window(TEXTS[0], [(0, len(TEXTS[0]))])[0]
    [one], [other] = engine.detect([window]), reference.detect([window])
    near = np.corrcoef(one.labels.ravel(), other.labels.ravel())[0, 1]
    assert near > 0.99
    request = Request(prompt.rewrite(TEXTS[0], []), frozenset({prompt.end}), 12)
    [found] = engine.generate([request])
    assert len(found.ids) == 12 or found.finished


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_no_precision_minds_company(tiny: Tiny, prompt: Prompt, precision: str) -> None:
    """Neither what follows a segment nor what is guessed changes what is said of it."""
    engine = TorchEngine(tiny.bundle, tiny.base, "cpu", precision=precision)
    both = prompt.window("Go away. You are trash.", [(0, 8), (9, 23)])[0]
    alone = prompt.window("Go away.", [(0, 8)])[0]
    [two], [one] = engine.detect([both]), engine.detect([alone])
    near = 2e-2 if precision == "bf16" else 1e-3  # its sums hang on the shape of a product
    np.testing.assert_allclose(two.labels[0], one.labels[0], atol=near)
    layer = linear.pack(torch.randn(12, 8), None, precision)
    x = torch.randn(5, 8).to(linear.activations(precision, CPU))
    assert torch.allclose(layer(x)[:1], layer(x[:1]), atol=near)


def test_bf16_needs_no_instructions_of_its_own() -> None:
    """On a processor without AVX-512, oneDNN lays no bf16 out."""
    code = (
        "import torch; from srllm_guard.engines import linear;"
        "assert linear.choose('auto', torch.device('cpu')) in linear.MEASURED;"
        "x = torch.ones(1, 8, dtype=torch.bfloat16);"
        "assert linear.pack(torch.eye(8), None, 'bf16')(x).sum() == 8"
    )
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", code], check=True, env=limited)


@pytest.mark.parametrize(
    ("precision", "error"), [("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 1e-2), ("int8", 3e-2)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_a_linear_layer_in_each_precision(precision: str, error: float, biased: bool) -> None:
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=made)
    weight[5] *= 100  # each output and each token has a scale of its own
    x = torch.randn(2, 7, 64, generator=made)
    x[0, 3] *= 1000
    x[1, 2] = 0
    bias = torch.randn(48, generator=made) if biased else None
    with torch.inference_mode():
        right = torch.nn.functional.linear(x, weight, bias)
        given = x.to(linear.activations(precision, CPU))
        found = linear.pack(weight, bias, precision)(given).float()
    assert found.shape == (2, 7, 48)
    size = x.norm(dim=-1, keepdim=True) * weight.norm(dim=1)  # what a product can be at most
    assert ((found - right).abs() <= error * (size + 1)).all()


def test_the_rule_measures_what_it_chooses_from() -> None:
    found = linear.speeds(rounds=3)
    assert {"fp32", "bf16"} <= set(found) <= set(linear.MEASURED)
    assert all(0 < ms < 1e3 for ms in found.values())
    assert linear.choose("auto", CPU) == linear.choose("auto", CPU)


def test_settings_that_make_no_sense_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="Unknown precision 'int4'"):
        TorchEngine(tiny.bundle, tiny.base, "cpu", precision="int4")
    with pytest.raises(ConfigError, match="'int8' is for a CPU"):
        linear.choose("int8", torch.device("cuda"))
    with pytest.raises(ConfigError, match="threads is 0"):
        TorchEngine(tiny.bundle, tiny.base, "cpu", threads=0)


def test_threads_are_a_setting(tiny: Tiny) -> None:
    before = torch.get_num_threads()
    try:
        engine = TorchEngine(tiny.bundle, tiny.base, "cpu", threads=before + 1)
        assert engine.info()["threads"] == torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"architectures": ["PhiForCausalLM"]}, "PhiForCausalLM is not one of"),
        ({"architectures": []}, "no architecture"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"partial_rotary_factor": 0.5}, "a part of each head"),
        ({"hidden_act": "gelu"}, "gelu, not silu"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_what_it_does_not_cover_it_refuses(
    tiny: Tiny, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    config = read_config(tiny.base) | settings
    assert reason in (unsupported(config) or "")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert suits(tiny.base)
    assert not suits(tmp_path)
    with pytest.raises(ModelError, match="does not run this base") as caught:
        TorchEngine(tiny.bundle, tmp_path, "cpu")
    assert "reference" in caught.value.hint


def test_a_sliding_window_ends_what_is_covered() -> None:
    config = {
        "architectures": ["MistralForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    }
    assert Shape.of(config).max_tokens == 4096
    assert Shape.of(config | {"sliding_window": None}).max_tokens == 32768
    qwen = config | {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}
    assert Shape.of(qwen).max_tokens == 32768


def test_settings_of_positions_are_read_as_transformers_4_and_5_write_them() -> None:
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "vocab_size": 300}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    old = config | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}
    new = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    assert dict(Shape.of(old).rope) == dict(Shape.of(config | {"rope_parameters": new}).rope) == new
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    assert dict(Shape.of(config | {"rope_scaling": None}).rope) == plain


def test_a_base_that_is_incomplete_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        TorchEngine(tiny.bundle, tmp_path, "cpu")
    (tmp_path / "config.json").write_bytes((tiny.base / "config.json").read_bytes())
    with pytest.raises(ModelError, match="cannot be read"):
        TorchEngine(tiny.bundle, tmp_path, "cpu")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ModelError, match="cannot be read"):
        TorchEngine(tiny.bundle, tmp_path, "cpu")
    weights = load_file(tiny.base / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"no weight 'model\.layers\.1\.mlp\.down_proj\.weight'"):
        TorchEngine(tiny.bundle, tmp_path, "cpu")


def test_it_needs_neither_transformers_nor_peft(tiny: Tiny, tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["transformers"] = sys.modules["peft"] = None  # importing them fails
from pathlib import Path
from srllm_guard.engines.base import Request
from srllm_guard.engines.torch import TorchEngine
from srllm_guard.models.bundle import Bundle
bundle = Bundle.load(Path({str(tiny.bundle.folder)!r}))
engine = TorchEngine(bundle, Path({str(tiny.base)!r}), "cpu")
print(engine.generate([Request((1, 40, 41), frozenset(), 4)])[0].ids)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    engine = TorchEngine(tiny.bundle, tiny.base, "cpu")
    [found] = engine.generate([Request((1, 40, 41), frozenset(), 4)])
    assert done.stdout.strip() == str(found.ids)
