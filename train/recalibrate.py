"""Fit the calibration of a bundle anew, its weights as they are.

    python -m train.recalibrate train/configs/smollm2_135m_3.toml BUNDLE --data DATA

For another rule, or for dev data that is closer to what a guard will see.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from srllm_guard.errors import GuardError
from srllm_guard.models.bundle import Bundle
from srllm_guard.models.store import find_base
from srllm_guard.prompt import Prompt
from srllm_guard.runtime import tokenizer
from train.calibrate import calibrate
from train.config import Config
from train.corpus import corpus
from train.model import load
from train.package import write_bundle
from train.run import AUTHORED
from train.schema import SchemaError

log = logging.getLogger("train")


def recalibrate(
    config: Config, folder: Path, data: Path | None, authored: Path, base: Path | None
) -> None:
    """Write the bundle in `folder` again with a calibration fitted on the dev splits.

    Raises:
        GuardError: the bundle, its base or the data cannot be used, or [lora] is not the bundle's.
        SchemaError: a row of the data is not as it should be.
    """
    bundle = Bundle.load(folder)
    weights = find_base(config.base, base)
    model = load(config, bundle, weights)
    prompt = Prompt(tokenizer(weights), config.prompt)
    found = corpus(config, data, authored)
    calibration, metrics = calibrate(model, prompt, found, config.likelihood)
    write_bundle(folder, model, config, calibration, metrics, bundle.manifest.training)
    log.info("threshold %s, was %s", calibration.threshold, bundle.manifest.calibration.threshold)


def main(argv: list[str] | None = None) -> int:
    """Parse arguments and recalibrate; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--authored", type=Path, default=AUTHORED)
    parser.add_argument("--base", type=Path)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = Config.from_toml(args.config)
        recalibrate(config, args.bundle, args.data, args.authored, args.base)
    except (GuardError, SchemaError) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
