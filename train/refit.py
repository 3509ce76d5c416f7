"""Fit the detection heads on the finished adapter, at the layer that reads best.

Joint training shapes the adapter and its heads together, on a layer early enough to be cheap to
train through. Once the adapter stands still, its hidden states can be computed once and kept, and
heads for any layer are fitted on them in minutes; or those that there are learn from new records.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from srllm_guard.engines.heads import DetectionHeads
from srllm_guard.engines.trunk import Trunk
from srllm_guard.errors import ConfigError
from srllm_guard.prompt import Prompt
from train import detection
from train.batching import by_length
from train.config import Config, Refit
from train.epochs import Corpus, drawn
from train.evaluation import Judge, batches, judged
from train.finetune import precision, schedule
from train.model import Model

log = logging.getLogger("train")

TOKENS = 2048
"""Padded tokens of a batch."""

WARMUP = 0.03
"""Share of all steps in which heads that go on get used to the rate."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch with the hidden states of the finished model at one or more layers."""

    batch: detection.Batch
    states: dict[int, Tensor]
    """Layer -> `[B, T, H]` in bfloat16."""


def refit(model: Model, corpus: Corpus, prompt: Prompt, config: Config, settings: Refit) -> Model:
    """The model with heads on the layer that the settings name.

    Raises:
        ConfigError: the settings name no source, or heads are to go on that read another layer.
    """
    if not settings.fresh and settings.layer != model.layer:
        raise ConfigError(
            f"The heads read layer {model.layer}, [refit] of {config.name} is for layer "
            f"{settings.layer}.",
            hint="Only new heads can read another layer: leave fresh out.",
        )
    model.eval()
    seed = config.training.seed
    torch.manual_seed(seed)
    items = _items(corpus, prompt, settings, seed)
    own = batches(corpus.dev.get("cmd", []), prompt)
    trunk = Trunk(model.language.get_base_model().model, settings.layer)
    heads = {settings.layer: _start(model, settings)}
    return model.with_heads(
        fitted(trunk, heads, items, own, settings, seed)[settings.layer], settings.layer
    )


def _items(corpus: Corpus, prompt: Prompt, settings: Refit, seed: int) -> list[detection.Item]:
    found = []
    for name, most in settings.detection.items():
        # Authored records come in several groupings: no segment always has the same neighbours.
        for turn in range(settings.authored_turns if name == "cmd" else 1):
            examples = drawn(corpus.train[name], most, seed + turn)
            found += detection.items(examples, prompt, seed + turn)
    if not found:
        raise ConfigError(
            "There is nothing to fit heads on.", hint="Name sources in [refit.detection]."
        )
    return found


def fitted(
    trunk: Trunk,
    heads: Mapping[int, DetectionHeads],
    items: Sequence[detection.Item],
    own: Sequence[list[detection.Item]],
    settings: Refit,
    seed: int,
) -> dict[int, DetectionHeads]:
    """Heads by the layer that they read, fitted side by side; logs dev figures after each epoch.

    Args:
        trunk: runs as far as the last of the layers; stands still.
        heads: what is fitted, in place.
        items: learned from, all of them in each epoch. Their hidden states are kept: 1.2 kB a token
            and layer where the hidden size is 576.
        own: batches of dev records.
        settings: epochs, rate and its course; whether heads go on, and the running mean.
        seed: of the order.
    """
    layers = list(heads)
    train = [see(trunk, group, layers) for group in tqdm(by_length(items, len, TOKENS, seed))]
    dev = [see(trunk, group, layers) for group in own]
    means = copy.deepcopy(dict(heads)) if settings.average else dict(heads)
    optimizers = {
        layer: torch.optim.AdamW(each.parameters(), lr=settings.lr, weight_decay=0.05)
        for layer, each in heads.items()
    }
    total, step = settings.epochs * len(train), 0
    warmup = 0.0 if settings.fresh else WARMUP
    for epoch in range(settings.epochs):
        random.Random(seed + epoch).shuffle(train)
        for seen in tqdm(train, unit="batch", desc=f"heads, epoch {epoch + 1}"):
            rate = settings.lr * schedule(step, total, warmup, settings.schedule)
            for layer, each in heads.items():
                optimizers[layer].param_groups[0]["lr"] = rate
                _one_step(each.train(), seen, layer, optimizers[layer])
                if settings.average:
                    _add(means[layer], each, settings.average, step)
            step += 1
        for layer, each in means.items():
            found = judged(own, judge(each.eval(), layer, dev))
            log.info("layer %d, epoch %d, authored dev: %s", layer, epoch + 1, found.figures())
    return means


def _start(model: Model, settings: Refit) -> DetectionHeads:
    if settings.fresh:
        return DetectionHeads(model.heads.config)
    heads: DetectionHeads = copy.deepcopy(model.heads).cpu().requires_grad_()
    return heads


def _add(mean: DetectionHeads, heads: DetectionHeads, share: float, step: int) -> None:
    """Take the heads into their running mean; as long as there were few steps, they weigh more."""
    keep = min(share, (step + 1) / (step + 10))
    with torch.no_grad():
        for old, new in zip(mean.parameters(), heads.parameters(), strict=True):
            old.lerp_(new, 1 - keep)


def see(trunk: Trunk, items: Sequence[detection.Item], layers: Sequence[int]) -> Seen:
    """Run the finished model, as far as it is needed, over a batch and keep states of `layers`."""
    batch = detection.collate(items)
    device = next(trunk.parameters()).device
    with torch.no_grad(), precision(device):
        states = trunk.decoder(
            input_ids=batch.ids.to(device), use_cache=False, output_hidden_states=True
        ).hidden_states
    return Seen(batch, {layer: states[layer].to("cpu", torch.bfloat16) for layer in layers})


def _one_step(
    heads: DetectionHeads, seen: Seen, layer: int, optimizer: torch.optim.Optimizer
) -> None:
    batch = seen.batch
    with precision(torch.device("cpu")):
        labels, spans = heads(seen.states[layer].float(), batch.owner, batch.unsafe.shape[1])
    loss = detection.loss(labels, spans, batch)
    (loss.total + loss.spans).backward()
    torch.nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def judge(heads: DetectionHeads, layer: int, seen: Sequence[Seen]) -> Judge:
    """Says what heads make of batches that were seen, in their order."""
    waiting = iter(seen)

    def said(batch: detection.Batch) -> tuple[Tensor, Tensor]:
        states = next(waiting).states[layer]
        rows = batch.unsafe.shape[1]
        found: tuple[Tensor, Tensor] = heads(states.float(), batch.owner, rows)
        return found

    return said
