from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from srllm_guard.errors import ConfigError
from srllm_guard.prompt import Prompt
from train import checkpoint, epochs, finetune, rewriting
from train.config import Config
from train.corpus import corpus, variations
from train.model import Model, build, optimizer
from train.run import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(authored: Path, tmp_path_factory: pytest.TempPathFactory) -> epochs.Corpus:
    from tests.train.conftest import CONFIG

    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(CONFIG)
    return corpus(Config.from_toml(path), None, authored)


def changed(config: Config, **settings: Any) -> Config:
    return replace(config, training=replace(config.training, **settings))


def fresh(config: Config, base: Path) -> Model:
    torch.manual_seed(config.training.seed)
    return build(config, base)


def trained(model: Model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_the_losses_go_down_and_only_adapter_and_heads_change(
    config: Config, base: Path, found: epochs.Corpus, prompt: Prompt, tmp_path: Path
) -> None:
    config = changed(config, epochs=6)
    model = fresh(config, base)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    history = finetune.train(model, found, prompt, config, tmp_path)
    numbers = [int(row["step"]) for row in history]
    assert numbers == sorted(set(numbers))
    for name in ("rewriting", "labels", "spans"):
        losses = [row[name] for row in history if name in row]
        assert max(losses[-2:]) < 0.85 * losses[0], name
    judged = [int(row["step"]) for row in history if "dev_rewriting" in row]
    assert judged == sorted({*(n for n in numbers if n % 6 == 5), numbers[-1]})
    assert history[-1]["dev_rewriting"] < history[judged[0]]["dev_rewriting"]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert any("lora_A" in name for name in moved)
    assert any(name.startswith("heads.") for name in moved)
    assert all("lora_" in name or name.startswith("heads.") for name in moved)
    assert not model.training


def test_unlikelihood_is_that_of_copying_on(
    config: Config, base: Path, found: epochs.Corpus, prompt: Prompt
) -> None:
    model = fresh(config, base).eval()
    batch = rewriting.collate(rewriting.items(found.train["cmd"], prompt, 0)[:4])
    with torch.no_grad():
        added = model.rewriting_loss(batch, 0.5) - model.rewriting_loss(batch)
        chances = model.language(input_ids=batch.ids).logits.softmax(-1)
    costs = [
        -torch.log(1 - chances[row, at - 1, batch.copied[row, at]])
        for row, at in (batch.copied != rewriting.IGNORED).nonzero().tolist()
    ]
    assert len(costs) > 3
    assert added.item() == pytest.approx(0.5 * torch.stack(costs).mean().item(), rel=1e-3)


def test_variations_are_not_taught_to_be_copied(
    config: Config, found: epochs.Corpus, prompt: Prompt
) -> None:
    data = replace(config.data, copies=1.0, detection={})
    own = found.train["cmd"]
    more = replace(found, train={"cmd": own + variations(own)})
    assert len(more.train["cmd"]) > len(own)
    before, after = (epochs.epoch(c, prompt, replace(config, data=data), 0) for c in (found, more))
    assert [step.rewriting for step in after] == [step.rewriting for step in before]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    config_file: Path, base: Path, authored: Path, tmp_path: Path
) -> None:
    text = config_file.read_text().replace("epochs = 4", "epochs = 5")
    config_file.write_text(text)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "train.run", str(config_file), "--base", str(base)]
    command += ["--authored", str(authored), "--out", str(killed), "--threads", "1"]
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while not (killed / checkpoint.CHECKPOINT).is_file() and child.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(0.05)  # into the steps after the checkpoint
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    assert child.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (killed / "bundle").exists()
    stood = torch.load(killed / checkpoint.CHECKPOINT, weights_only=True)
    done = json.loads(stood["progress"])["step"]
    assert done > 0

    denormal = torch.set_flush_denormal(True)  # as the command line does
    try:
        whole = run(config_file, None, authored, base, tmp_path / "whole")
        resumed = run(config_file, None, authored, base, killed)
    finally:
        torch.set_flush_denormal(False)
    assert denormal
    histories = [
        json.loads((folder.parent / "loss.json").read_text()) for folder in (whole, resumed)
    ]
    assert done < len(histories[0])
    assert histories[0] == histories[1]
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        assert_same(load_file(whole / name), load_file(resumed / name))
    assert (whole / "guard.json").read_bytes() == (resumed / "guard.json").read_bytes()
    assert list(killed.glob("*.partial")) == []
    # What is finished stays as it is.
    before = (killed / checkpoint.CHECKPOINT).read_bytes()
    assert (run(config_file, None, authored, base, killed) / "guard.json").is_file()
    assert (killed / checkpoint.CHECKPOINT).read_bytes() == before


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.skipif(os.name != "posix", reason="limits of the operating system")
def test_a_full_disk_leaves_the_last_whole_checkpoint(
    config: Config, base: Path, found: epochs.Corpus, prompt: Prompt, tmp_path: Path
) -> None:
    model = fresh(config, base)
    optim = optimizer(model, config)
    checkpoint.save(tmp_path, model, optim, checkpoint.Progress(step=3))
    before = (tmp_path / checkpoint.CHECKPOINT).read_bytes()
    with file_size_limit(len(before) // 2), pytest.raises((OSError, RuntimeError)):
        finetune.train(model, found, prompt, config, tmp_path)
    assert (tmp_path / checkpoint.CHECKPOINT).read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_checkpoint_is_named(config: Config, base: Path, tmp_path: Path) -> None:
    model = fresh(config, base)
    optim = optimizer(model, config)
    checkpoint.save(tmp_path, model, optim, checkpoint.Progress(step=3))
    path = tmp_path / checkpoint.CHECKPOINT
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"checkpoint\.pt cannot be read"):
            checkpoint.restore(tmp_path, model, optim)


