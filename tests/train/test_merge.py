from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from srllm_guard.errors import BundleError, ModelError
from srllm_guard.models.bundle import ADAPTER, ADAPTER_CONFIG, Bundle, Calibration
from tests import tiny_model
from train.config import Config
from train.merge import TOLERANCE, main, merge
from train.model import build
from train.package import origin, write_bundle


@pytest.fixture(scope="module")
def bundle(base: Path, authored: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose adapter changes something, without a training run."""
    from tests.train.conftest import CONFIG

    folder = tmp_path_factory.mktemp("merge")
    (folder / "tiny.toml").write_text(CONFIG)
    config = Config.from_toml(folder / "tiny.toml")
    torch.manual_seed(1)
    model = build(config, base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    made_of = origin(config, None, authored)
    made = write_bundle(folder / "bundle", model, config, Calibration(), {}, made_of)
    return Bundle.load(made)


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def test_the_merged_model_gives_the_logits_of_the_adapter(
    bundle: Bundle, base: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    found = merge(bundle, base, tmp_path)
    assert found.adapter <= TOLERANCE
    assert found.engine <= TOLERANCE
    ids = torch.randint(6, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    merged = logits(tmp_path, ids)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    beside = PeftModel.from_pretrained(plain, str(bundle.folder)).eval()
    with torch.no_grad():
        assert (merged - beside(ids).logits).abs().max() < 1e-3
    assert (merged - logits(base, ids)).abs().max() > 0.1


def test_the_folder_is_one_that_transformers_loads(
    bundle: Bundle, base: Path, tmp_path: Path
) -> None:
    merge(bundle, base, tmp_path, torch.float16)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert not list(tmp_path.glob("*.bin"))
    weights = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert not [name for name in weights if "lora" in name]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("Old people").input_ids) == "Old people"


def test_the_command_line_reports_the_differences(
    bundle: Bundle, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "train")
    out = tmp_path / "out"
    assert main([str(bundle.folder), str(out), "--base", str(base)]) == 0
    assert "merged against adapter: " in caplog.text
    assert (out / "model.safetensors").is_file()
    assert main([str(tmp_path), str(out), "--base", str(base)]) == 1
    assert "is no bundle" in caplog.text


def edited(bundle: Bundle, folder: Path, weights: dict[str, torch.Tensor]) -> Bundle:
    shutil.copytree(bundle.folder, folder)
    save_file(weights, folder / ADAPTER, metadata={"format": "pt"})
    return replace(bundle, folder=folder)


def test_a_merge_that_is_not_the_adapter_writes_nothing(
    bundle: Bundle, base: Path, tmp_path: Path
) -> None:
    # Not a number anywhere is the plainest way to differ from everything.
    weights = load_file(bundle.folder / ADAPTER)
    name = next(iter(weights))
    broken = edited(bundle, tmp_path / "broken", weights | {name: weights[name] * torch.nan})
    with pytest.raises(ModelError, match="merged logits differ"):
        merge(broken, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_peft_and_the_engine_read_differently_is_found(
    bundle: Bundle, base: Path, tmp_path: Path
) -> None:
    # PEFT leaves out what stands under a name that it does not know; the engine does not.
    weights = load_file(bundle.folder / ADAPTER)
    a = next(name for name in weights if name.endswith("q_proj.lora_A.weight"))
    b = a.replace("lora_A", "lora_B")
    moved = {n: v for n, v in weights.items() if n not in (a, b)}
    moved |= {n.removeprefix("base_model.model."): weights[n] for n in (a, b)}
    broken = edited(bundle, tmp_path / "broken", moved)
    with (
        pytest.warns(UserWarning, match="missing adapter keys"),
        pytest.raises(ModelError, match="the engine's"),
    ):
        merge(broken, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_engine_refuses_what_is_not_plain_lora(
    bundle: Bundle, base: Path, tmp_path: Path
) -> None:
    other = edited(bundle, tmp_path / "dora", load_file(bundle.folder / ADAPTER))
    path = other.folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    with pytest.raises(BundleError, match="not plain LoRA"):
        merge(other, base, tmp_path / "out")


def test_an_adapter_of_another_base_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    narrow = tiny_model.write(tmp_path / "narrow", hidden_size=32, num_attention_heads=2)
    with pytest.raises(BundleError, match="does not fit this base"):
        merge(bundle, narrow, tmp_path / "out")
    shallow = tiny_model.write(tmp_path / "shallow", layers=1)
    with pytest.raises(BundleError, match="does not fit this base"):
        merge(bundle, shallow, tmp_path / "out")
