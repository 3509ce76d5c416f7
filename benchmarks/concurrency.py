"""Does one guard answer many callers at once as it answers one, and does its memory stay flat?

    python -m benchmarks.concurrency --seconds 60

Each of a few authored texts is moderated alone first; that is the answer. Then async callers and
threads ask one guard for texts drawn at random, all at the same time, until the time is over. Every
answer is compared with the one that was given alone, in all but its times. Memory is the resident
size of the process, sampled twice a second; its slope leaves out the first quarter of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report, sets
from srllm_guard import Guard
from srllm_guard.errors import GuardError
from srllm_guard.results import Moderation

SAMPLE_S = 0.5
"""Seconds between two samples of memory."""

MB = 2**20


@dataclass
class Seen:
    """What one kind of callers saw."""

    ms: list[float] = field(default_factory=list)
    """How long each call took."""
    wrong: int = 0
    """Answers that were not the one given alone."""
    errors: Counter[str] = field(default_factory=Counter)
    """Calls that raised, by the type of what they raised."""

    def note(self, took_s: float, *, right: bool) -> None:
        """Add an answer."""
        self.ms.append(took_s * 1e3)
        self.wrong += not right

    def figures(self) -> dict[str, Any]:
        """Calls, how long they took, and what was wrong with them."""
        times = np.array(self.ms or [float("nan")])
        return {
            "calls": len(self.ms),
            "median_ms": round(float(np.median(times)), 2),
            "p95_ms": round(float(np.percentile(times, 95)), 2),
            "wrong": self.wrong,
            "errors": dict(self.errors),
        }


class Memory:
    """Samples the resident memory of this process in a thread."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        """Seconds since the start, and MB."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Memory:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            size = resident()
            if size is not None:
                self.samples.append((time.monotonic() - self._start, size / MB))
            if self._over.wait(SAMPLE_S):
                return

    def figures(self) -> dict[str, Any] | None:
        """First, last and largest size, and the slope; None where the system tells no sizes."""
        if not self.samples:
            return None
        times, sizes = np.array(self.samples).T
        late = times >= times[-1] / 4
        slope = np.polyfit(times[late], sizes[late], 1)[0] * 60 if late.sum() > 2 else None
        return {
            "first_mb": round(float(sizes[0]), 1),
            "last_mb": round(float(sizes[-1]), 1),
            "most_mb": round(float(sizes.max()), 1),
            "slope_mb_a_minute": None if slope is None else round(float(slope), 2),
            "samples": len(sizes),
        }