def test_a_checkpoint_of_another_adapter_is_refused(
    config: Config, base: Path, tmp_path: Path
) -> None:
    model = fresh(config, base)
    optim = optimizer(model, config)
    checkpoint.save(tmp_path, model, optim, checkpoint.Progress(step=3))
    other = fresh(replace(config, lora=replace(config.lora, r=4)), base)
    before = trained(other)
    with pytest.raises(ConfigError, match="another base, adapter or heads"):
        checkpoint.restore(tmp_path, other, optim)
    assert_same(trained(other), before)


def test_a_checkpoint_of_another_version_is_read(
    config: Config, base: Path, tmp_path: Path
) -> None:
    model = fresh(config, base)
    optim = optimizer(model, config)
    state = checkpoint.Progress(7, 1.5, 2, [{"step": 0, "rewriting": 2.0}])
    checkpoint.save(tmp_path, model, optim, state)
    path = tmp_path / checkpoint.CHECKPOINT
    content = torch.load(path, weights_only=True)
    torch.save({**content, "random": torch.get_rng_state()}, path)
    assert checkpoint.restore(tmp_path, model, optim) == state
    assert checkpoint.restore(tmp_path / "elsewhere", model, optim) is None


def test_early_stopping_keeps_the_best_weights(
    config: Config, base: Path, found: epochs.Corpus, prompt: Prompt, tmp_path: Path
) -> None:
    # A learning rate that soon makes it worse, and dev losses at every step.
    wild = replace(changed(config, epochs=30, lr=0.2, patience=3, evaluate_every=1, warmup=0.1))
    model = fresh(wild, base)
    history = finetune.train(model, found, prompt, wild, tmp_path / "a")
    losses = [row["dev_rewriting"] for row in history]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3  # it stopped, three dev losses after the best one
    device = torch.device("cpu")
    dev = finetune._dev(found, prompt, wild)
    assert finetune._dev_loss(model, dev, device)["dev_rewriting"] == losses[best]
    model.eval()

    # A second call finds the run stopped: it does no step and gives the same weights.
    again = fresh(wild, base)
    assert finetune.train(again, found, prompt, wild, tmp_path / "a") == history
    assert_same(trained(again), trained(model))


