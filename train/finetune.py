"""Joint training of the adapter and the heads, with checkpoints and exact resume.

A step is one batch of pairs to rewrite and the share of detection batches that goes with it. What a
step sees depends on the seed and its number alone, so a run that was killed goes on from its last
checkpoint as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from srllm_guard.prompt import Prompt
from train import detection, rewriting
from train.batching import by_length
from train.config import Config
from train.example import Example
from train.model import Model, optimizer


@dataclass(frozen=True, slots=True)
class Corpus:
    """Examples of each source, for training and for the dev losses."""

    train: dict[str, list[Example]]
    dev: dict[str, list[Example]]


@dataclass(frozen=True, slots=True)
class Step:
    """The batches of one step."""

    rewriting: list[rewriting.Item]
    detection: list[list[detection.Item]]


@dataclass(slots=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    best: float = math.inf
    since_best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def epoch(corpus: Corpus, prompt: Prompt, config: Config, number: int) -> list[Step]:
    """The steps of one epoch, drawn from the seed and the epoch's number."""
    settings = config.training
    seed = settings.seed * 1000 + number
    drawn = {
        name: _drawn(corpus.train[name], most, seed)
        for name, most in config.data.rewriting.items()
    }
    examples = [example for part in drawn.values() for example in part]
    pairs = rewriting.items(examples, prompt, seed, noisy=config.data.noisy_marks)
    pairs += rewriting.copies(drawn.get("cmd", []), prompt, seed, config.data.copies)
    pairs = [item for item in pairs if len(item) <= settings.max_length]
    judged: list[Example] = []
    for name, most in config.data.detection.items():
        judged += _drawn(corpus.train[name], most, seed)
    windows = [
        item for item in detection.items(judged, prompt, seed) if len(item) <= settings.max_length
    ]
    left = by_length(pairs, len, settings.rewriting_tokens, seed)
    right = by_length(windows, len, settings.detection_tokens, seed)
    count = max(len(left), 1)
    bounds = [round(len(right) * n / count) for n in range(count + 1)]
    return [
        Step(left[n] if n < len(left) else [], right[bounds[n] : bounds[n + 1]])
        for n in range(count)
    ]


