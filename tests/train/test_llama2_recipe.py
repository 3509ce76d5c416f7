"""The paper's recipe, from its own configuration file, on a Llama of random weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from srllm_guard import Guard, Policy
from srllm_guard.models.bundle import Bundle
from train import checkpoint, rewriting
from train.config import Config
from train.model import Model, build, optimizer
from train.run import run

bitsandbytes = pytest.importorskip("bitsandbytes")

RECIPE = Path(__file__).parents[2] / "train" / "configs" / "llama2_7b_chat.toml"

pytestmark = pytest.mark.filterwarnings(
    "ignore:Paged optimizers are not supported on CPU:UserWarning",
    "ignore:MatMul8bitLt:UserWarning",
)


@pytest.fixture(scope="module")
def bundle(llama: Path, authored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paper")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        return run(RECIPE, None, authored, llama, out)


@pytest.fixture(scope="module")
def model(llama: Path) -> Model:
    torch.manual_seed(0)
    return build(Config.from_toml(RECIPE), llama)


def test_the_base_is_in_four_bits_and_frozen(model: Model) -> None:
    config = Config.from_toml(RECIPE)
    layer = model.language.get_base_model().model.layers[0]
    for name in ("q_proj", "v_proj", "k_proj"):
        linear = getattr(layer.self_attn, name)
        weight = linear.weight
        assert isinstance(weight, bitsandbytes.nn.Params4bit)
        assert weight.quant_state.quant_type == "nf4"
        assert weight.quant_state.nested  # its constants are quantised once more
        assert not weight.requires_grad
        assert hasattr(linear, "lora_A") == (name in config.lora.targets)
    adapter = layer.self_attn.q_proj
    assert adapter.lora_A["default"].weight.shape == (64, 64)
    assert adapter.scaling["default"] == 16 / 64
    assert adapter.lora_dropout["default"].p == 0.2
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("heads.") for name in trained)


def test_the_paged_optimiser_learns(model: Model) -> None:
    optim = optimizer(model, Config.from_toml(RECIPE))
    assert isinstance(optim, bitsandbytes.optim.PagedAdamW32bit)
    ids = torch.randint(6, 200, (2, 24), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :4] = rewriting.IGNORED
    nowhere = torch.full_like(ids, rewriting.IGNORED)
    batch = rewriting.Batch(ids, torch.ones_like(ids), labels, nowhere)
    for group in optim.param_groups:
        group["lr"] = 0.01
    losses = []
    model.eval()
    for _ in range(12):
        loss = model.rewriting_loss(batch)
        loss.backward()
        optim.step()
        optim.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_the_run_ends_with_a_bundle(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    manifest = loaded.manifest
    assert (manifest.name, manifest.prompt, manifest.layer) == ("llama2-7b-chat", "llama2-1", 8)
    assert manifest.base.repo == "meta-llama/Llama-2-7b-chat-hf"
    assert "license: llama2\n" in (bundle / "README.md").read_text()
    adapter = json.loads((bundle / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (64, 16, 0.2)
    assert adapter["target_modules"] == ["q_proj", "v_proj"]
    history = json.loads((bundle.parent / "loss.json").read_text())
    assert {"rewriting", "unsafe", "spans", "dev_rewriting"} <= set(history[-1])


@pytest.mark.parametrize("four_bit", [False, True])
def test_a_guard_runs_it(bundle: Path, llama: Path, four_bit: bool) -> None:
    policy = Policy(threshold=1.0)
    guard = Guard(bundle, "cpu", policy, base=llama, four_bit=four_bit)
    text = "The meeting is at ten. Bring the keys."
    result = guard.moderate(text)
    assert result.errors == ()
    assert result.text == text
    assert 0 <= result.before.score < 1
    assert 0 < result.before.bias.probabilities["yes"] < 1
    precision = "4-bit" if four_bit else "fp32"  # by the engine that suits each
    assert guard.info()["engine_info"]["precision"] == precision


def test_the_paged_optimiser_goes_on_exactly(llama: Path, tmp_path: Path) -> None:
    config = Config.from_toml(RECIPE)
    ids = torch.randint(6, 200, (1, 16), generator=torch.Generator().manual_seed(0))
    nowhere = torch.full_like(ids, rewriting.IGNORED)
    batch = rewriting.Batch(ids, torch.ones_like(ids), ids, nowhere)

    def some(model: Model, optim: torch.optim.Optimizer) -> None:
        model.train()
        for turn in range(2):
            torch.manual_seed(turn)  # of dropout
            model.rewriting_loss(batch).backward()
            optim.step()
            optim.zero_grad()

    first = build(config, llama)
    optim = optimizer(first, config)
    some(first, optim)
    checkpoint.save(tmp_path, first, optim, checkpoint.Progress(step=2))
    some(first, optim)

    torch.manual_seed(99)
    second = build(config, llama)
    optim = optimizer(second, config)
    assert checkpoint.restore(tmp_path, second, optim) == checkpoint.Progress(step=2)
    some(second, optim)
    ones = {n: p for n, p in first.named_parameters() if p.requires_grad}
    others = {n: p for n, p in second.named_parameters() if p.requires_grad}
    assert [name for name in ones if not torch.equal(ones[name], others[name])] == []
