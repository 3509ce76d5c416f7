"""How fast it is: the guard and its engines against what others offer, in turn, in one run.

    python -m benchmarks.latency

First the ceiling: measured memory bandwidth and matrix rates, and the times that no engine beats on
this machine. Then the rows: start, detection, one sentence, a paragraph, documents, batches,
concurrent callers, memory, middleware. Systems take turns on every item, after a warm-up that is
not counted; figures are medians and 95th percentiles. On a machine with a GPU the same command
adds its rows. What does not run here is skipped, with the reason in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import report
from benchmarks.speed import ceiling, goals, middleware, picture, processes, rows, tables
from benchmarks.speed.processes import GuardOptions
from benchmarks.speed.systems import (
    CUDA,
    LEAD,
    LLAMA,
    REFERENCE,
    System,
    Workshop,
    gather,
    names,
    told,
)
from benchmarks.speed.texts import Texts, texts
from srllm_guard import Guard
from srllm_guard.engines.checkpoint import read_config
from srllm_guard.errors import GuardError

NAMES = (
    "ceiling",
    "start",
    "detection",
    "sentence",
    "paragraph",
    "document",
    "batches",
    "callers",
    "memory",
    "middleware",
)
"""The rows, in the order of the run."""

MAIN = "torch fp32"
"""The system of `Guard()` on a CPU: texts are chosen by it, and middleware is timed on it."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything is timed."""

    tokens: tuple[int, ...] = (16, 64, 256, 1024)
    detections: int = 9
    sentences: int = 16
    rounds: int = 2
    paragraphs: int = 3
    words: tuple[int, ...] = (1_000, 3_000, 10_000)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    callers: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    calls: int = 64
    starts: int = 5
    answers: int = 5
    wrapped: int = 40
    rate: float = middleware.RATE
    read: int = ceiling.READ
    side: int = ceiling.SIDE


QUICK = Sizes(
    tokens=(16, 64),
    detections=2,
    sentences=2,
    rounds=1,
    paragraphs=1,
    words=(100, 200),
    batches=(1, 2),
    callers=(1, 2),
    calls=4,
    starts=1,
    answers=1,
    wrapped=2,
    rate=500.0,
    read=16 * 2**20,
    side=256,
)
"""A run that shows that everything runs; its figures say nothing."""

LONG = (30_000, 100_000)
"""Words of the documents that `--long` adds."""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument(
        "--rows", nargs="+", action="extend", choices=NAMES, help="(default: all of them)"
    )
    made.add_argument(
        "--systems", nargs="+", action="extend", help="names (default: all that run here)"
    )
    made.add_argument("--threads", type=int, help="of the CPU (default: physical cores)")
    made.add_argument("--quick", action="store_true", help="a smoke run; its figures say nothing")
    made.add_argument("--long", action="store_true", help="documents of 30,000 and 100,000 words")
    made.add_argument(
        "--texts",
        type=Path,
        action="append",
        default=[],
        help="JSON Lines with an unsafe `text` each, mixed with the authored; may be given again",
    )
    made.add_argument("--authored", type=Path, default=Path("train/data"), help="the CMD records")
    made.add_argument("--split", choices=("dev", "test"), default="dev", help="of these records")
    made.add_argument("--model", help="folder or Hub id of a bundle (default: the one shipped)")
    made.add_argument("--base", help="folder of the base weights (default: found)")
    made.add_argument("--seed", type=int, default=0, help="of the choice of texts")
    made.add_argument("--join", type=Path, help="result of a run whose rows are taken over")
    made.add_argument("--out", type=Path, default=report.RESULTS / "latency.json")
    return made


