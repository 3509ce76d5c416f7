"""The goals of the project, and what the result files say was reached.

What was measured on another bundle counts for no goal; neither does another split where the goal is
on the test records.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.metrics import share
from benchmarks.report import at, digests, measured, table

FILES = ("detection", "identity", "quality", "robustness", "stereoset", "prompting", "startup")
READING = "reading"
"""Rewrites that were read one by one: {"bundle_hash": hash, "read": N, "good": n, "errors": {kind:
count}}."""

SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
}
GAPS = {
    "templates/gap_between_terms": "neutral sentences, by term",
    "templates/gap_between_kinds": "neutral sentences, by kind of group",
    "counterfactual/gap": "counterfactual",
    "winogender/gap": "winogender",
}
"""Paths of the gaps on harmless texts, with their names."""


@dataclass(frozen=True, slots=True)
class Result:
    """A result file, or a part of it; without content if it is not there."""

    path: Path
    content: Any
    command: str = ""
    """The command that made it."""
    other: str = ""
    """Hash of the bundle that was measured, if it is not the one that is published."""
    older: bool = False
    """Whether the authored records have changed since."""

    def at(self, path: str) -> Any:
        """What stands at a path of keys; see `report.at`."""
        return at(self.content, path)

    def parts(self, path: str = "") -> list[tuple[str, Result]]:
        """What the mapping at a path holds, by name; nothing if there is none."""
        return [(key, replace(self, content=part)) for key, part in (self.at(path) or {}).items()]

    def split(self) -> str:
        """The split of the authored records that was measured; "" if it does not say."""
        return "".join(re.findall(r"--split (\w+)", self.command)[:1])

    def named(self, name: str) -> str:
        """The name of a set; that of the authored records with their split."""
        return re.sub(r"^authored\b(?! test)", f"authored {self.split()}".strip(), name)


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be."""

    result: str
    path: str
    """Of the figure; `*` stands for every key there."""
    sign: str
    bound: float | str
    """A number, or the path of the figure to compare with."""
    measure: str
    """What is measured, in words; `*` stands for the key."""
    test: bool = False
    """Whether only the test split of the authored records counts."""

    def reached(self, result: Result) -> Iterator[Reached]:
        """What became of it, for each key that `*` stands for."""
        before, star, _ = self.path.partition("/*")
        keys = [key for key, _ in result.parts(before)] if star else []
        counts = not result.other and (not self.test or result.split() == "test")
        own = result if counts else replace(result, content={})
        for key in keys or ["each"]:
            figure = own.at(self.path.replace("*", key))
            if isinstance(figure, int | float):
                figure = {"value": figure}
            bound = own.at(f"{self.bound}/value") if isinstance(self.bound, str) else self.bound
            met = None
            if figure is not None and bound is not None:
                met = "yes" if SIGNS[self.sign](figure["value"], bound) else "no"
            words = result.named(self.measure.replace("*", key))
            yield Reached(words, f"{self.sign} {told(bound)}", figure, met, result.command)


@dataclass(frozen=True, slots=True)
class Reached:
    """What became of a goal."""

    measure: str
    goal: str
    figure: Mapping[str, Any] | None
    met: str | None
    """yes or no; None where the figure, or what it is compared with, was not measured."""
    command: str


def _goals() -> Iterator[Goal]:
    systems = "sets/{}/systems/{}/{}".format
    for name in ("paradetox", "appdia", "authored"):
        path = systems(name, "guard", "unsafe/*/removed")
        yield Goal("quality", path, ">=", 0.92, f"{name}: unsafe share removed, by *")
    for system, least, words in (
        ("guard", 0.9, "guard"),
        ("adapter alone, gold marks", 0.9, "adapter with gold marks"),
        ("adapter alone", 0.75, "adapter with detected marks"),
    ):
        path = systems("authored", system, "changed_gone_kept")
        words = f"authored test: rewritten, every phrase gone, facts kept, by the {words}"
        yield Goal("quality", path, ">=", least, words, test=True)
    path = systems("sr_bias", "guard", "similarity")
    yield Goal("quality", path, ">=", 0.8, "sr_bias: similarity to the source")
    path = systems("paradetox", "guard", "chrf")
    for name in ("flagged spans deleted", "source, unchanged"):
        other = systems("paradetox", name, "chrf")
        yield Goal("quality", path, ">", other, f"paradetox: chrF, above that of: {name}")
    for name, key, least, words in (
        ("authored", "span_f1", 0.65, "span F1"),
        ("toxic_spans", "span_f1", 0.62, "span F1"),
        ("authored", "average_precision", 0.93, "AP"),
        ("edos", "auroc", 0.85, "AUROC"),
        ("implicit_hate", "auroc", 0.8, "AUROC"),
        ("toxigen_demonstrations", "auroc", 0.85, "AUROC, in place of toxigen"),
    ):
        yield Goal("detection", f"sets/{name}/texts/{key}", ">=", least, f"{name}: {words}")
    yield Goal("detection", "ordinary/*/flagged", "<=", 0.02, "*, safe texts: flagged")
    for path, name in GAPS.items():
        yield Goal("identity", f"{path}/points", "<=", 3, f"identity gap, points: {name}")
    yield Goal(READING, "share", ">=", 0.75, "rewrites read one by one: good")


GOALS = tuple(_goals())


def read(folder: Path, bundle: str, authored: Path) -> dict[str, Result]:
    """The results of a folder by their names.

    Args:
        folder: that of the results.
        bundle: the hash of the bundle to publish; what does not say its own is of another.
        authored: the folder of the CMD records as they are now.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is no JSON object, or more rewrites are good than were read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder of results")
    found = {}
    records = digests(sorted(authored.glob("*.jsonl")))
    for name in (*FILES, READING):
        path = folder / f"{name}.json"
        content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}; expected an object")
        if name == READING and content:
            good, bad = content["good"], content["read"] - content["good"]
            if bad < 0:
                raise ValueError(f"{path} has {good} good rewrites of {content['read']}")
            content["share"] = measured(share, [True] * good + [False] * bad)
        one = Result(path, content)
        command = one.at("header/command") or "read one by one"
        made_on = one.at("header/model/bundle_hash") or one.at("bundle_hash") or "not named"
        other = made_on if content and made_on != bundle else ""
        read_then = {
            path: digest
            for path, digest in (one.at("header/data") or {}).items()
            if path.startswith(f"{authored.name}/")
        }
        older = bool(read_then) and read_then != records
        found[name] = replace(one, command=command, other=other, older=older)
    return found


def told(value: Any) -> str:
    """A value to four decimals, with its interval if it has one; None is a dash."""
    if isinstance(value, Mapping):
        bounds = ", ".join(told(bound) for bound in value.get("interval") or ())
        return told(value["value"]) + (f" [{bounds}]" if bounds else "")
    if value is None:
        return "-"
    if isinstance(value, float):
        value = round(value, 4)
    return value if isinstance(value, str) else json.dumps(value)


def reached(results: Mapping[str, Result]) -> list[Reached]:
    """What became of all goals, in their order."""
    return [each for goal in GOALS for each in goal.reached(results[goal.result])]


def goals_table(found: Iterable[Reached]) -> str:
    """Goals beside what was reached."""
    rows = [[r.measure, r.goal, told(r.figure or "not measured"), told(r.met)] for r in found]
    return table(["measure", "goal", "reached", "met"], rows)
