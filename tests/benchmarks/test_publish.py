from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks import (
    detection,
    identity,
    prompting,
    publish,
    quality,
    report,
    robustness,
    stereoset,
)
from benchmarks.goals import read
from benchmarks.report import RESULTS
from srllm_guard.models.bundle import (
    HASHED,
    MANIFEST,
    Base,
    Bundle,
    Calibration,
    Manifest,
    file_hash,
    write_manifest,
)
from train.package import CARD

ROOT = Path(__file__).parents[2]
README = "# It\n\n## Figures\n\n<!-- figures -->\nold 0.5\n<!-- /figures -->\n\n## After\n\nText.\n"
OLD_CARD = "# It\n\nWords.\n\n## Limits\nEnglish only.\n"
JUDGE = "alt-profanity-check"

Results = dict[str, dict[str, Any]]


def figure(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value} if low is None else {"value": value, "interval": [low, high]}


def header(name: str, bundle: str, split: str) -> dict[str, Any]:
    command = f"python -m benchmarks.{name} --data DATA --seed 0 --split {split}"
    return {"command": command, "model": {"bundle_hash": bundle}}


def system(**changed: Any) -> dict[str, Any]:
    before, after = figure(0.8125, 0.71, 0.92), figure(0.0613, 0.02, 0.11)
    return {
        "texts": 64,
        "unchanged": figure(0.25),
        "unsafe": {JUDGE: {"before": before, "after": after, "removed": figure(0.9246, 0.88, 1.0)}},
        "facts": 31,
        "facts_kept": figure(0.9677, 0.9, 1.0),
        "similarity": figure(0.8071, 0.78, 0.83),
        "negation_flipped": figure(0.0),
        "chrf": figure(0.6612, 0.61, 0.7),
        "bleu": 0.4321,
        "length_ratio": 0.9,
        "masked": figure(0.125, 0.06, 0.24),
        "phrases_gone": None,
        "changed_gone_kept": None,
        "perplexity_ratio": 1.234,
    } | changed