class Run:
    """One run: what is timed, and on what; both made when the first row needs them.

    Args:
        args: see `parser`.
        folder: where exports are put.

    Raises:
        GuardError: the bundle cannot be loaded.
        ValueError: an unknown system.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self._sizes = QUICK if args.quick else Sizes()
        self._cuda = torch.cuda.is_available()
        known = names(self._cuda)
        self._wanted = args.systems or known
        if unknown := sorted(set(self._wanted) - set(known)):
            raise ValueError(f"unknown system {unknown[0]!r}; here are {', '.join(known)}")
        # As many threads for everybody: those of torch, which are one a physical core.
        self._threads = args.threads or torch.get_num_threads()
        torch.set_num_threads(self._threads)
        self._workshop = Workshop(args.model, args.base, self._threads, folder)
        self._main = self._workshop.make(MAIN)
        self.skipped: dict[str, str] = {}
        """Why a system or a row is missing."""

    def content(self) -> dict[str, Any]:
        """The result of all rows."""
        args = self._args
        files = [*sorted(args.authored.glob("*.jsonl")), *args.texts]
        made: dict[str, Any] = {
            "header": report.header(args, "latency", self._guard.info(), files),
            "load_before": round(os.getloadavg()[0], 2),
            "quick": args.quick,
            "skipped": self.skipped,
            "seconds": {},
        }
        chosen = [name for name in NAMES if name in (args.rows or NAMES)]
        for name in (bar := tqdm(chosen, unit="row")):
            bar.set_postfix_str(name)
            start = time.perf_counter()
            try:
                made[name] = getattr(self, f"_{name}")()
            except Exception as error:  # noqa: BLE001 - one row must not cost those before it
                traceback.print_exc()
                self.skipped[f"row {name}"] = told(error)
            made["seconds"][name] = round(time.perf_counter() - start, 1)
        made["goals"] = goals.reached(made)
        return made

    @property
    def _guard(self) -> Guard:
        assert self._main.guard is not None  # noqa: S101 - it is one of ours
        return self._main.guard

    @cached_property
    def _systems(self) -> list[System]:
        def make(name: str) -> System:
            return self._main if name == MAIN else self._workshop.make(name)

        found, skipped = gather(tqdm(self._wanted, desc="load", leave=False), make)
        self.skipped.update(skipped)
        return found

    @cached_property
    def _texts(self) -> Texts:
        args = self._args
        return texts(self._guard, args.authored, args.texts, args.split, args.seed)

    def _ceiling(self) -> dict[str, Any]:
        config = read_config(self._workshop.base)
        sizes = {"read": self._sizes.read, "side": self._sizes.side}
        devices = ("cpu", "cuda") if self._cuda else ("cpu",)
        return {device: ceiling.measure(config, device, **sizes) for device in devices}

    def _start(self) -> dict[str, Any]:
        guards = {name: self._options(name) for name in LEAD if name in self._wanted}
        known = {name: options for name, options in guards.items() if options}
        return processes.start(known, self._sizes.starts)

    def _detection(self) -> dict[str, Any]:
        return rows.detection(
            self._systems, self._texts, self._sizes.tokens, self._sizes.detections
        )

    def _sentence(self) -> dict[str, Any]:
        cases = self._texts.unsafe[: self._sizes.sentences]
        return rows.sentence(self._systems, cases, self._sizes.rounds)

    def _paragraph(self) -> dict[str, Any]:
        cases = self._texts.paragraphs(self._sizes.paragraphs)
        return rows.paragraph(self._systems, cases, self._sizes.rounds)

    def _document(self) -> dict[str, Any]:
        words = self._sizes.words + (LONG if self._args.long else ())
        return rows.document(self._systems, self._texts, words, self._sizes.rounds)

    def _batches(self) -> dict[str, Any]:
        cases = self._texts.unsafe
        return rows.batches(self._systems, cases, self._sizes.batches, self._sizes.rounds)

    def _callers(self) -> dict[str, Any]:
        return rows.callers(self._systems, self._texts, self._sizes.callers, self._sizes.calls)

    def _memory(self) -> dict[str, Any]:
        """Peaks of processes that load a system and rewrite one sentence."""
        case, safe = self._texts.unsafe[0], self._texts.safe[0]
        codes = {
            name: options.code(safe, case.text)
            for name in self._wanted
            if (options := self._options(name))
        }
        ids, threads = case.request.prompt, self._threads
        if REFERENCE in self._wanted:
            base = self._workshop.base
            codes[REFERENCE] = processes.transformers_code(self._args.model, base, ids, threads)
        if LLAMA in self._wanted:
            with suppress(ImportError, OSError):  # told where the systems are gathered
                codes[LLAMA] = processes.llama_code(self._workshop.gguf(), ids, threads)
        return processes.peaks(codes)

    def _middleware(self) -> dict[str, Any]:
        items = middleware.answers(self._texts, self._guard, self._sizes.answers)
        found: dict[str, Any] = {
            "overhead": middleware.overhead(self._guard, items, self._sizes.wrapped)
        }
        if "stream" not in found["overhead"]["skipped"]:
            found["delays"] = middleware.delays(self._guard, items, rate=self._sizes.rate)
        return found

    def _options(self, name: str) -> GuardOptions | None:
        """How the guard of a system is made in another process; None if it is none on the CPU."""
        engine, _, precision = name.partition(" ")
        shared = {"device": "cpu", "threads": self._threads, "engine": engine}
        if engine == "onnx" and not name.endswith(CUDA):
            with suppress(GuardError, ImportError):  # told where the systems are gathered
                folder = self._workshop.exported(precision)
                return GuardOptions({"model": str(folder), **shared})
        if engine == "torch" and not name.endswith(CUDA):
            own = {"model": self._args.model, "base": self._args.base, "precision": precision}
            return GuardOptions({**own, **shared})
        return None


def joined(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the rows that an earlier run timed on the same bundle.

    Raises:
        ValueError: the earlier result is of another bundle.
    """
    other = json.loads(path.read_text("utf-8"))
    parts = {part: {**other[part], **content[part]} for part in ("skipped", "seconds")}
    header = report.joined(path, other["header"], content["header"])
    made = {**other, **content, **parts, "header": header}
    made["goals"] = goals.reached(made)
    return made


def write(args: argparse.Namespace, content: Mapping[str, Any]) -> str:
    """Write JSON, Markdown and PNG; returns the Markdown."""
    note = (
        f"The load of the machine was {content['load_before']} before the run. Milliseconds are "
        "medians; p95 is the 95th percentile over texts and rounds."
    )
    if content["quick"]:
        note += " This was a smoke run: its figures say nothing."
    markdown = report.write(args.out, content, tables.tables(content), note)
    picture.draw(args.out.with_suffix(".png"), content)
    return markdown


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark from the command line; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="srllm-guard-latency-") as folder:
            content = Run(args, Path(folder)).content()
        if args.join:
            content = joined(args.join, content)
        print(write(args, content))
    except (GuardError, OSError, ValueError) as error:
        print(f"benchmarks.latency: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
