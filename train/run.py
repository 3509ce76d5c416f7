"""From data to a bundle.

    python -m train.run train/configs/smollm2_135m_1.toml --data DATA --out runs/1

`DATA` is a folder with `train/` and `dev/` as `train.sources` describes them; without it only the
authored records of `train/data/` are used. Run the same command again after a kill: it goes on from
the last checkpoint and gives the same bundle; where layers are compiled, but for rounding.
`train.team` says how several processes share a run.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from srllm_guard.errors import ConfigError, GuardError
from srllm_guard.models.bundle import Bundle
from srllm_guard.models.store import find_base
from srllm_guard.prompt import Prompt
from srllm_guard.runtime import tokenizer
from train import finetune, kept
from train.calibrate import calibrate
from train.config import Config
from train.corpus import corpus
from train.deletions import deletions
from train.detected import detected
from train.fast import compiled
from train.model import Model, build, load
from train.package import origin, write_bundle
from train.plots import loss_curves
from train.preference import prefer
from train.refit import refit
from train.schema import SchemaError
from train.team import Team

log = logging.getLogger("train")

AUTHORED = Path(__file__).parent / "data"


def keep_memory() -> None:
    """Tell glibc to reuse large blocks: mapping them anew costs a third of a step."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def main(argv: list[str] | None = None) -> int:
    """Command line of a training run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, help="folder with train/ and dev/ of the public sets")
    parser.add_argument("--authored", type=Path, default=AUTHORED, help="folder of CMD records")
    parser.add_argument("--base", type=Path, help="folder of the base weights")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--from-bundle", type=Path, help="bundle whose weights are trained further")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_memory()
    torch.set_flush_denormal(True)
    try:
        run(args.config, args.data, args.authored, args.base, args.out, args.from_bundle)
    except (GuardError, SchemaError) as error:
        log.error("%s", error)
        return 1
    return 0


def run(
    config_path: Path,
    data: Path | None,
    authored: Path,
    base: Path | None,
    out: Path,
    start: Path | None = None,
) -> Path:
    """Train, calibrate and write the bundle; returns its folder.

    Without a bundle to start from the adapter and the heads are fresh.

    Raises:
        ConfigError: `out` holds a run with another seed, of other data or from another bundle;
            rewriting alone is trained, and detection fitted anew; what only tunes a bundle has
            none, or its heads are to read another layer.
    """
    config = Config.from_toml(config_path)
    weights = find_base(config.base, base)
    torch.manual_seed(config.training.seed)
    first = None if start is None else Bundle.load(start)
    model = _model(config, first, weights)
    prompt = Prompt(tokenizer(weights), config.prompt)
    found = corpus(config, data, authored)
    made_of = origin(config, data, authored, None if first is None else first.hash)
    team = Team.join()
    _claim(out, made_of, team)
    if config.data.deletions:
        found.deletions.extend(deletions(config, start, weights, prompt, found, out, team))
    if config.data.detected_marks:
        found.detected.update(detected(config, start, weights, found, out, team))
    history = []
    if not config.only_tunes:
        with compiled(model) if config.training.compile else nullcontext():
            history = finetune.train(model, found, prompt, config, out, team)
    if config.preference is not None:
        prefer(model, found.readings, prompt, config, config.preference, team)
    team.leave()
    if not team.leads:
        return out / "bundle"
    if history:
        loss_curves(history, out / "loss.png", out / "loss.json")
    if config.refit is not None:
        model = refit(model, found, prompt, config, config.refit)
    detects_as_before = config.training.rewriting_only or (
        config.only_tunes and config.refit is None
    )
    if first is not None and detects_as_before:
        # What is detected did not change, so neither does what was fitted on it.
        calibration = replace(first.manifest.calibration, likelihood=config.likelihood)
        metrics = dict(first.manifest.metrics["dev"])
    else:
        calibration, metrics = calibrate(model, prompt, found, config.likelihood)
    folder = write_bundle(out / "bundle", model, config, calibration, metrics, made_of)
    log.info("bundle: %s", folder)
    return folder


def _model(config: Config, first: Bundle | None, weights: Path) -> Model:
    """What the run begins with, on its device, all frozen that it does not train."""
    if first is None and config.only_tunes:
        raise ConfigError(
            f"{config.name} tunes a bundle, and trains none.",
            hint="Give one with --from-bundle, or name sources in [data.rewriting].",
        )
    model = build(config, weights) if first is None else load(config, first, weights, grow=True)
    moves = model.layer != config.heads.layer
    if config.training.rewriting_only and (config.refit or config.data.detection or moves):
        raise ConfigError(
            f"{config.name} trains rewriting only, and fits detection anew.",
            hint="Leave [refit] and [data.detection] out, and keep the layer of the heads.",
        )
    if moves and config.only_tunes and not (config.refit and config.refit.fresh):
        raise ConfigError(
            f"The heads of the bundle read layer {model.layer}, [heads] of {config.name} has "
            f"{config.heads.layer}.",
            hint="Only new heads can read another layer: name that of the bundle.",
        )
    if moves:
        model = model.with_heads(model.heads, config.heads.layer)
    if torch.cuda.is_available():
        model.to("cuda")
    if config.training.rewriting_only:
        model.freeze_detection()
    model.freeze_layers(config.training.frozen_layers)
    return model


def _claim(out: Path, made_of: Mapping[str, Any], team: Team) -> None:
    """Say in `out` what the run is made of; its length and the code may change on the way."""
    path = out / "origin.json"
    wanted = {name: made_of[name] for name in ("seed", "data", "start")}
    if team.leads and not path.exists():
        kept.keep(path, [wanted])
    team.wait()
    try:
        [found] = kept.rows(path)
        other = [name for name, value in wanted.items() if found[name] != value]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read.", hint="Give another --out.") from error
    if other:
        raise ConfigError(
            f"{out} holds a run of another {' and '.join(other)}.",
            hint="Give another --out, or go on with what that run began with.",
        )


if __name__ == "__main__":
    sys.exit(main())
