"""The parts of `benchmarks.latency`, on an engine without weights and on a tiny model."""

from __future__ import annotations

import importlib.util
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from benchmarks.speed import ceiling, goals, llama_cpp, middleware, rivals, rows, stopwatch
from benchmarks.speed.systems import System, gather, names, of_runtime
from benchmarks.speed.texts import SENTENCES, Texts, texts
from benchmarks.speed.watched import Remembering, Watched
from srllm_guard import Guard
from srllm_guard.engines.base import Continuation, Request
from srllm_guard.engines.reference import ReferenceEngine
from srllm_guard.models.gguf import convert
from srllm_guard.prompt import Prompt
from srllm_guard.text.segments import segments
from tests.benchmarks.test_prompting import record
from tests.byte_engine import ByteEngine, runtime
from tests.contract import conftest as contract
from tests.contract.conftest import Tiny, drafted
from tests.unit.test_store import write_gguf

middleware_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("langchain_core", "openai")),
    reason="needs the packages of the middleware",
)
tiny = contract.tiny
prompt = contract.prompt

SAFE = [f"The train to the north leaves at {n} today." for n in range(1, 60)]
UNSAFE = [f"You are an idiot and came {n} minutes late." for n in range(1, 12)]


def write_records(folder: Path) -> Path:
    made = [record(n, text, text, "none", "dev") for n, text in enumerate(SAFE)]
    made += [
        record(100 + n, text, text.replace("an idiot and", "a person who"), "insult", "dev")
        for n, text in enumerate(UNSAFE)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


@pytest.fixture
def ours(byte_engine: ByteEngine) -> System:
    return of_runtime("torch fp32", runtime(byte_engine))


@pytest.fixture
def material(ours: System, tmp_path: Path) -> Texts:
    assert ours.guard is not None
    return texts(ours.guard, write_records(tmp_path / "authored"), [])


def copying(name: str) -> System:
    """One that answers with the source."""

    def decode(requests: Any) -> list[Continuation]:
        return [Continuation(r.draft, finished=True, steps=len(r.draft) + 1) for r in requests]

    return System(name, decode, forward=lambda ids: time.sleep(0.001))


def test_everybody_runs_every_item_in_every_round() -> None:
    seen: list[tuple[str, int]] = []

    def job(name: str) -> Any:
        def run(item: int) -> str:
            seen.append((name, item))
            return f"{name}{item}"

        return run

    jobs = {name: job(name) for name in "abc"}
    runs = stopwatch.interleaved(jobs, [1, 2, 3], rounds=2, warm=[9], settle=0)
    assert seen[:3] == [("a", 9), ("b", 9), ("c", 9)]
    timed = seen[3:]
    turns = [timed[n : n + 3] for n in range(0, len(timed), 3)]
    assert [{item for _, item in turn} for turn in turns] == [{1}, {2}, {3}] * 2
    assert all({name for name, _ in turn} == set("abc") for turn in turns)
    assert len({tuple(name for name, _ in turn) for turn in turns}) > 1  # nobody is always first
    assert runs["b"].results == ["b1", "b2", "b3"]
    assert runs["b"].figures()["n"] == 6


def test_a_summary_has_the_median_and_the_slow_end() -> None:
    assert stopwatch.summary([1.0, 2.0, 3.0, 4.0, 100.0])["median_ms"] == 3.0
    assert stopwatch.summary(range(101))["p95_ms"] == 95.0
    assert stopwatch.summary([]) == {"median_ms": None, "p95_ms": None, "n": 0}


def test_the_ceiling_counts_the_weights_of_the_model(tiny: Tiny) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.base)
    layers, head = ceiling.weights(model.config.to_dict())
    matrices = {id(w): w for w in model.parameters() if w.dim() == 2}
    assert layers + head == sum(w.numel() for w in matrices.values())


def test_the_ceiling_falls_with_the_bytes_and_rises_with_the_tokens(tiny: Tiny) -> None:
    config = json.loads((tiny.base / "config.json").read_text())
    found = ceiling.measure(config, "cpu", read=2**20, side=64)
    assert found["gb_s"] > 0
    least = {name: list(row["least_ms"].values()) for name, row in found["precisions"].items()}
    assert least["fp32"][0] >= least["fp16"][0] >= least["int8"][0] >= least["int4"][0]
    assert all(row == sorted(row) for row in least.values())
    assert found["precisions"]["fp16"]["gflop_s"] >= found["precisions"]["fp32"]["gflop_s"]