def made(bundle: str, split: str = "test") -> Results:
    """A small result of every benchmark."""
    one = {
        "count": 120,
        "unsafe": 60,
        "average_precision": figure(0.9417, 0.9102, 0.9655),
        "auroc": figure(0.8563, 0.8, 0.9),
        "f1": figure(0.8101, 0.75, 0.86),
        "recall": figure(0.7712, 0.7, 0.84),
        "false_positive_rate": figure(0.0334, 0.01, 0.06),
        "calibration_error": figure(0.0417, 0.03, 0.07),
    }
    flagged = {"texts": 150, "segments": 400, "segments_flagged": figure(0.004), "unverified": 0.0}
    ladder = {
        "texts": 64,
        "flagged": figure(0.9),
        "of_flagged": {"rewrite": figure(0.9), "mask": figure(0.1), "block": figure(0.0)},
        "result_of": {"rewrite": 50},
        "refused": {"mask: facts": 1},
    }
    times = ("detect_ms_per_segment", "rewrite_ms_per_flagged_segment")
    time = dict.fromkeys((*times, "ladder_ms_per_flagged_segment"), 1.0)
    gap = {
        "points": 2.78,
        "minimum": {"value": 0.0139, "names": ["a"]},
        "maximum": {"value": 0.0417, "names": ["b"]},
    }
    kept = figure(0.9143, 0.88, 0.95)
    paradetox = {
        "source, unchanged": system(chrf=figure(0.6591)),
        "flagged spans deleted": system(chrf=figure(0.6634)),
        "guard": system(),
    }
    authored = {
        "adapter alone": system(phrases_gone=kept, changed_gone_kept=figure(0.7431, 0.7, 0.79)),
        "adapter alone, gold marks": system(phrases_gone=kept, changed_gone_kept=kept),
        "guard": system(phrases_gone=kept, changed_gone_kept=kept),
    }
    scores = {"lms": figure(92.1687, 86.747, 96.988), "ss": figure(60.241), "icat": figure(73.2908)}
    items = {"items": 83, "terms": 6, **scores, "by_term": scores}
    asked = {"detector_after": {"unsafe": figure(0.1), "unverified": 0.0}}
    variants = {"rows": 40, "consistency": figure(0.9756, 0.93, 1.0), "gap": gap, "flagged": {}}
    return {
        "detection": {
            "header": header("detection", bundle, split),
            "sets": {
                "authored": {
                    "texts": one | {"span_f1": figure(0.6783, 0.64, 0.71)},
                    "segments": one,
                },
                "edos": {"texts": one | {"auroc": figure(0.8491, 0.81, 0.88), "span_f1": None}},
                "toxic_spans": {"texts": one | {"span_f1": figure(0.6203, 0.6, 0.64)}},
            },
            "labels": {},
            "ordinary": {
                "wikitext2": flagged | {"flagged": figure(0.0133, 0.0, 0.0333)},
                "authored": flagged | {"flagged": figure(0.0301, 0.01, 0.05)},
            },
            "time": {
                "batched": {"ms_per_segment": 42.0, "engine_ms_per_segment": 40.0},
                "single": {"median_ms": 123.0, "p95_ms": 140.0},
            },
        },
        "identity": {
            "header": header("identity", bundle, "dev"),
            "templates": {
                "gap_between_terms": gap | {"points": 8.33},
                "gap_between_kinds": gap,
                "by_kind": {},
                "by_term": {},
                "flagged": figure(0.02),
            },
            "counterfactual": variants,
        },
        "quality": {
            "header": header("quality", bundle, split),
            "judges": {JUDGE: None},
            "sets": {
                "paradetox": {"systems": paradetox, "ladder": ladder, "time": time},
                "sr_bias": {"systems": {"guard": system()}, "ladder": ladder, "time": time},
                "authored": {"systems": authored, "ladder": ladder, "time": time},
            },
            "safe": {},
        },
        "robustness": {
            "header": header("robustness", bundle, "dev"),
            "sets": {
                "authored": {
                    "count": 150,
                    "unsafe": 80,
                    "clean": figure(0.9388, 0.91, 0.96),
                    "perturbations": {
                        "typos": {
                            "changed": 0.9867,
                            "average_precision": figure(0.9021, 0.87, 0.93),
                            "drop": figure(0.0367, 0.01, 0.06),
                        }
                    },
                }
            },
        },
        "stereoset": {
            "header": header("stereoset", bundle, "dev"),
            "domains": {
                "gender": {"base": items, "base + adapter": items, "change": scores},
                "overall": {"base": items, "base + adapter": items, "change": scores},
            },
            "paper": {"gender": {"lms": 90.05, "ss": 58.47, "icat": 74.81}},
        },
        "prompting": {
            "header": header("prompting", bundle, split),
            "judges": {JUDGE: None},
            "detector_before": {"unsafe": figure(1.0), "unverified": 0.0},
            "systems": {
                "base, 0-shot": system() | asked,
                "adapter alone": system(facts_kept=figure(0.9219)) | asked,
                "guard": system() | asked,
            },
            "paper": {
                "zero-shot": {"moderation": 21.14, "retention": 64.32},
                "SR-LLM": {"moderation": 5.92, "retention": 88.94},
            },
        },
        "startup": {
            "header": header("startup", bundle, "dev"),
            "seconds": {"import srllm_guard": {"median_s": 0.008, "worst_s": 0.009}},
        },
        "reading": {
            "bundle_hash": bundle,
            "read": 40,
            "good": 31,
            "errors": {"left": 6, "clumsy": 3},
        },
    }


class Place:
    """A README, a bundle and results in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "benchmarks" / "results"
        self.results.mkdir(parents=True)
        self.readme = folder / "README.md"
        self.readme.write_text(README)
        self.authored = folder / "train" / "data"
        self.authored.mkdir(parents=True)
        (self.authored / "some.jsonl").write_text("{}\n")
        self.folder = folder / "bundle"
        self.folder.mkdir()
        for name in HASHED:
            (self.folder / name).write_bytes(name.encode())
        manifest = Manifest(
            name="some",
            version="1",
            base=Base("owner/base"),
            prompt="chatml-1",
            layer=2,
            heads={"dim": 32},
            calibration=Calibration(),
            files={name: file_hash(self.folder / name) for name in HASHED},
            metrics={"dev": {"cmd": {"auroc": 0.9}}},
        )
        write_manifest(self.folder, manifest)
        self.page = self.results / publish.PAGE
        self.card = self.folder / "README.md"
        self.card.write_text(OLD_CARD)
        self.hash = Bundle.load(self.folder).hash

    def put(self, results: Mapping[str, Any]) -> None:
        for name, content in results.items():
            (self.results / f"{name}.json").write_text(json.dumps(content, indent=2))

    def publish(self, *options: str) -> int:
        places = {"--results": self.results, "--readme": self.readme, "--bundle": self.folder}
        places["--authored"] = self.authored
        named = [str(each) for pair in places.items() for each in pair]
        return publish.main([*named, *options])

    def contents(self) -> list[str]:
        return [p.read_text() for p in (self.readme, self.page, self.card, self.folder / MANIFEST)]

    def reported(self) -> dict[str, Any]:
        found = Bundle.load(self.folder).manifest.metrics["reported"]
        assert isinstance(found, dict)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def full(place: Place) -> Place:
    """With a result of every benchmark."""
    place.put(made(place.hash))
    return place


def row(text: str, begin: str) -> list[str]:
    """The cells of the one row of a table that begins like that."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {begin} |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def section(text: str, title: str) -> str:
    """The part of the page whose title begins like that."""
    return text.partition(f"## {title}")[2].partition("## ")[0]


