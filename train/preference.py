"""Teach the rewriter which of its own rewrites readers would sign.

Direct preference optimisation (Rafailov et al., 2023) on the readings of `train.readings`: of two
rewrites of one segment the good one is to gain on the other, against the model that the stage
starts from. The likelihood of a rewrite, by which the guard decides whether to release it, thereby
comes to say whether it is good. An anchor, the cross-entropy of the good ones, keeps them likely.

Nothing is trained but the adapter behind the detection layer: what is detected stays as it is.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from srllm_guard.errors import ConfigError
from srllm_guard.prompt import Prompt
from train import rewriting
from train.batching import by_length
from train.config import Config, Preference
from train.finetune import precision, schedule
from train.model import Model
from train.readings import Reading
from train.rewriting import Item
from train.sources import held_out
from train.team import ALONE, Team

log = logging.getLogger("train")

HELD_OUT = 0.1
"""Share of the readings that are not learned from, but tell whether it worked."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rewrites of one segment, of which a reader would sign the first."""

    better: Item
    worse: Item

    def __len__(self) -> int:
        return max(len(self.better), len(self.worse))


def prefer(
    model: Model,
    readings: Sequence[Reading],
    prompt: Prompt,
    config: Config,
    settings: Preference,
    team: Team = ALONE,
) -> None:
    """Tune `model` in place; logs how well likelihood tells good rewrites of held-out readings.

    A team shares the pairs of each step.

    Raises:
        ConfigError: no reading has both a good and a bad rewrite, or all layers are frozen.
    """
    learned = [each for each in readings if not held_out(each.source, HELD_OUT)]
    others = [each for each in readings if held_out(each.source, HELD_OUT)]
    found = [pair for each in learned for pair in pairs(each, prompt, settings.most)]
    if not found:
        raise ConfigError(
            "There is no pair of a good and a bad rewrite to learn from.",
            hint="Give readings with both, or leave [preference] out.",
        )
    model.freeze_detection()
    model.freeze_layers(config.training.frozen_layers)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError(
            f"No layer behind {model.layer}, which detection reads, is left to tune.",
            hint="Let frozen_layers be less, or leave [preference] out.",
        )
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0)
    items = list(dict.fromkeys(item for pair in found for item in (pair.better, pair.worse)))
    known = dict(zip(items, _chances(model, items), strict=True))
    if team.leads:
        log.info("likelihood of held-out readings, AUROC: %s", telling(model, others, prompt))
    seed = config.training.seed
    # Two parts a step, so that two processes have one each.
    batches = [
        batch
        for epoch in range(settings.epochs)
        for batch in by_length(found, len, settings.tokens // 2, seed * 1000 + epoch)
    ]
    for number, batch in enumerate(tqdm(batches, unit="step", disable=not team.leads)):
        optimizer.param_groups[0]["lr"] = settings.lr * schedule(
            number, len(batches), 0.05, "cosine"
        )
        parts = [(n, batch[n::2]) for n in range(min(2, len(batch)))]
        for n, part in team.mine(parts, [float(len(part)) for _, part in parts]):
            torch.manual_seed(hash((seed, number, n)))
            before = [(known[pair.better], known[pair.worse]) for pair in part]
            cost = loss(model, part, before, settings)
            (cost * (len(part) / len(batch))).backward()
        team.add_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if team.leads:
        log.info("and then: %s", telling(model, others, prompt))


def pairs(reading: Reading, prompt: Prompt, most: int) -> Iterator[Pair]:
    """Each of at most `most` bad rewrites with a good one, all of which take turns."""
    made = items_of(reading, prompt)
    good = [made[text] for text in reading.good]
    draw = random.Random(reading.source)
    bad = draw.sample(reading.bad, min(most, len(reading.bad)))
    for number, text in enumerate(bad if good else []):
        yield Pair(good[number % len(good)], made[text])


def items_of(reading: Reading, prompt: Prompt) -> dict[str, Item]:
    """The item of each rewrite of a segment, by its text."""
    asked = prompt.rewrite(reading.source, reading.marks, reading.context)
    return {text: Item(asked, prompt.target(text)) for text in reading.rewrites}


def loss(
    model: Model, found: Sequence[Pair], known: Sequence[tuple[float, float]], settings: Preference
) -> Tensor:
    """The mean cost of pairs whose log-probabilities under the model before are `known`."""
    items = [*(pair.better for pair in found), *(pair.worse for pair in found)]
    chances, lengths = log_probabilities(model, items)
    better, worse = chances.chunk(2)
    before = torch.tensor(known, device=chances.device)
    margin = settings.beta * ((better - before[:, 0]) - (worse - before[:, 1]))
    anchor = -(better / lengths[: len(found)]).mean()
    return -F.logsigmoid(margin).mean() + settings.anchor * anchor


def log_probabilities(model: Model, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """Log-probability of each item's answer as a whole, and its number of tokens, both `[B]`."""
    device = next(model.heads.parameters()).device
    batch = rewriting.collate(items)
    with precision(device):
        each, wanted = model.answers(batch.ids.to(device), batch.labels.to(device))
    rows = torch.arange(len(items), device=device)[:, None].expand_as(wanted)[wanted]
    return each.new_zeros(len(items)).index_add(0, rows, each), wanted.sum(1)


def telling(model: Model, readings: Sequence[Reading], prompt: Prompt) -> float | None:
    """AUROC of likelihood as a sign of a good rewrite; None where only one sort is there."""
    items = [item for each in readings for item in items_of(each, prompt).values()]
    truth = [verdict == "good" for each in readings for verdict in each.rewrites.values()]
    if len(set(truth)) < 2:
        return None
    return round(float(roc_auc_score(truth, _chances(model, items))), 4)


def _chances(model: Model, items: Sequence[Item], tokens: int = 4096) -> list[float]:
    """Log-probability of each item's answer, as the model is in use; it is left in training."""
    model.eval()
    found = [0.0] * len(items)
    numbered = list(enumerate(items))
    with torch.no_grad():
        for group in by_length(numbered, lambda each: len(each[1]), tokens, 0):
            chances, _ = log_probabilities(model, [item for _, item in group])
            for (number, _), chance in zip(group, chances.tolist(), strict=True):
                found[number] = chance
    model.train()
    return found
