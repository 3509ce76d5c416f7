"""The rows of the table: each times the systems on one kind of work."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.speed.stopwatch import Runs, interleaved, summary, timed
from benchmarks.speed.systems import CUDA, REFERENCE, System
from benchmarks.speed.texts import Case, Texts
from srllm_guard import Guard
from srllm_guard.engines.base import Continuation
from srllm_guard.results import Moderation

WARM = 2
"""Items that every system runs before it is timed."""

UNSAFE = 0.01
"""Share of the sentences of a document that are unsafe."""

ONCE = 30_000
"""Documents from so many words on are run once."""

MIXED = 4
"""Of so many texts that concurrent callers send, one is unsafe."""

Judged = tuple[Any, float]
"""What a guard gave, and the milliseconds of it in the model."""


def detection(
    systems: Sequence[System], texts: Texts, sizes: Sequence[int], rounds: int
) -> dict[str, Any]:
    """`Guard.detect` of safe text, and a full forward pass of the same tokens by others."""
    jobs: dict[str, Callable[[str], Any]] = {}
    for system in systems:
        if system.forward is not None:
            jobs[system.name] = _forward(system, texts)
        elif system.guard is not None:
            jobs[system.name] = _watched(system, system.guard.detect)
    found: dict[str, Any] = {}
    for size in sizes:
        items = [texts.ordinary(size, number) for number in range(rounds)]
        runs = interleaved(jobs, items, rounds=1, warm=[texts.ordinary(size, rounds)])
        guards = [system.name for system in systems if system.guard is not None]
        found[str(size)] = {
            name: {**run.figures(), **(_model_share(run) if name in guards else {})}
            for name, run in runs.items()
        }
    return found


def sentence(systems: Sequence[System], cases: Sequence[Case], rounds: int) -> dict[str, Any]:
    """One unsafe sentence: the decoding alone by every system, and `Guard.rewrite` by ours.

    Returns:
        `decode`: by system times, tokens, passes, and the share of outputs equal to those of
        `transformers`; `guard`: by system times, those of them in the model, and actions.
    """
    jobs: dict[str, Callable[[Case], Any]] = {
        system.name: _decode_one(system) for system in systems
    }
    jobs |= {
        f"{system.name}, guard": _watched(system, system.guard.moderate, lambda case: case.text)
        for system in systems
        if system.guard is not None
    }
    _prepare(systems, cases)
    # Where graphs are captured, every length may be a shape of its own.
    on_cuda = any(system.name.endswith(CUDA) for system in systems)
    runs = interleaved(jobs, cases, rounds=rounds, warm=cases if on_cuda else cases[:WARM])
    truth = runs[REFERENCE].results if REFERENCE in runs else None
    decoded, guarded = {}, {}
    for system in systems:
        run = runs[system.name]
        compared = truth if system.prepare is None else None
        decoded[system.name] = {**run.figures(), **_decoding(run, compared)}
        if system.guard is not None:
            run = runs[f"{system.name}, guard"]
            guarded[system.name] = {**run.figures(), **_model_share(run), **_actions(run)}
    return {"decode": decoded, "guard": guarded}


def paragraph(systems: Sequence[System], cases: Sequence[Case], rounds: int) -> dict[str, Any]:
    """Eight sentences with one unsafe: `Guard.rewrite`, and the whole rewritten by others."""
    jobs: dict[str, Callable[[Case], Any]] = {}
    for system in systems:
        if system.guard is None:
            jobs[system.name] = _decode_one(system)
        else:
            jobs[system.name] = _watched(system, system.guard.moderate, lambda case: case.text)
    _prepare(systems, cases)
    runs = interleaved(jobs, cases, rounds=rounds, warm=cases[:1])
    whole, guarded = {}, {}
    for system in systems:
        run = runs[system.name]
        if system.guard is None:
            whole[system.name] = {**run.figures(), **_decoding(run, None)}
        else:
            guarded[system.name] = {**run.figures(), **_model_share(run), **_actions(run)}
    return {"whole": whole, "guard": guarded}


def document(
    systems: Sequence[System], texts: Texts, lengths: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Long texts, 1% of whose sentences are unsafe: `Guard.rewrite`, and `Guard.detect` alone."""
    found: dict[str, Any] = {}
    for words in lengths:
        text = texts.document(words, UNSAFE)
        warm = texts.document(200, 1 / 8)
        jobs: dict[str, Callable[[str], Any]] = {}
        for system in systems:
            if system.guard is not None and system.lead:
                jobs[f"{system.name}, detect"] = system.guard.detect
                jobs[system.name] = _watched(system, system.guard.moderate)
        times = 1 if words >= ONCE else rounds
        runs = interleaved(jobs, [text], rounds=times, warm=[warm])
        for system in systems:
            if system.name not in jobs:
                continue
            run, alone = runs[system.name], runs[f"{system.name}, detect"].figures()
            result: Moderation = run.results[0][0]
            found.setdefault(system.name, {})[str(words)] = {
                **run.figures(),
                "detect_ms": alone["median_ms"],
                "over_detection": round(run.figures()["median_ms"] / alone["median_ms"], 3),
                "ms_per_1000_words": round(run.figures()["median_ms"] * 1e3 / words, 2),
                "edits": len(result.edits),
                "action": result.action,
            }
    return found