def resident() -> int | None:
    """Bytes of memory that this process has resident; None where /proc does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def texts(args: argparse.Namespace) -> tuple[list[str], tuple[Path, ...]]:
    """Unsafe authored texts and their safe variations, in turn; and their files."""
    found = sets.rewriting("authored", args.authored, args.authored, args.split)
    pairs = report.sample(found.pairs, (args.texts + 1) // 2, args.seed)
    mixed = [text for pair in pairs for text in (pair.text, pair.references[0])]
    return mixed[: args.texts], found.files


def run(
    guard: Guard,
    asked: Sequence[str],
    answers: Mapping[str, Moderation],
    *,
    seconds: float,
    callers: int,
    threads: int,
    seed: int = 0,
) -> tuple[dict[str, Seen], float]:
    """Let all of them ask at once.

    Returns:
        What the async callers and the threads saw, and the seconds that it took until the last
        answer.
    """
    seen = {"async": Seen(), "threads": Seen()}
    start = time.monotonic()
    until = start + seconds

    async def caller(number: int) -> None:
        draw = random.Random(f"{seed} async {number}")  # noqa: S311
        while time.monotonic() < until:
            text, began = draw.choice(asked), time.perf_counter()
            try:
                found = await guard.amoderate(text)
            except Exception as error:  # noqa: BLE001 - counted
                seen["async"].errors[type(error).__name__] += 1
                continue
            seen["async"].note(time.perf_counter() - began, right=found == answers[text])

    def thread(number: int) -> Seen:
        mine, draw = Seen(), random.Random(f"{seed} thread {number}")  # noqa: S311
        while time.monotonic() < until:
            text, began = draw.choice(asked), time.perf_counter()
            try:
                found = guard.moderate(text)
            except Exception as error:  # noqa: BLE001 - counted
                mine.errors[type(error).__name__] += 1
                continue
            mine.note(time.perf_counter() - began, right=found == answers[text])
        return mine

    async def all_callers() -> None:
        await asyncio.gather(*(caller(number) for number in range(callers)))

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        running = [pool.submit(thread, number) for number in range(threads)]
        asyncio.run(all_callers())
        for each in running:
            mine = each.result()
            seen["threads"].ms += mine.ms
            seen["threads"].wrong += mine.wrong
            seen["threads"].errors += mine.errors
    return seen, time.monotonic() - start


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run."""
    guard = Guard(report.runtime(args), policy=report.policy(args))
    asked, files = texts(args)
    answers = {text: guard.moderate(text) for text in asked}
    with Memory() as memory:
        seen, took = run(
            guard,
            asked,
            answers,
            seconds=args.seconds,
            callers=args.callers,
            threads=args.threads,
            seed=args.seed,
        )
    calls = sum(len(each.ms) for each in seen.values())
    return {
        "header": report.header(args, "concurrency", guard.info(), files),
        "seconds": round(took, 1),
        "texts": len(asked),
        "actions": dict(Counter(answer.action for answer in answers.values())),
        "calls_a_second": round(calls / took, 1),
        "wrong": sum(each.wrong for each in seen.values()),
        "errors": sum(each.errors.total() for each in seen.values()),
        "callers": {name: each.figures() for name, each in seen.items()},
        "memory": memory.figures(),
    }


def tables(content: Mapping[str, Any], args: argparse.Namespace) -> list[tuple[str, str]]:
    """The figures as they are shown."""
    numbers = {"async": args.callers, "threads": args.threads}
    keys = ("calls", "median_ms", "p95_ms", "wrong")
    rows = [
        [name, numbers[name], *(each[key] for key in keys), sum(each["errors"].values())]
        for name, each in content["callers"].items()
    ]
    columns = ["callers", "how many", "calls", "median, ms", "95%, ms", "wrong", "errors"]
    found = [
        (
            f"{content['calls_a_second']} calls a second, {content['texts']} texts",
            report.table(columns, rows),
        )
    ]
    if memory := content["memory"]:
        names = ["first, MB", "last, MB", "most, MB", "slope, MB a minute"]
        sizes = [memory[key] for key in ("first_mb", "last_mb", "most_mb", "slope_mb_a_minute")]
        found.append(("Memory", report.table(names, [sizes])))
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write JSON and Markdown; 1 if an answer was wrong or missing."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--callers", type=int, default=32, help="async callers")
    parser.add_argument("--threads", type=int, default=16, help="threads that ask as well")
    parser.add_argument("--texts", type=int, default=24, help="texts that are asked for")
    parser.add_argument("--authored", type=Path, default=Path("train/data"), help="their folder")
    parser.add_argument("--split", choices=("dev", "test"), default="dev", help="of the records")
    parser.add_argument("--model", help="folder or Hub id of a bundle (default: the one shipped)")
    parser.add_argument("--base", help="folder of the base weights (default: found)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--engine", help="name of an engine (default: chosen)")
    parser.add_argument("--policy", type=Path, help="TOML file of a policy (default: the default)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts and who asks for which")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "concurrency.json")
    args = parser.parse_args(words)
    try:
        content = measure(args)
    except (GuardError, OSError) as error:
        print(f"benchmarks.concurrency: {error}", file=sys.stderr)
        return 1
    print(report.write(args.out, content, tables(content, args), note=""))
    return 1 if content["wrong"] or content["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