def test_without_patience_the_last_weights_stay(
    config: Config, base: Path, found: epochs.Corpus, prompt: Prompt, tmp_path: Path
) -> None:
    # At which step a wild run gets worse hangs on the processor's arithmetic.
    for stop in range(2, 10):
        wild = changed(config, lr=2.0, schedule="constant", evaluate_every=1, stop=stop)
        model, folder = fresh(wild, base), tmp_path / str(stop)
        losses = [r["dev_rewriting"] for r in finetune.train(model, found, prompt, wild, folder)]
        if min(losses) < losses[-1]:
            break
    assert min(losses) < losses[-1]
    dev = finetune._dev(found, prompt, wild)
    last = finetune._dev_loss(model, dev, torch.device("cpu"))
    assert last["dev_rewriting"] == losses[-1]
    assert not (folder / checkpoint.BEST).exists()


def test_a_shorter_last_epoch_still_ends_with_a_checkpoint(
    config: Config, base: Path, found: epochs.Corpus, prompt: Prompt, tmp_path: Path
) -> None:
    config = replace(config, data=replace(config.data, rewriting={"cmd": 12}))
    for seed in range(100):
        short = changed(config, epochs=2, rewriting_tokens=700, save_every=100, seed=seed)
        sizes = [len(epochs.epoch(found, prompt, short, number)) for number in (0, 1)]
        if sizes[1] < sizes[0]:
            break
    else:
        pytest.fail("no seed gives a shorter second epoch")
    model = fresh(short, base)
    history = finetune.train(model, found, prompt, short, tmp_path)
    assert len(history) == sum(sizes)
    assert "dev_rewriting" in history[-1]
    stood = torch.load(tmp_path / checkpoint.CHECKPOINT, weights_only=True)
    assert json.loads(stood["history"]) == history
    assert_same(stood["weights"], trained(model))


def test_detection_alone_can_be_trained(
    config: Config, base: Path, found: epochs.Corpus, prompt: Prompt, tmp_path: Path
) -> None:
    config = replace(config, data=replace(config.data, rewriting={}))
    steps = epochs.epoch(found, prompt, config, 0)
    assert all(not step.rewriting and len(step.detection) == 1 for step in steps)
    held = epochs.Corpus(found.train, {"cmd": []})
    history = finetune.train(fresh(config, base), held, prompt, changed(config, epochs=1), tmp_path)
    assert len(history) == len(steps)


def test_nothing_to_train_on_is_an_error(
    config: Config, base: Path, found: epochs.Corpus, prompt: Prompt, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no training examples"):
        finetune.train(fresh(config, base), found, prompt, changed(config, max_length=3), tmp_path)


def test_as_many_pairs_are_drawn_as_the_configuration_says(
    config: Config, found: epochs.Corpus
) -> None:
    pairs = [example for example in found.train["cmd"] if example.safe]
    plain = [replace(example, safe=()) for example in pairs] * 9
    data = replace(config.data, rewriting={"cmd": len(pairs) - 1})
    more = replace(found, train={"cmd": [*plain, *pairs]})
    pool = epochs.pools(more, replace(config, data=data), 0)["cmd"]
    assert len(pool) == len(pairs) - 1
    assert all(example.safe for example in pool)


def test_every_step_is_drawn_from_the_seed(
    config: Config, found: epochs.Corpus, prompt: Prompt
) -> None:
    def drawn(seed: int, number: int) -> list[epochs.Step]:
        return epochs.epoch(found, prompt, changed(config, seed=seed), number)

    def prompts(steps: list[epochs.Step]) -> list[Any]:
        return [[item.prompt for item in step.rewriting] for step in steps]

    assert prompts(drawn(3, 1)) == prompts(drawn(3, 1))
    assert prompts(drawn(3, 1)) != prompts(drawn(3, 2))
    assert prompts(drawn(3, 1)) != prompts(drawn(4, 1))
