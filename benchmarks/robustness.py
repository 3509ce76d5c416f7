"""How much worse detection ranks texts whose words are disguised, though a person still reads them.

    python -m benchmarks.robustness --data DATA --limit 150

Every perturbation changes one in three of the words of four letters or more. Numbers, addresses,
code, mentions and whatever else a rewrite must keep (`srllm_guard.text.protect`) stay as they are.
The tables of letters are not those that the guard folds by (`srllm_guard.text.confusables`).
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from benchmarks import metrics, report, sets
from benchmarks.report import measured
from benchmarks.sets import Case
from srllm_guard import Guard
from srllm_guard.errors import GuardError
from srllm_guard.runtime import Runtime
from srllm_guard.text.protect import protected

Perturbation = Callable[[str, random.Random], str]
"""Changes some words of a text."""

SETS = ("authored", "paradetox")
"""Sets that are measured from the command line."""

EVERY = 3
"""One word in so many is changed."""

_WORD = re.compile(r"(?<![\w@$#&])[^\W\d_]{4,}+(?![\w@$])")


def _shapes(listed: str) -> dict[str, str]:
    """Read "a4@ e3" as {"a": "4@", "e": "3"}."""
    return {group[0]: group[1:] for group in listed.split()}


LEET = _shapes("a4@ e3 i1 o0 s5$ t7 A4@ E3 I1 O0 S5$ T7")
"""Digits and signs for letters, after the shapes that they share."""

HOMOGLYPHS = _shapes(
    "aаα cс dԁ eе hһ iі jј kκ mм nո oоο pрρ sѕ uυ vν wԝ xхχ yу AАΑ BВΒ CС EЕΕ HНΗ IІΙ KКΚ MМΜ NΝ "
    "OОΟ PРΡ SЅ TТΤ XХΧ YΥҮ ZΖ"
)
"""Cyrillic, Greek and Armenian letters that look like a Latin one (UTS #39, confusables.txt)."""

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
"""Zero-width space, non-joiner, joiner, word joiner, byte order mark, soft hyphen."""


def leetspeak(text: str, draw: random.Random) -> str:
    """Digits and signs for letters: stupid, 5tup1d."""
    return _changed(text, draw, lambda word: _swapped(word, LEET, draw))


def homoglyphs(text: str, draw: random.Random) -> str:
    """Letters of other scripts that look the same."""
    return _changed(text, draw, lambda word: _swapped(word, HOMOGLYPHS, draw))


def zero_width(text: str, draw: random.Random) -> str:
    """One to three characters without width inside of a word."""

    def change(word: str) -> str:
        places = range(1, len(word))
        for place in sorted(draw.sample(places, draw.randint(1, 3)), reverse=True):
            word = word[:place] + draw.choice(INVISIBLE) + word[place:]
        return word

    return _changed(text, draw, change)


def spacing(text: str, draw: random.Random) -> str:
    """Letters with blanks between: stupid, s t u p i d."""
    return _changed(text, draw, " ".join)


def typos(text: str, draw: random.Random) -> str:
    """Two letters swapped, one dropped, or one doubled; the first and the last letter stay."""

    def change(word: str) -> str:
        at = draw.randrange(1, len(word) - 2)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        dropped = word[:at] + word[at + 1 :]
        doubled = word[:at] + word[at] + word[at:]
        return draw.choice([made for made in (swapped, dropped, doubled) if made != word])

    return _changed(text, draw, change)


PERTURBATIONS: dict[str, Perturbation] = {
    "leetspeak": leetspeak,
    "homoglyphs": homoglyphs,
    "zero-width": zero_width,
    "spacing": spacing,
    "typos": typos,
}
"""By the name that results have."""


def perturbed(name: str, text: str, seed: int) -> str:
    """A text under one of `PERTURBATIONS`; the same text and seed always give the same."""
    return PERTURBATIONS[name](text, random.Random(f"{seed} {name} {text}"))  # noqa: S311


def drops(
    score: Callable[[Sequence[str], str], Sequence[float]], cases: Sequence[Case], seed: int
) -> dict[str, Any]:
    """Average precision of clean texts and of the same ones under every perturbation.

    Args:
        score: gives for texts `[N]`, and a name for the progress bar, how unsafe each is.
        cases: the texts; what stands before a case as its context is left out.
        seed: of the perturbations and of the bootstrap.

    Returns:
        `clean`, and for each perturbation the share of texts that it changed, the average precision
        and by how much that fell. The interval of the fall is paired: each resample draws the same
        texts clean and changed. None where one class is absent.
    """
    texts = [case.text[case.start :] for case in cases]
    truth = [case.unsafe for case in cases]
    clean = score(texts, "clean")
    found: dict[str, Any] = {}
    for name in PERTURBATIONS:
        made = [perturbed(name, text, seed) for text in texts]
        scores = score(made, name)
        found[name] = {
            "changed": metrics.share([a != b for a, b in zip(texts, made, strict=True)]),
            "average_precision": measured(metrics.average_precision, truth, scores, seed=seed),
            "drop": measured(_drop, truth, clean, scores, seed=seed),
        }
    return {
        "count": len(cases),
        "unsafe": sum(truth),
        "clean": measured(metrics.average_precision, truth, clean, seed=seed),
        "perturbations": found,
    }


def tables(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `drops` found, by set, as Markdown tables with their titles."""
    rows: list[list[Any]] = []
    for name, one in found.items():
        rows.append([name, "none", one["count"], one["unsafe"], None, one["clean"], None])
        rows += [
            [name, kind, one["count"], one["unsafe"], *row.values()]
            for kind, row in one["perturbations"].items()
        ]
    head = ["set", "perturbation", "texts", "unsafe", "share changed", "AP", "drop of AP"]
    return [("Disguised words", report.table(head, rows))]


def run(args: argparse.Namespace, runtime: Runtime) -> dict[str, Any]:
    """Measure the detector on `SETS`; a set that is not in the data folder is left out.

    Raises:
        GuardError: the policy makes no sense, or the engine failed.
    """
    from benchmarks.detection import Judge, judged  # which may use this module

    policy = report.policy(args)
    judge = Judge(runtime, policy, args.batch)

    def score(texts: Sequence[str], name: str) -> list[float]:
        drafts = judge.drafts(texts, name)
        return [judged(Case(t, False), d).score for t, d in zip(texts, drafts, strict=True)]

    known = (one for one in sets.detection(args.data, args.authored, args.split))
    chosen = list(islice((one for one in known if one.name in SETS), len(SETS)))
    files = [path for one in chosen for path in one.files]
    info = Guard(runtime, policy=policy).info()
    return {
        "header": report.header(args, "robustness", info, files),
        "sets": {
            one.name: drops(score, report.sample(one.cases, args.limit, args.seed), args.seed)
            for one in chosen
        },
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark from the command line; returns the exit status."""
    args = report.arguments(__doc__, "robustness").parse_args(argv)
    try:
        content = run(args, report.runtime(args))
    except (GuardError, OSError) as error:
        print(f"benchmarks.robustness: {error}", file=sys.stderr)
        return 1
    print(report.write(args.out, content, tables(content["sets"])))
    return 0


def _changed(text: str, draw: random.Random, change: Callable[[str], str]) -> str:
    """The text with every third word changed, from a drawn one on; no two stand side by side."""
    kept = protected(text)
    spans = [
        match.span()
        for match in _WORD.finditer(text)
        if not any(part.start < match.end() and match.start() < part.end for part in kept)
    ]
    first = draw.randrange(min(EVERY, len(spans))) if spans else 0
    parts, last = [], 0
    for start, end in spans[first::EVERY]:
        parts += [text[last:start], change(text[start:end])]
        last = end
    return "".join(parts) + text[last:]


def _swapped(word: str, shapes: Mapping[str, str], draw: random.Random) -> str:
    """A word with half of the letters that have another shape in it, and at least one of them."""
    places = [n for n, letter in enumerate(word) if letter in shapes]
    letters = list(word)
    for place in draw.sample(places, (len(places) + 1) // 2):
        letters[place] = draw.choice(shapes[word[place]])
    return "".join(letters)


def _drop(truth: Any, clean: Any, scores: Any) -> float | None:
    before = metrics.average_precision(truth, clean)
    after = metrics.average_precision(truth, scores)
    return None if before is None or after is None else before - after


if __name__ == "__main__":
    sys.exit(main())