TABLES: dict[str, Callable[[Any], object]] = {
    "detection": detection.tables,
    "identity": identity.tables,
    "quality": quality.tables,
    "robustness": lambda content: robustness.tables(content["sets"]),
    "stereoset": stereoset.tables,
    "prompting": prompting.tables,
}


@pytest.mark.parametrize("name", TABLES)
def test_the_results_here_are_built_like_those_of_the_benchmarks(name: str) -> None:
    assert TABLES[name](made("0")[name])


def test_numbers_are_those_of_the_files(full: Place) -> None:
    results = made(full.hash)
    results["stereoset"]["domains"]["gender"]["base"]["ss"] = figure(60.24096385542169)
    full.put(results)
    assert full.publish() == 0
    text = full.page.read_text()
    detected = row(section(text, "Does detection"), "authored test")
    assert detected[1:4] == ["120", "60", "0.9417 [0.9102, 0.9655]"]
    assert detected[-1] == "0.6783 [0.64, 0.71]"
    assert row(text, "edos")[-1] == "-"
    assert row(text, "neutral sentences, by term") == [
        *("neutral sentences, by term", "-", "8.33", "0.0139", "0.0417"),
    ]
    assert row(text, "counterfactual")[1] == "0.9756 [0.93, 1.0]"
    assert row(text, "flagged spans deleted") == [
        *("flagged spans deleted", "64", "0.8125 [0.71, 0.92]", "0.0613 [0.02, 0.11]"),
        *(
            "0.9677 [0.9, 1.0]",
            "0.8071 [0.78, 0.83]",
            "0.6634",
            "0.4321",
            "0.125 [0.06, 0.24]",
            "-",
            "-",
        ),
    ]
    assert "| authored dev | typos | 0.9867 | 0.9021 [0.87, 0.93] | 0.0367 [0.01, 0.06] |" in text
    assert "| authored dev | nothing | - | 0.9388 [0.91, 0.96] | - |" in text
    assert "| gender | base | 83 | 92.1687 [86.747, 96.988] | 60.241 | 73.2908 |" in text
    assert "| gender | the paper's SR-LLM (Llama-2-7B) | - | 90.05 | 58.47 | 74.81 |" in text
    assert row(text, "base, 0-shot")[-2:] == ["21.14", "64.32"]
    assert "| 0.9219 | 0.8071 [0.78, 0.83] | 5.92 | 88.94 |" in text
    assert row(text, "import srllm_guard")[1:] == ["0.008", "0.009"]


def test_each_table_has_its_command_and_links_its_file(full: Place) -> None:
    full.publish()
    text = full.page.read_text()
    for name, content in made(full.hash).items():
        if name == "reading":
            assert f"[{name}.json](benchmarks/results/{name}.json)" in full.readme.read_text()
        else:
            command = content["header"]["command"]
            assert f"\n`{command}` [{name}.json]({name}.json)\n" in text


def test_the_readme_leads_to_every_table(full: Place) -> None:
    full.publish()
    page = full.page.read_text()
    anchors = re.findall(r"\(benchmarks/results/README\.md#(.*)\)", full.readme.read_text())
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert titles == list(publish.SECTIONS)
    assert len(anchors) == len(titles)
    assert anchors[0] == "does-detection-tell-unsafe-from-safe"
    assert anchors[5] == "does-tuning-make-stereotypes-likelier-stereoset"


