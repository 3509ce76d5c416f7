from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srllm_guard.errors import ConfigError
from srllm_guard.models.bundle import ADAPTER, HEADS, Bundle
from srllm_guard.prompt import Prompt
from tests.train.conftest import CONFIG
from train import detection, refit
from train.config import Config, Refit
from train.corpus import corpus, names
from train.model import build
from train.run import main

REFIT = """
[refit]
layer = 1
epochs = 1

[refit.detection]
cmd = 0
"""


def test_new_heads_learn_and_the_adapter_stands_still(
    base: Path, authored: Path, prompt: Prompt, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG)
    config = Config.from_toml(tmp_path / "tiny.toml")
    torch.manual_seed(0)
    model = build(config, base)
    before = {name: value.clone() for name, value in model.language.state_dict().items()}
    found = corpus(config, None, authored)

    def loss(heads_epochs: int) -> float:
        settings = Refit(layer=2, epochs=heads_epochs, lr=5e-3, detection={"cmd": 0})
        after = refit.refit(model, found, prompt, config, settings)
        assert after.layer == 2
        after.eval()
        batch = detection.collate(detection.items(found.train["cmd"], prompt, 5))
        with torch.no_grad():
            return detection.loss(*after.judge(batch), batch).total.item()

    assert loss(20) < 0.8 * loss(1)
    for name, value in model.language.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_bundle_names_the_layer_of_the_new_heads(
    base: Path, authored: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG.replace("epochs = 4", "epochs = 1") + REFIT)
    arguments = [str(tmp_path / "tiny.toml"), "--base", str(base), "--authored", str(authored)]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--threads", "1"]) == 0
    assert Bundle.load(tmp_path / "out" / "bundle").manifest.layer == 1


def test_heads_go_on_alone_as_a_running_mean(
    base: Path, authored: Path, prompt: Prompt, tmp_path: Path
) -> None:
    arguments = ["--base", str(base), "--authored", str(authored), "--threads", "1"]
    (tmp_path / "tiny.toml").write_text(CONFIG.replace("epochs = 4", "epochs = 1"))
    first = tmp_path / "first"
    assert main([str(tmp_path / "tiny.toml"), *arguments, "--out", str(first)]) == 0
    start = ["--from-bundle", str(first / "bundle")]
    plain = CONFIG.replace("[data.detection]\ncmd = 0\n", "").replace(
        "[data.rewriting]\ncmd = 0\n", ""
    )
    further = REFIT.replace("layer = 1", "layer = 2\nlr = 1e-2")
    found = {}
    for name, more in (
        ("last", "fresh = false\n"),
        ("mean", "fresh = false\naverage = 0.9\n"),
        ("new", ""),
    ):
        path = tmp_path / f"{name}.toml"
        path.write_text(plain + further.replace("epochs = 1", f"epochs = 1\n{more}"))
        assert main([str(path), *arguments, *start, "--out", str(tmp_path / name)]) == 0
        found[name] = load_file(tmp_path / name / "bundle" / HEADS)
        adapters = (
            load_file(each / ADAPTER) for each in (first / "bundle", tmp_path / name / "bundle")
        )
        for one, other in zip(*(sorted(part.items()) for part in adapters), strict=True):
            assert one[0] == other[0]
            assert torch.equal(one[1], other[1])
        assert not (tmp_path / name / "loss.json").exists()
    before = load_file(first / "bundle" / HEADS)

    def away(name: str) -> float:
        return sum(float((found[name][key] - value).abs().sum()) for key, value in before.items())

    assert 0 < away("mean") < away("last") < away("new")
    config = Config.from_toml(tmp_path / "mean.toml")
    with pytest.raises(ConfigError, match="read layer 2"):
        refit.refit(
            build(config, base),
            corpus(config, None, authored),
            prompt,
            config,
            Refit(layer=1, fresh=False, detection={"cmd": 0}),
        )


def test_a_source_that_only_the_new_heads_read_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG + REFIT + "edos = 5\n")
    assert names(Config.from_toml(tmp_path / "tiny.toml")) == ["cmd", "edos"]


def test_heads_that_nothing_is_fitted_on_are_refused(
    config: Config, base: Path, authored: Path, prompt: Prompt
) -> None:
    found = corpus(config, None, authored)
    with pytest.raises(ConfigError, match="nothing to fit"):
        refit.refit(build(config, base), found, prompt, config, Refit(layer=2))
