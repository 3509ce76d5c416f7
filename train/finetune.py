"""Joint training of the adapter and the heads, with checkpoints and exact resume.

What a step sees and drops depends on the seed and its number alone (see `train.epochs`), so a run
that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from srllm_guard.errors import ConfigError
from srllm_guard.prompt import Prompt
from train import checkpoint, detection, rewriting
from train.batching import by_length
from train.config import Config, Training
from train.epochs import Corpus, Step, epoch
from train.model import Model, has_bf16, optimizer
from train.team import ALONE, Team

T = TypeVar("T")


def train(
    model: Model,
    corpus: Corpus,
    prompt: Prompt,
    config: Config,
    folder: Path,
    team: Team = ALONE,
) -> list[dict[str, float]]:
    """Train `model` in place and return the history of its losses.

    Goes on from the checkpoint in `folder`, if there is one, and writes one there every
    `save_every` steps. The history holds, a step, the number, the losses, and now and then the
    dev loss. With early stopping the model ends with the weights of the best dev loss. A team
    shares the work of each step.

    Raises:
        ConfigError: nothing to train on, or a checkpoint of another base, adapter or heads.
    """
    settings = config.training
    first = epoch(corpus, prompt, config, 0)
    if not first:
        raise ConfigError(
            f"{config.name} has no training examples.",
            hint="Check [data], and that texts are shorter than max_length.",
        )
    total = len(first) * settings.epochs
    optim = optimizer(model, config)
    rates = [group["lr"] for group in optim.param_groups]
    state = checkpoint.restore(folder, model, optim) or checkpoint.Progress()
    dev = _dev(corpus, prompt, config)
    device = next(model.heads.parameters()).device
    model.train()
    bar = tqdm(total=total, initial=state.step, unit="step", disable=not team.leads)
    left = _steps(first, corpus, prompt, config, state.step, total)
    for (number, step), last in _marking_last(left):
        if _stopped(state, settings):
            break
        factor = schedule(number, total, settings.warmup, settings.schedule)
        for group, rate in zip(optim.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        row = _one_step(model, step, (settings.seed, number), device, team, settings.unlikelihood)
        team.add_gradients(_trainable(model))
        torch.nn.utils.clip_grad_norm_(_trainable(model), settings.max_grad_norm)
        optim.step()
        optim.zero_grad()
        state.step = number + 1
        if state.step % settings.evaluate_every == 0 or last:
            row |= _dev_loss(model, dev, device)
            watched = row["dev_rewriting" if dev.rewriting else "dev_detection"]
            state.since_best = 0 if watched < state.best else state.since_best + 1
            state.best = min(state.best, watched)
            if settings.patience and not state.since_best and team.leads:
                checkpoint.save_best(folder, model, state.step)
        state.history.append({"step": number, **row})
        bar.update()
        bar.set_postfix({name: f"{value:.3f}" for name, value in row.items()})
        due = state.step % settings.save_every == 0 or last or _stopped(state, settings)
        if due and team.leads:
            checkpoint.save(folder, model, optim, state)
    bar.close()
    if settings.patience:
        team.wait()
        checkpoint.restore_best(folder, model)
    model.eval()
    return state.history


def _stopped(state: checkpoint.Progress, settings: Training) -> bool:
    worse = settings.patience and state.since_best >= settings.patience
    return bool(worse or (settings.stop and state.step >= settings.stop))


def _steps(
    first: list[Step], corpus: Corpus, prompt: Prompt, config: Config, start: int, total: int
) -> Iterator[tuple[int, Step]]:
    """Steps from `start` on, epoch after epoch; each epoch has at most as many as the first.

    Noise in the marks makes an epoch a batch longer or shorter; the course of the learning rate
    is fixed before.
    """
    size = len(first)
    loaded, steps = 0, first
    for number in range(start, total):
        if number // size != loaded:
            loaded = number // size
            steps = epoch(corpus, prompt, config, loaded)
        if (at := number % size) < len(steps):
            yield number, steps[at]


def _marking_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last."""
    held: list[T] = []
    for item in items:
        if held:
            yield held.pop(), False
        held.append(item)
    if held:
        yield held.pop(), True


def _one_step(
    model: Model,
    step: Step,
    place: tuple[int, int],
    device: torch.device,
    team: Team,
    unlikelihood: float,
) -> dict[str, float]:
    """Forward and backward of this process's part of a step; gradients are left on the model.

    `place`, the seed and the step's number, says what dropout drops, whoever does a job.
    """
    row: dict[str, float] = {}
    layers = model.language.config.num_hidden_layers
    jobs: list[list[Any]] = [*([step.rewriting] if step.rewriting else []), *step.detection]
    costs = [
        _padded(job) * (layers if isinstance(job[0], rewriting.Item) else model.layer)
        for job in jobs
    ]
    for job, items in team.mine(list(enumerate(jobs)), costs):
        torch.manual_seed(hash((*place, job)))
        if isinstance(items[0], rewriting.Item):
            with precision(device):
                loss = model.rewriting_loss(_moved(rewriting.collate(items), device), unlikelihood)
            loss.backward()
            row["rewriting"] = loss.item()
            continue
        with precision(device):
            judged = _moved(detection.collate(items), device)
            parts = detection.loss(*model.judge(judged), judged)
        (parts.total / len(step.detection)).backward()
        for name, value in parts.to_dict().items():
            row[name] = row.get(name, 0.0) + value / len(step.detection)
    return team.add_numbers(row, ("rewriting", *detection.Loss.__slots__))


def _padded(items: Sequence[Any]) -> int:
    return len(items) * max(map(len, items))


def precision(device: torch.device) -> Any:
    """bf16 where the processor has it; half of the training time on such a CPU."""
    return torch.autocast(device.type, torch.bfloat16) if has_bf16(device) else nullcontext()


def _moved(batch: Any, device: torch.device) -> Any:
    return type(batch)(*(getattr(batch, name).to(device) for name in batch.__slots__))


def schedule(step: int, total: int, warmup: float, kind: str) -> float:
    """Share of the learning rate at a step, after a warm-up that is a share of all steps."""
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
    pairs = rewriting.items(
        examples,
        prompt,
        seed=0,
        noisy=0.0,
        most_new=config.data.most_new,
        nearest=config.data.nearest,
    )
    own = corpus.dev.get("cmd", examples)
    pairs = [item for item in pairs if len(item) <= config.training.max_length]
    return Step(
        sorted(random.Random(0).sample(pairs, min(len(pairs), 8 * 32)), key=len),
        by_length(
            detection.items(own, prompt, seed=0), len, config.training.detection_tokens, seed=0
        ),
    )


def _dev_loss(model: Model, dev: Step, device: torch.device) -> dict[str, float]:
    model.eval()
    with torch.no_grad(), precision(device):
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