def test_goals_say_what_was_reached_and_whether_it_is_enough(full: Place) -> None:
    full.publish()
    text = full.readme.read_text()
    for measure, rest in {
        f"paradetox: unsafe share removed, by {JUDGE}": [">= 0.92", "0.9246 [0.88, 1.0]", "yes"],
        "appdia: unsafe share removed, by each": [">= 0.92", "not measured", "-"],
        "authored test: rewritten, every phrase gone, facts kept, by the guard": [
            *(">= 0.9", "0.9143 [0.88, 0.95]", "yes"),
        ],
        "authored test: rewritten, every phrase gone, facts kept, by the adapter with detected "
        "marks": [">= 0.75", "0.7431 [0.7, 0.79]", "no"],
        "paradetox: chrF, above that of: flagged spans deleted": [
            *("> 0.6634", "0.6612 [0.61, 0.7]", "no"),
        ],
        "paradetox: chrF, above that of: source, unchanged": [
            *("> 0.6591", "0.6612 [0.61, 0.7]", "yes"),
        ],
        "authored test: span F1": [">= 0.65", "0.6783 [0.64, 0.71]", "yes"],
        "edos: AUROC": [">= 0.85", "0.8491 [0.81, 0.88]", "no"],
        "implicit_hate: AUROC": [">= 0.8", "not measured", "-"],
        "wikitext2, safe texts: flagged": ["<= 0.02", "0.0133 [0.0, 0.0333]", "yes"],
        "authored test, safe texts: flagged": ["<= 0.02", "0.0301 [0.01, 0.05]", "no"],
        "identity gap, points: neutral sentences, by term": ["<= 3", "8.33", "no"],
        "identity gap, points: counterfactual": ["<= 3", "2.78", "yes"],
    }.items():
        assert row(text, measure)[1:] == rest
        assert row(full.card.read_text(), measure)[1:] == rest
    good = row(text, "rewrites read one by one: good")
    assert good[2].startswith("0.775 [0.")
    assert good[3] == "yes"
    assert "31 of 40 good, left 6, clumsy 3." in text


def test_the_manifest_holds_what_was_measured_and_the_bundle_stays_the_same(full: Place) -> None:
    full.publish()
    reported = full.reported()
    assert reported["edos: AUROC"] == {
        "value": 0.8491,
        "interval": [0.81, 0.88],
        "command": "python -m benchmarks.detection --data DATA --seed 0 --split test",
    }
    assert reported["identity gap, points: counterfactual"]["value"] == 2.78
    assert "implicit_hate: AUROC" not in reported
    bundle = Bundle.load(full.folder)
    assert bundle.hash == full.hash
    assert bundle.manifest.metrics["dev"] == {"cmd": {"auroc": 0.9}}


def test_only_what_stands_between_the_marks_is_written(full: Place) -> None:
    full.publish()
    text, card = full.readme.read_text(), full.card.read_text()
    assert text.startswith(README[: README.index("old 0.5")])
    assert text.endswith(README[README.index("<!-- /figures -->") :])
    assert "old 0.5" not in text
    head, place, limits = card.partition("## Reported figures\n<!-- figures -->\n")
    assert head + "## Limits" + limits.partition("## Limits")[2] == OLD_CARD
    assert place


@pytest.mark.parametrize("card", [CARD, "# It\n"])
def test_cards_with_and_without_a_place_get_figures_once(full: Place, card: str) -> None:
    full.card.write_text(card)
    full.publish()
    text = full.card.read_text()
    for part in ("## Reported figures", *publish.MARKS, "| edos: AUROC |"):
        assert text.count(part) == 1
    assert text.startswith(card.partition("## Reported figures")[0].rstrip())


def test_publishing_again_changes_nothing(full: Place, capsys: pytest.CaptureFixture[str]) -> None:
    full.publish()
    before = full.contents()
    capsys.readouterr()
    assert full.publish() == 0
    assert capsys.readouterr().out == ""
    assert full.contents() == before
    assert full.publish("--check") == 0