@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 4}])
def test_transformers_decodes_what_the_reference_engine_does(
    tiny: Tiny, prompt: Prompt, options: dict[str, int]
) -> None:
    requests = drafted(prompt, ["Bad day to all.", "An ill wind, that."], 12)
    model = rivals.merged(tiny.bundle, tiny.base, torch.device("cpu"))
    rival = rivals.Transformers(model, torch.device("cpu"), **options)
    found = [rival.decode([request])[0] for request in requests]
    assert found == ReferenceEngine(tiny.bundle, tiny.base, "cpu").generate(requests)
    assert all(0 < one.steps <= len(one.ids) + one.finished for one in found)
    if not options:
        assert rival.decode(requests) == found
        assert rival.forward(requests[0].prompt).argmax() == found[0].ids[0]


def test_what_comes_after_the_end_is_cut() -> None:
    request = Request((1,), frozenset({7}), 4)
    assert rivals.cut([3, 4, 7, 5], request) == Continuation((3, 4), finished=True)
    assert rivals.cut([3, 4, 7, 5], request).steps == 3
    assert rivals.cut([3, 4, 5, 6, 7], request) == Continuation((3, 4, 5, 6), finished=False)
    assert rivals.cut([3, 4], request, passes=1).steps == 1


def test_the_gguf_of_llama_cpp_holds_the_adapter(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write_gguf(tiny.base, tmp_path / "base.gguf", tied=True)
    llama_cpp.merge(tmp_path / "base.gguf", tiny.bundle.folder, tmp_path / "merged.gguf")
    convert(tmp_path / "merged.gguf", tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    model = rivals.merged(tiny.bundle, tiny.base, torch.device("cpu"))
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            assert np.allclose(found[name], weight.numpy(), atol=2e-3), name
    told = json.loads((tmp_path / "model" / "config.json").read_text())
    assert told["num_key_value_heads"] == 2
    assert told["vocab_size"] == model.config.vocab_size


def test_systems_that_do_not_run_are_skipped_with_their_reason() -> None:
    def make(name: str) -> System:
        if name == "b":
            raise ImportError("no module b\nand a long story")
        return copying(name)

    found, skipped = gather(["a", "b", "c"], make)
    assert [system.name for system in found] == ["a", "c"]
    assert skipped == {"b": "ImportError: no module b"}


def test_a_gpu_adds_systems_and_takes_none_away() -> None:
    without, with_gpu = names(cuda=False), names(cuda=True)
    assert with_gpu[: len(without)] == without
    added = with_gpu[len(without) :]
    assert added
    assert all(name.endswith(" cuda") for name in added)


def test_texts_are_one_flagged_sentence_each(material: Texts) -> None:
    assert sorted(case.text for case in material.unsafe) == sorted(UNSAFE)
    case = material.unsafe[0]
    assert [case.text[start:end] for start, end in case.marks] == ["idiot"]
    assert sorted(material.safe) == sorted(SAFE)


def test_more_texts_take_turns_with_the_authored(ours: System, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    said = [{"text": f"What a stupid thing it was, no. {n} here."} for n in range(3)]
    said.append({"text": "Nothing to see in this one at all."})
    more.write_text("".join(json.dumps(row) + "\n" for row in said))
    assert ours.guard is not None
    found = texts(ours.guard, write_records(tmp_path / "authored"), [more])
    kinds = ["stupid" in case.text for case in found.unsafe]
    assert 2 <= sum(kinds) <= 3
    assert sum(kinds) * 2 - len(kinds) in (-1, 0, 1)


def test_no_unsafe_text_is_an_error(ours: System, tmp_path: Path) -> None:
    folder = tmp_path / "authored"
    folder.mkdir()
    row = record(1, SAFE[0], SAFE[0], "none", "dev")
    (folder / "own.jsonl").write_text(json.dumps(row) + "\n")
    assert ours.guard is not None
    with pytest.raises(ValueError, match="0 unsafe and 1 safe"):
        texts(ours.guard, folder, [])


def test_a_paragraph_has_one_unsafe_sentence_of_eight(material: Texts, ours: System) -> None:
    assert ours.guard is not None
    for case in material.paragraphs(4):
        assert len(segments(case.text)) == SENTENCES
        assert [case.text[start:end] for start, end in case.marks] == ["idiot"]
        assert len(ours.guard.moderate(case.text).edits) == 1
        assert material.prompt.encode(case.text) == list(case.request.draft)


def test_of_a_document_one_sentence_in_a_hundred_is_unsafe(material: Texts) -> None:
    text = material.document(4_000, 0.01)
    assert 4_000 <= len(text.split()) < 4_020
    found = segments(text)
    bad = sum("idiot" in text[s.start : s.end] for s in found)
    assert bad == pytest.approx(len(found) / 100, abs=1)
    parts = text.split("\n\n")
    assert len(set(parts)) == len(parts)  # nothing is judged once for two places
    assert material.document(4_000, 0.01) == text


def test_ordinary_text_has_the_tokens_that_were_asked_for(material: Texts) -> None:
    one, other = (material.ordinary(64, number) for number in (0, 1))
    assert len(material.prompt.encode(one)) == len(material.prompt.encode(other)) == 64
    assert one != other


def test_a_sentence_is_decoded_by_all_and_guarded_by_ours(material: Texts, ours: System) -> None:
    others = [copying("transformers"), copying("llama.cpp")]
    found = rows.sentence([*others, ours], material.unsafe[:3], rounds=2)
    assert list(found["decode"]) == ["transformers", "llama.cpp", "torch fp32"]
    assert list(found["guard"]) == ["torch fp32"]
    row = found["decode"]["llama.cpp"]
    assert (row["n"], row["same_output"], row["tokens_per_step"]) == (6, 1.0, 1.0)
    assert found["decode"]["torch fp32"]["same_output"] == 0.0
    guarded = found["guard"]["torch fp32"]
    assert guarded["actions"] == {"rewrite": 3}
    assert 0 < guarded["model_ms"] < guarded["median_ms"]
    assert guarded["rewritten_ms"] == guarded["median_ms"]


def test_a_paragraph_is_rewritten_whole_by_others(material: Texts, ours: System) -> None:
    found = rows.paragraph([copying("transformers"), ours], material.paragraphs(2), rounds=1)
    assert found["whole"]["transformers"]["tokens"] > 300
    assert found["guard"]["torch fp32"]["actions"] == {"rewrite": 2}


def test_who_follows_the_tokens_of_another_looks_them_up_untimed(material: Texts) -> None:
    known: list[Request] = []
    follower = replace(copying("llama.cpp"), prepare=known.extend)
    found = rows.sentence([copying("transformers"), follower], material.unsafe[:3], rounds=1)
    assert known == [case.request for case in material.unsafe[:3]]
    assert found["decode"]["llama.cpp"]["same_output"] is None


def test_detection_is_of_our_guard_and_of_a_forward_of_others(
    material: Texts, ours: System
) -> None:
    found = rows.detection([copying("transformers"), ours], material, (16, 32), rounds=2)
    assert list(found) == ["16", "32"]
    assert found["16"]["transformers"]["median_ms"] >= 1
    assert found["32"]["torch fp32"]["n"] == 2
    assert "model_ms" not in found["16"]["transformers"]


def test_documents_batches_and_callers(material: Texts, ours: System) -> None:
    systems = [copying("transformers"), ours]
    documents = rows.document(systems, material, (100, 1_000), rounds=1)
    assert list(documents) == ["torch fp32"]
    long = documents["torch fp32"]["1000"]
    assert (long["edits"], long["action"]) == (1, "rewrite")
    assert long["over_detection"] > 0
    batches = rows.batches(systems, material.unsafe, (1, 4), rounds=1)
    assert batches["transformers"]["4"]["tokens"] > batches["transformers"]["1"]["tokens"] > 0
    crowd = rows.callers(systems, material, (1, 3), calls=9)
    assert crowd["torch fp32"]["3"]["n"] == 9
    assert crowd["torch fp32"]["3"]["calls_per_s"] > 0


def test_no_run_takes_over_the_work_of_another(material: Texts, ours: System) -> None:
    forgot: list[str] = []
    system = replace(ours, forget=lambda: forgot.append("prompts"))
    rows.sentence([system], material.unsafe[:2], rounds=1)
    assert len(forgot) == 2 * (2 + 2)  # warm and timed: decoding, and the guard


def test_batches_repeat_no_text(material: Texts) -> None:
    found = rows.batches([copying("transformers")], material.unsafe[:2], (1, 2, 4), rounds=1)
    assert list(found["transformers"]) == ["1", "2"]


def test_the_watch_counts_the_model_alone(byte_engine: ByteEngine) -> None:
    watch = Watched(byte_engine)
    guard = Guard(runtime(watch))  # type: ignore[arg-type]
    guard.rewrite("You idiot, go away.")
    assert watch.spent() > 0
    assert watch.spent() == 0.0


def test_what_is_remembered_is_asked_once(byte_engine: ByteEngine) -> None:
    guard = Guard(runtime(Remembering(byte_engine)))  # type: ignore[arg-type]
    first = guard.moderate("You idiot, go away. It is late.")
    judged, asked = len(byte_engine.judged), len(byte_engine.asked)
    assert guard.moderate("You idiot, go away. It is late.") == first
    assert (len(byte_engine.judged), len(byte_engine.asked)) == (judged, asked)


@middleware_packages
def test_wrappers_answer_with_safe_text_and_are_timed(material: Texts, ours: System) -> None:
    assert ours.guard is not None
    items = middleware.answers(material, ours.guard, 2)
    found = middleware.overhead(ours.guard, items, rounds=2)
    assert found["skipped"] == {}
    assert len(found["wrappers"]) == 6
    assert found["wrappers"]["wrap"]["n"] == 4
    assert found["detect"]["n"] == 4


def test_a_wrapper_that_spoils_safe_text_is_not_timed() -> None:
    with pytest.raises(RuntimeError, match="4 safe characters came back as 3"):
        middleware._same((str, lambda text: text[:-1]), "abcd")


def test_a_stream_waits_for_its_first_sentence(material: Texts, ours: System) -> None:
    assert ours.guard is not None
    items = middleware.answers(material, ours.guard, 1)
    found = middleware.delays(ours.guard, items, rate=200)
    assert found["first_bare_ms"] < found["sentence_ms"]
    assert found["first_guarded_ms"] > found["sentence_ms"]
    assert found["first_added_ms"] > 0


def test_goals_compare_the_fastest_of_ours() -> None:
    decode = {
        "transformers": {"median_ms": 1200.0},
        "reference": {"median_ms": 10.0},
        "torch fp32": {"median_ms": 240.0, "ms_per_step": 30.0},
        "onnx int8": {"median_ms": 150.0},
    }
    content: dict[str, Any] = {
        "sentence": {"decode": decode, "guard": {"torch fp32": {"median_ms": 400.0}}},
        "detection": {
            "64": {"transformers": {"median_ms": 90.0}, "torch fp32": {"median_ms": 30.0}}
        },
        "document": {
            "torch fp32": {
                "1000": {"ms_per_1000_words": 400.0, "over_detection": 1.5},
                "10000": {"ms_per_1000_words": 420.0, "over_detection": 1.2},
            }
        },
        "start": {"import srllm_guard": {"median_ms": 20.0}},
        "memory": {"torch fp32": {"mb": 950.0}},
        "middleware": {
            "overhead": {"wrappers": {"a": {"overhead_ms": 0.1}, "b": {"overhead_ms": 2.0}}}
        },
    }
    found = goals.reached(content)
    known = [row for row in found if row["met"] is not None]
    assert [(row["reached"], row["system"], row["met"]) for row in known] == [
        (8.0, "onnx int8", True),
        (3.0, "torch fp32", False),
        (3.0, "torch fp32", False),
        (30.0, "torch fp32", False),
        (1.2, "torch fp32", True),
        (1.05, "torch fp32", True),
        (0.02, "srllm_guard", True),
        (950.0, "torch fp32", False),
        (2.0, "b", False),
    ]
    assert len(found) == len(goals.GOALS)
    assert goals.goals_table(found).count("not measured") == len(found) - len(known)


def test_goals_of_a_gpu_are_of_the_systems_there() -> None:
    cuda = {"median_ms": 20.0, "ms_per_step": 0.6}
    decode = {
        "torch fp32": {"median_ms": 1.0, "ms_per_step": 0.1},
        "transformers cuda": {"median_ms": 500.0},
        "torch bf16 cuda": cuda,
        "onnx fp16 cuda": {"median_ms": 30.0},
    }
    rates = {"transformers cuda": 100.0, "torch bf16 cuda": 700.0, "torch fp32": 9_000.0}
    batches = {name: {"32": {"tokens_per_s": rate}} for name, rate in rates.items()}
    found = goals.reached({"sentence": {"decode": decode, "guard": {}}, "batches": batches})
    known = [(row["reached"], row["met"]) for row in found if row["measure"].startswith("CUDA")]
    assert known == [(25.0, True), (0.6, True), (7.0, True), (1.5, True)]


def test_goals_of_nothing_are_not_measured() -> None:
    assert {row["met"] for row in goals.reached({})} == {None}


def test_safe_sentences_fill_the_middleware(material: Texts, ours: System) -> None:
    assert ours.guard is not None
    items = middleware.answers(material, ours.guard, 3)
    assert len(items) == 3
    assert all(len(segments(text)) == middleware.SENTENCES for text in items)
    assert all(a != b for a, b in itertools.pairwise(items))
