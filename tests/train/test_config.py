from __future__ import annotations

from pathlib import Path

import pytest

from srllm_guard.errors import ConfigError
from train.config import Config, Data, Heads, Lora, Quantization, Training

CONFIGS = Path(__file__).parents[2] / "train" / "configs"

BASE = 'prompt = "chatml-1"\n[base]\nrepo = "owner/name"\n'


def read(folder: Path, content: str) -> Config:
    path = folder / "some.toml"
    path.write_text(content, encoding="utf-8")
    return Config.from_toml(path)


def test_the_rest_has_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, BASE)
    assert config.name == "some"
    assert (config.base.repo, config.base.revision) == ("owner/name", "main")
    assert config.lora == Lora()
    assert config.quantization == Quantization(load_in_4bit=False)
    assert config.heads == Heads()
    assert config.data == Data(detection={}, rewriting={})
    assert config.training == Training()


def test_the_papers_recipe() -> None:
    config = Config.from_toml(CONFIGS / "llama2_7b_chat.toml")
    assert config.base.repo == "meta-llama/Llama-2-7b-chat-hf"
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (64, 16, 0.2)
    assert config.quantization == Quantization(
        load_in_4bit=True, quant_type="nf4", double_quant=True, compute_dtype="float16"
    )
    training = config.training
    assert (training.epochs, training.lr, training.schedule) == (1, 2e-4, "constant")
    assert (training.warmup, training.weight_decay, training.max_grad_norm) == (0.03, 0.001, 0.3)
    assert training.optimizer == "paged_adamw_32bit"
    assert (training.max_length, training.save_every, training.patience) == (1024, 25, 3)


def test_the_recipe_of_the_shipped_bundle_pins_its_base() -> None:
    base = Config.from_toml(CONFIGS / "smollm2_135m_3.toml").base
    assert base.file
    assert base.sha256
    assert len(base.sha256) == 64
    assert len(base.revision) == 40


def test_lists_and_whole_numbers_fit_where_they_may(tmp_path: Path) -> None:
    config = read(tmp_path, BASE + '[lora]\ntargets = ["q_proj"]\ndropout = 0\n')
    assert config.lora.targets == ("q_proj",)
    assert config.lora.dropout == 0.0
    assert isinstance(config.lora.dropout, float)


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("[lora]\nrank = 4", ("[lora]", "'rank'", "alpha")),
        ("[trainer]\nlr = 1", ("'trainer'", "training")),
        ("[base2]", ("'base2'", "base")),
        ("[data]\ncopies = 'some'", ("copies", "'some'", "float")),
        ("[data.detection]\nedoz = 3", ("'edoz'", "edos")),
        ("[data.detection]\nedos = -1", ("edos", "-1")),
        ("[data]\nrewriting = 3", ("rewriting", "3", "table")),
        ("[training]\nschedule = 'cosin'", ("'cosin'", "cosine, constant")),
        ("[training]\noptimizer = 'sgd'", ("'sgd'", "paged_adamw_32bit")),
        ("[training]\nsave_every = 0", ("save_every", "0", "at least 1")),
        ("[training]\nlr = -1.0", ("lr", "-1.0")),
        ("[training]\nepochs = true", ("epochs", "True", "int")),
        ("[training]\nepochs = 1.5", ("epochs", "1.5", "int")),
        ("[quantization]\ncompute_dtype = 'int3'", ("'int3'", "bfloat16")),
        ("[lora]\ntargets = [1]", ("targets", "[1]", "str or tuple")),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, added: str, named: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, BASE + added)
    assert str(caught.value).startswith("some.toml")
    for part in named:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('prompt = "chatml-1"', "base"),
        ('[base]\nrepo = "a/b"', "prompt"),
        ('prompt = "chatml-1"\n[base]\nrevision = "main"', "repo"),
        ('prompt = "alpaca"\n[base]\nrepo = "a/b"', "'alpaca'"),
        ('prompt = "chatml-1"\nbase = "a/b"', "'a/b'"),
        ("prompt = ", "cannot be read"),
        ("= 3", "cannot be read"),
    ],
)
def test_what_is_missing_or_unreadable_is_named(tmp_path: Path, content: str, named: str) -> None:
    with pytest.raises(ConfigError, match=r"some\.toml") as caught:
        read(tmp_path, content)
    assert named in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml cannot be read"):
        Config.from_toml(tmp_path / "gone.toml")
    (tmp_path / "bytes.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match=r"bytes\.toml cannot be read"):
        Config.from_toml(tmp_path / "bytes.toml")


@pytest.mark.parametrize(("setting", "named"), [("20", "at most 1"), ("nan", "at least 0")])
def test_a_share_is_between_none_and_all(tmp_path: Path, setting: str, named: str) -> None:
    content = f'prompt = "chatml-1"\n[base]\nrepo = "a/b"\n[data]\nnoisy_marks = {setting}\n'
    with pytest.raises(ConfigError, match="noisy_marks") as caught:
        read(tmp_path, content)
    assert named in str(caught.value)