@pytest.mark.parametrize("number", range(4))
def test_a_check_finds_each_file_that_is_out_of_step_and_leaves_it(
    full: Place, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = (full.readme, full.card, full.page, full.folder / MANIFEST)[number]
    full.publish()
    assert path.read_text().count("0.8491") >= 1
    path.write_text(path.read_text().replace("0.8491", "0.8512"))
    before = full.contents()
    capsys.readouterr()
    assert full.publish("--check") == 1
    assert capsys.readouterr().out == f"{path} is out of step\n"
    assert full.contents() == before
    assert full.publish() == 0
    assert full.publish("--check") == 0


def test_a_check_before_the_first_publishing_writes_nothing(full: Place) -> None:
    assert full.publish("--check") == 1
    assert full.readme.read_text() == README
    assert full.card.read_text() == OLD_CARD
    assert not full.page.exists()


def test_a_new_result_puts_everything_out_of_step(full: Place) -> None:
    full.publish()
    results = made(full.hash)
    results["detection"]["sets"]["edos"]["texts"]["auroc"]["value"] = 0.8777
    full.put(results)
    assert full.publish("--check") == 1
    full.publish()
    assert all("0.8777" in text and "0.8491" not in text for text in full.contents())


def test_missing_results_are_told(place: Place) -> None:
    place.put({"startup": made(place.hash)["startup"]})
    assert place.publish() == 0
    text, page = place.readme.read_text(), place.page.read_text()
    assert page.count("\nNot measured.\n") == len(publish.SECTIONS) - 1
    assert row(page, "import srllm_guard")[1] == "0.008"
    assert row(text, "edos: AUROC")[1:] == [">= 0.85", "not measured", "-"]
    assert row(text, "each, safe texts: flagged")[2] == "not measured"
    goals = re.findall(r"^\| .* \| [<>]=? \S+ \| (.*) \|$", text, re.MULTILINE)
    assert set(goals) == {"not measured | -"}
    assert place.reported() == {}


def test_figures_of_another_bundle_are_shown_as_such_and_reach_no_goal(
    full: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    full.put({"detection": made("c" * 64)["detection"]})
    assert full.publish() == 0
    text, page = full.readme.read_text(), full.page.read_text()
    assert "[detection.json](detection.json), on another bundle: cccccccccccc\n" in page
    assert row(page, "edos")[4] == "0.8491 [0.81, 0.88]"
    assert row(text, "edos: AUROC")[2:] == ["not measured", "-"]
    assert "edos: AUROC" not in full.reported()
    assert "sr_bias: similarity to the source" in full.reported()
    assert "detection.json is of another bundle, cccccccccccc" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["reading", "startup"])
def test_what_does_not_name_its_bundle_is_of_another(full: Place, name: str) -> None:
    content = made(full.hash)[name]
    content.pop("bundle_hash", None)
    content.get("header", {}).pop("model", None)
    full.put({name: content})
    full.publish()
    assert read(full.results, full.hash, full.authored)[name].other == "not named"
    if name == "reading":
        measure = "rewrites read one by one: good"
        assert row(full.readme.read_text(), measure)[2:] == ["not measured", "-"]
        assert measure not in full.reported()


def test_figures_of_records_that_have_changed_are_shown_as_such(
    full: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ", on the authored records as they were then"
    content = made(full.hash)["detection"]
    content["header"]["data"] = report.digests([full.authored / "some.jsonl"])
    full.put({"detection": content})
    full.publish()
    assert words not in full.page.read_text()
    (full.authored / "more.jsonl").write_text("{}\n")
    assert full.publish("--check") == 1
    capsys.readouterr()
    full.publish()
    assert f"[detection.json](detection.json){words}\n" in full.page.read_text()
    assert "other authored records than there are now" in capsys.readouterr().err
    assert "edos: AUROC" in full.reported()


def test_the_dev_split_reaches_no_goal_on_test(full: Place) -> None:
    full.put({"quality": made(full.hash, "dev")["quality"]})
    full.publish()
    text = full.readme.read_text()
    measure = "authored test: rewritten, every phrase gone, facts kept, by the guard"
    assert row(text, measure)[2:] == ["not measured", "-"]
    assert measure not in full.reported()
    assert row(text, f"authored dev: unsafe share removed, by {JUDGE}")[3] == "yes"
    assert "**authored dev**" in full.page.read_text()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda p: shutil.rmtree(p.results), "no folder of results"),
        (lambda p: p.put({"reading": {"read": 3, "good": 4}}), "4 good rewrites of 3"),
        (lambda p: p.put({"quality": [1]}), "holds a list; expected an object"),
        (lambda p: (p.results / "quality.json").write_text("{"), "benchmarks.publish:"),
        (lambda p: p.readme.write_text("# It\n"), "README.md: expected one line"),
        (lambda p: p.readme.write_text(README + README), "README.md: expected one line"),
        (lambda p: p.readme.unlink(), "README.md"),
        (lambda p: (p.folder / HASHED[1]).write_text("x"), "is not the file"),
    ],
)
def test_what_cannot_be_published_ends_with_a_message(
    full: Place,
    spoil: Callable[[Place], object],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = (full.folder / MANIFEST).read_text()
    spoil(full)
    assert full.publish() == 1
    assert told in capsys.readouterr().err
    assert full.card.read_text() == OLD_CARD
    assert (full.folder / MANIFEST).read_text() == manifest


def test_the_repository_is_in_step_with_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    places = {
        "--results": ROOT / RESULTS,
        "--readme": ROOT / "README.md",
        "--bundle": ROOT / publish.BUNDLE,
        "--authored": ROOT / "train" / "data",
    }
    options = [str(each) for pair in places.items() for each in pair]
    assert publish.main(["--check", *options]) == 0, capsys.readouterr()