def _drawn(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    if not most or most >= len(examples):
        return list(examples)
    return random.Random(seed).sample(examples, most)


def train(
    model: Model, corpus: Corpus, prompt: Prompt, config: Config, folder: Path
) -> list[dict[str, float]]:
    """Train `model` in place and return the history of its losses.

    Goes on from the checkpoint in `folder`, if there is one, and writes one there every
    `save_every` steps. The history holds, a step, the number, the losses, and now and then the
    dev loss.
    """
    settings = config.training
    first = epoch(corpus, prompt, config, 0)
    total = len(first) * settings.epochs
    optim = optimizer(model, config)
    rates = [group["lr"] for group in optim.param_groups]
    state = Progress()
    torch.manual_seed(settings.seed)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.is_file():
        state = _restore(checkpoint, model, optim)
    dev = _dev(corpus, prompt, config)
    device = next(model.heads.parameters()).device
    model.train()
    bar = tqdm(total=total, initial=state.step, unit="step")
    for number, step in _steps(first, corpus, prompt, config, state.step, total):
        factor = _schedule(number, total, settings.warmup, settings.schedule)
        for group, rate in zip(optim.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        row = _one_step(model, step, device)
        torch.nn.utils.clip_grad_norm_(_trainable(model), settings.max_grad_norm)
        optim.step()
        optim.zero_grad()
        state.step = number + 1
        if state.step % settings.evaluate_every == 0 or state.step == total:
            row |= _dev_loss(model, dev, device)
            better = row["dev_rewriting"] < state.best
            state.best = min(state.best, row["dev_rewriting"])
            state.since_best = 0 if better else state.since_best + 1
        state.history.append({"step": number, **row})
        bar.update()
        bar.set_postfix({name: f"{value:.3f}" for name, value in row.items()})
        if state.step % settings.save_every == 0 or state.step == total:
            _save(checkpoint, model, optim, state)
        if settings.patience and state.since_best >= settings.patience:
            break
    bar.close()
    model.eval()
    return state.history


def _steps(
    first: list[Step], corpus: Corpus, prompt: Prompt, config: Config, start: int, total: int
) -> Iterator[tuple[int, Step]]:
    """Steps from `start` on, epoch after epoch; each epoch has as many as the first."""
    size = len(first)
    loaded, steps = 0, first
    for number in range(start, total):
        if number // size != loaded:
            loaded = number // size
            steps = epoch(corpus, prompt, config, loaded)
        if (at := number % size) < len(steps):
            yield number, steps[at]


def _one_step(model: Model, step: Step, device: torch.device) -> dict[str, float]:
    """Forward and backward of one step; gradients are left on the model."""
    row: dict[str, float] = {}
    with _precision(device):
        if step.rewriting:
            batch = _moved(rewriting.collate(step.rewriting), device)
            loss = model.rewriting_loss(batch)
    if step.rewriting:
        loss.backward()
        row["rewriting"] = loss.item()
    sums: dict[str, float] = {}
    for items in step.detection:
        with _precision(device):
            judged = _moved(detection.collate(items), device)
            parts = detection.loss(*model.judge(judged), judged)
        (parts.total / len(step.detection)).backward()
        for name, value in parts.to_dict().items():
            sums[name] = sums.get(name, 0.0) + value / len(step.detection)
    return row | sums


def _precision(device: torch.device) -> Any:
    """bf16 where the processor has it; half of the training time on such a CPU."""
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _moved(batch: Any, device: torch.device) -> Any:
    return type(batch)(*(getattr(batch, name).to(device) for name in batch.__slots__))


def _schedule(step: int, total: int, warmup: float, kind: str) -> float:
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    if kind == "constant":
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def _trainable(model: Model) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _dev(corpus: Corpus, prompt: Prompt, config: Config) -> Step:
    examples = [example for part in corpus.dev.values() for example in part]
    pairs = rewriting.items(examples, prompt, seed=0, noisy=0.0)
    own = corpus.dev.get("cmd", examples)
    return Step(
        sorted(random.Random(0).sample(pairs, min(len(pairs), 8 * 32)), key=len),
        by_length(
            detection.items(own, prompt, seed=0), len, config.training.detection_tokens, seed=0
        ),
    )


def _dev_loss(model: Model, dev: Step, device: torch.device) -> dict[str, float]:
    model.eval()
    with torch.no_grad(), _precision(device):
        groups = [dev.rewriting[n : n + 32] for n in range(0, len(dev.rewriting), 32)]
        losses = [
            float(model.rewriting_loss(_moved(rewriting.collate(group), device)))
            for group in groups
        ]
        judged = [
            float(detection.loss(*model.judge(batch), batch).total)
            for batch in (_moved(detection.collate(items), device) for items in dev.detection)
        ]
    model.train()
    return {
        "dev_rewriting": sum(losses) / max(1, len(losses)),
        "dev_detection": sum(judged) / max(1, len(judged)),
    }


def _save(path: Path, model: Model, optim: torch.optim.Optimizer, state: Progress) -> None:
    """Write a checkpoint, whole or not at all."""
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    content = {
        "weights": weights,
        "optimizer": optim.state_dict(),
        "random": torch.get_rng_state(),
        "progress": json.dumps(
            {"step": state.step, "best": state.best, "since_best": state.since_best}
        ),
        "history": json.dumps(state.history),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    working = path.with_suffix(".partial")
    torch.save(content, working)
    os.replace(working, path)


def _restore(path: Path, model: Model, optim: torch.optim.Optimizer) -> Progress:
    content = torch.load(path, weights_only=True)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in content["weights"].items():
            parameters[name].copy_(value)
    optim.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["random"])
    return Progress(**json.loads(content["progress"]), history=json.loads(content["history"]))