def batches(
    systems: Sequence[System], cases: Sequence[Case], sizes: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Decoding of several sentences in one call; sizes for which there are too few are left out."""
    chosen = [system for system in systems if system.batches and system.lead]
    chosen = [s for s in chosen if s.guard is not None or s.name.startswith(REFERENCE)]
    jobs: dict[str, Callable[[Sequence[Case]], Any]] = {
        system.name: _decode_all(system) for system in chosen
    }
    found: dict[str, Any] = {}
    for size in (size for size in sizes if size <= len(cases)):
        batch = cases[:size]
        # Every size is a shape of its own where graphs are captured, so each is warmed.
        runs = interleaved(jobs, [batch], rounds=rounds, warm=[batch])
        for name, run in runs.items():
            tokens = sum(len(one.ids) for one in run.results[0])
            median = run.figures()["median_ms"]
            found.setdefault(name, {})[str(size)] = {
                **run.figures(),
                "tokens": tokens,
                "tokens_per_s": round(tokens / median * 1e3, 1),
                "sentences_per_s": round(size / median * 1e3, 2),
            }
    return found


def callers(
    systems: Sequence[System], texts: Texts, levels: Sequence[int], calls: int
) -> dict[str, Any]:
    """`Guard.rewrite` by several threads at once; one text in four is unsafe.

    Returns:
        By system and number of threads: calls a second, and the time of a call as its caller sees
        it.
    """
    found: dict[str, Any] = {}
    sent = [
        texts.unsafe[n % len(texts.unsafe)].text
        if n % MIXED == 1
        else texts.safe[n % len(texts.safe)]
        for n in range(calls)
    ]
    for system in systems:
        if system.guard is None or not system.lead:
            continue
        for text in sent[: WARM + MIXED]:
            system.guard.rewrite(text)
        for level in levels:
            taken, seconds = _crowd(system.guard, sent, level)
            found.setdefault(system.name, {})[str(level)] = {
                **summary(taken),
                "calls_per_s": round(calls / seconds, 2),
            }
    return found


def _crowd(guard: Guard, texts: Sequence[str], threads: int) -> tuple[list[float], float]:
    """Milliseconds of each call, and seconds of all, by threads that start together."""
    ready = threading.Barrier(threads + 1)
    waiting = iter(texts)
    taking = threading.Lock()

    def caller() -> list[float]:
        taken: list[float] = []
        ready.wait()
        while True:
            with taking:
                text = next(waiting, None)
            if text is None:
                return taken
            taken.append(timed(lambda text=text: guard.rewrite(text))[0])  # type: ignore[misc]

    with ThreadPoolExecutor(threads) as pool:
        found = [pool.submit(caller) for _ in range(threads)]
        ready.wait()
        start = time.perf_counter()
        taken = [ms for each in found for ms in each.result()]
        return taken, time.perf_counter() - start


def _prepare(systems: Sequence[System], cases: Sequence[Case]) -> None:
    for system in systems:
        if system.prepare is not None:
            system.prepare([case.request for case in cases])


def _forward(system: System, texts: Texts) -> Callable[[str], object]:
    forward = system.forward
    assert forward is not None  # noqa: S101 - its caller has looked
    return lambda text: forward(tuple(texts.prompt.encode(text)))


def _decode_one(system: System) -> Callable[[Case], Continuation]:
    decode = _decode_all(system)
    return lambda case: decode([case])[0]


def _decode_all(system: System) -> Callable[[Sequence[Case]], list[Continuation]]:
    def decode(cases: Sequence[Case]) -> list[Continuation]:
        system.forget()
        return system.decode([case.request for case in cases])

    return decode


def _watched(
    system: System, verb: Callable[[str], Any], text: Callable[[Any], str] = str
) -> Callable[[Any], Judged]:
    """The verb, with the time in the model beside what it gives."""
    watch = system.watch
    assert watch is not None  # noqa: S101 - every guard has one

    def run(item: Any) -> Judged:
        system.forget()
        watch.spent()
        return verb(text(item)), watch.spent()

    return run


def _model_share(run: Runs[Judged]) -> dict[str, Any]:
    """What of the median is spent in the model, by its share of the first round's runs."""
    shares = [model / ms for (_, model), ms in zip(run.results, run.ms, strict=False)]
    return {"model_ms": round(float(np.median(shares)) * run.figures()["median_ms"], 3)}


def _actions(run: Runs[Judged]) -> dict[str, Any]:
    """What came of the texts, and the median of those that were rewritten and not masked."""
    actions = [result.action for result, _ in run.results]
    # Every round has the items in the same order.
    rewritten = [ms for n, ms in enumerate(run.ms) if actions[n % len(actions)] == "rewrite"]
    return {
        "actions": dict(Counter(actions)),
        "rewritten_ms": summary(rewritten)["median_ms"],
    }


def _decoding(run: Runs[Continuation], truth: Sequence[Continuation] | None) -> dict[str, Any]:
    """Tokens, passes, and how they compare."""
    tokens = sum(len(one.ids) + one.finished for one in run.results)
    passes = sum(one.steps for one in run.results)
    guessed = sum(one.guessed for one in run.results)
    same = None
    if truth is not None:
        same = sum(a == b for a, b in zip(run.results, truth, strict=True)) / len(truth)
    # Rounds repeat the items, so the passes of one round are those of each.
    per_round = sum(run.ms) * len(run.results) / len(run.ms)
    return {
        "tokens": tokens,
        "steps": passes or None,
        "tokens_per_step": round(tokens / passes, 3) if passes else None,
        "acceptance": round(sum(o.accepted for o in run.results) / guessed, 3) if guessed else None,
        "ms_per_token": round(per_round / tokens, 3) if tokens else None,
        "ms_per_step": round(per_round / passes, 3) if passes else None,
        "same_output": None if same is None else round(same, 3),
    }


def figure(rows: Mapping[str, Any], *path: str) -> float | None:
    """A number at a path of keys; None if it was not measured."""
    found: Any = rows
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return None if found is None else float(found)
