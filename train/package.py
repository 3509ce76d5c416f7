"""Write a trained model as a bundle: adapter, heads, manifest with hashes, model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from srllm_guard import __version__
from srllm_guard.models.bundle import (
    ADAPTER,
    HASHED,
    HEADS,
    Base,
    Calibration,
    Manifest,
    file_hash,
    write_manifest,
)
from train.config import Config
from train.corpus import READINGS, files, names
from train.model import Model
from train.revision import revision
from train.sources import HUB_DATASET

CARD = """\
---
license: {license}
base_model: {base}
library_name: peft
language: en
tags: [content-moderation, detoxification, debiasing, srllm-guard]
---
# {name}

SR-LLM for [srllm-guard](https://pypi.org/project/srllm-guard/): a LoRA adapter (r {r}) on {base}
that rewrites unsafe English text into a safe variation, and heads on layer {layer} that detect
bias, toxicity and harm and mark the words they lie in. After "Developing Safe and Responsible
Large Language Model" (arXiv 2404.01399).

## Use
```python
from srllm_guard import Guard

Guard(model="FOLDER").rewrite("...")
```

## Made from
{sources}

## Dev figures
{figures}

Threshold {threshold}, chosen on ordinary texts or dev data; span threshold {span_threshold}, on
dev data.

## Reported figures
<!-- figures -->
<!-- /figures -->

## Limits
English only. Small: it misses what needs knowledge or long context, and a rewrite can lose a nuance
even when it passes verification. Sarcasm, dialect and reclaimed words are judged unevenly. Do not
use it to decide about people.
"""


def write_bundle(
    folder: Path,
    model: Model,
    config: Config,
    calibration: Calibration,
    metrics: dict[str, Any],
    training: Mapping[str, Any],
) -> Path:
    """Write the bundle into `folder` and return it. Weights are stored as float16.

    `training` is what `origin` said before training began.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.language.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    _halve(folder / ADAPTER)
    _name_base(folder / "adapter_config.json", config.base)
    heads = {name: value.half().contiguous() for name, value in model.heads.state_dict().items()}
    save_file({name: value.cpu() for name, value in heads.items()}, folder / HEADS)
    manifest = Manifest(
        name=config.name,
        version=__version__,
        base=config.base,
        prompt=config.prompt,
        layer=model.layer,
        heads=model.heads.config.to_dict(),
        calibration=calibration,
        files={name: file_hash(folder / name) for name in HASHED},
        training=training,
        metrics={"dev": metrics},
    )
    write_manifest(folder, manifest)
    (folder / "README.md").write_text(_card(config, calibration, manifest), encoding="utf-8")
    return folder


def origin(
    config: Config, data: Path | None, authored: Path, start: str | None = None
) -> dict[str, Any]:
    """What a model is made of, as it is now: `start` is the hash of the bundle it goes on from."""
    return {
        "seed": config.training.seed,
        "epochs": 0 if config.only_tunes else config.training.epochs,
        "data": data_hashes(config, data, authored),
        "revision": revision(),
        "start": start,
    }


def data_hashes(config: Config, data: Path | None, authored: Path) -> dict[str, str]:
    """sha256 of each source that the configuration names, over its training files in order.

    A set on the Hub has its name in place of a hash.
    """
    found = {}
    for name in names(config):
        paths = files(config, name, data, authored)
        found[name] = _hash(paths) if paths else HUB_DATASET
    if config.preference is not None:
        found[READINGS] = _hash(sorted((authored / READINGS).glob("*.jsonl")))
    return found


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _halve(path: Path) -> None:
    weights = {name: value.to(torch.float16) for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def _name_base(path: Path, base: Base) -> None:
    """The adapter names its base by Hub id: the folder it was loaded from is nobody else's."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = base.repo
    content["revision"] = base.revision
    if isinstance(content.get("target_modules"), list):
        content["target_modules"].sort()  # PEFT keeps a set; a sorted list hashes the same
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _card(config: Config, calibration: Calibration, manifest: Manifest) -> str:
    rows = [
        "| dev set | segments, or texts labelled as a whole | average precision | AUROC |",
        "|---|---|---|---|",
    ]
    for name, figures in manifest.metrics["dev"].items():
        cells = (figures[key] for key in ("segments", "average_precision", "auroc"))
        rows.append(f"| {name} | {' | '.join('-' if c is None else str(c) for c in cells)} |")
    sources = [*manifest.training["data"]]
    if start := manifest.training["start"]:
        sources.append(f"what the bundle {start[:12]} was made of, from which training went on")
    return CARD.format(
        name=config.name,
        base=config.base.repo,
        license=config.base.license or "other",
        r=config.lora.r,
        layer=manifest.layer,
        sources="\n".join(f"- {name}" for name in sources),
        figures="\n".join(rows),
        threshold=calibration.threshold,
        span_threshold=calibration.span_threshold,
    )
