from __future__ import annotations

import hashlib
import json
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from srllm_guard import Guard, Policy
from srllm_guard.engines.reference import ReferenceEngine
from srllm_guard.errors import ConfigError
from srllm_guard.labels import LABELS
from srllm_guard.models.bundle import HASHED, MANIFEST, Bundle
from srllm_guard.prompt import Prompt
from srllm_guard.runtime import tokenizer
from tests.train.conftest import CONFIG
from train import recalibrate
from train.config import Config
from train.corpus import corpus
from train.fast import compiled
from train.model import load as load_model
from train.run import main
from train.sources import load


@pytest.fixture(scope="module")
def out(base: Path, authored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run from the command line."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.toml").write_text(CONFIG)
    arguments = [str(folder / "tiny.toml"), "--base", str(base), "--authored", str(authored)]
    flushed = torch.set_flush_denormal(False)
    assert main([*arguments, "--out", str(folder / "out"), "--threads", "1"]) == 0
    torch.set_flush_denormal(False)
    assert flushed
    return folder / "out"


def test_the_bundle_is_what_its_manifest_says(out: Path, authored: Path) -> None:
    bundle = Bundle.load(out / "bundle")
    manifest = bundle.manifest
    assert (manifest.name, manifest.prompt, manifest.layer) == ("tiny", "chatml-1", 2)
    assert manifest.base.repo == "tests/tiny"
    for name in HASHED:
        digest = hashlib.sha256((bundle.folder / name).read_bytes()).hexdigest()
        assert manifest.files[name] == digest
    data = hashlib.sha256((authored / "records.jsonl").read_bytes()).hexdigest()
    assert manifest.training["data"] == {"cmd": data}
    assert manifest.training["seed"] == 3
    figures = manifest.metrics["dev"]["cmd"]
    assert figures["segments"] >= 8
    assert 0 < figures["unsafe"] < figures["segments"]
    assert 0 <= figures["average_precision"] <= 1
    calibration = manifest.calibration
    assert set(calibration.temperatures) == set(LABELS)
    assert calibration.scale > 0
    assert 0.05 <= calibration.threshold <= 0.95
    assert 0.05 <= calibration.span_threshold <= 0.95


def test_nothing_in_it_names_a_folder_of_this_machine(out: Path, base: Path) -> None:
    for path in (out / "bundle").iterdir():
        assert str(base).encode() not in path.read_bytes(), path.name
        assert str(out).encode() not in path.read_bytes(), path.name
    adapter = json.loads((out / "bundle" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "tests/tiny"
    assert adapter["target_modules"] == sorted(adapter["target_modules"])


def test_its_card_has_the_figures_and_the_licence_of_the_base(out: Path) -> None:
    card = (out / "bundle" / "README.md").read_text()
    figures = Bundle.load(out / "bundle").manifest.metrics["dev"]["cmd"]
    assert "license: cc0-1.0\n" in card
    assert f"| cmd | {figures['segments']} | {figures['average_precision']} |" in card


def test_curves_and_history_are_there(out: Path) -> None:
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    history = json.loads((out / "loss.json").read_text())
    assert {"step", "rewriting", "dev_rewriting", "dev_detection"} <= set(history[-1])


def test_weights_are_small_and_no_pickle(out: Path) -> None:
    names = {path.name for path in (out / "bundle").iterdir()}
    assert names == {*HASHED, "guard.json", "README.md"}
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        weights = load_file(out / "bundle" / name)
        assert {value.dtype for value in weights.values()} == {torch.float16}


def test_the_reference_engine_runs_it(out: Path, base: Path) -> None:
    bundle = Bundle.load(out / "bundle")
    engine = ReferenceEngine(bundle, base, "cpu")
    prompt = Prompt(tokenizer(base), bundle.manifest.prompt)
    window, _ = prompt.window("They smell. It rained.", [(0, 11), (12, 22)])
    (scores,) = engine.detect([window])
    assert scores.labels.shape[0] == 2
    assert scores.spans.shape[0] == len(window.ids)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_guard_moderates_with_it(out: Path, base: Path, threshold: float) -> None:
    text = "The bus was late.\r\nThe people here are useless with phones."
    guard = Guard(out / "bundle", "cpu", Policy(threshold=threshold, candidates=1), base=base)
    result = guard.moderate(text)
    assert result.errors == ()
    assert result.provenance.bundle.startswith("tiny")
    if threshold:
        assert result.action == "pass"
        assert result.text == text
    else:  # everything is unsafe, so no rewrite can be verified
        assert result.action in ("mask", "block")
        assert "useless" not in result.text


def test_a_run_that_lacks_its_data_says_so(tmp_path: Path, config: Config, authored: Path) -> None:
    more = replace(config, data=replace(config.data, detection={"cmd": 0, "edos": 5}))
    with pytest.raises(ConfigError, match=r"'edos'.*--data"):
        corpus(more, None, authored)
    with pytest.raises(ConfigError, match=r"'edos'.*not there.*edos\.jsonl"):
        corpus(more, tmp_path, authored)
    with pytest.raises(ConfigError, match=r"'cmd'.*not there"):
        corpus(config, None, tmp_path / "nowhere")


def test_the_command_line_reports_errors_by_its_status(
    tmp_path: Path, base: Path, authored: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(CONFIG + "\nlearning_rate = 1\n")
    assert main([str(bad), "--out", str(tmp_path / "out")]) == 1
    assert "unknown key 'learning_rate'" in caplog.text
    (tmp_path / "good.toml").write_text(CONFIG)
    broken = tmp_path / "records"
    broken.mkdir()
    (broken / "some.jsonl").write_text('{"id": "a"}\n')
    arguments = [str(tmp_path / "good.toml"), "--base", str(base), "--authored", str(broken)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "some.jsonl line 1" in caplog.text


def put(folder: Path, part: str, name: str, rows: list[dict[str, object]]) -> None:
    (folder / part).mkdir(exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / part / f"{name}.jsonl").write_text("".join(lines))


def test_texts_of_evaluation_sets_are_not_trained_on(
    tmp_path: Path, config: Config, authored: Path
) -> None:
    texts = [f"statement number {n}" for n in range(60)]
    put(tmp_path, "train", "edos", [{"text": text, "sexist": 1} for text in texts])
    # An empty dev file counts as none: some texts are held out.
    put(tmp_path, "dev", "edos", [])
    put(tmp_path, "dev", "appdia", [{"text": "Statement  NUMBER 3", "safe": ["hm"]}])
    put(tmp_path, "bench", "bold", [{"text": texts[4]}, {"id": "no text"}])
    put(tmp_path, "judge", "davidson", [{"text": texts[5], "label": "hate"}])
    own = load(authored, "cmd", "train")[0].text
    put(tmp_path, "safe", "prose", [{"text": texts[6]}, {"text": own}])
    (tmp_path / "bench" / "other.json").write_text("{}")
    more = replace(config, data=replace(config.data, detection={"cmd": 0, "edos": 0}))
    found = corpus(more, tmp_path, authored)
    left = {example.text for example in found.train["edos"]}
    held = {example.text for example in found.dev["edos"]}
    assert held
    assert left == set(texts) - held - {texts[n] for n in (3, 4, 5, 6)}
    assert own not in {example.text for example in found.train["cmd"]}


def test_dev_sets_have_both_classes(tmp_path: Path, config: Config, authored: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"text {n}", "sexist": n % 2} for n in range(200)]
    put(tmp_path, "train", "edos", rows)
    more = replace(config, data=replace(config.data, detection={"edos": 0}))
    found = corpus(more, tmp_path, authored)
    assert {min(e.labels["unsafe"]) for e in found.dev["edos"]} == {"no", "yes"}
    assert {min(e.labels["unsafe"]) for e in found.train["edos"]} == {"yes"}


def test_csv_and_pairs_lie_in_the_data_folder(
    tmp_path: Path, config: Config, authored: Path
) -> None:
    from train.package import data_hashes

    (tmp_path / "train").mkdir()
    table = tmp_path / "train" / "csv.csv"
    table.write_text("Original Sentence,BIAS,Debiased \n" + "They smell,Yes,They are here\n")
    pairs: list[dict[str, object]] = [{"text": "you fool", "safe": "you", "split": "train"}]
    put(tmp_path, "train", "pairs", pairs)
    more = replace(config, data=replace(config.data, rewriting={"csv": 0, "pairs": 0}))
    found = corpus(more, tmp_path, authored)
    assert [e.text for e in found.train["csv"] + found.dev["csv"]] == ["They smell"]
    assert [e.text for e in found.train["pairs"]] == ["you fool"]
    hashes = data_hashes(more, tmp_path, authored)
    assert hashes["csv"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert set(hashes) == {"csv", "pairs", "cmd"}


def test_a_bundle_is_recalibrated_in_place(
    out: Path, base: Path, authored: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(out / "bundle", folder)
    before = Bundle.load(folder)
    (tmp_path / "tiny.toml").write_text(CONFIG)
    arguments = [str(tmp_path / "tiny.toml"), str(folder), "--base", str(base)]
    assert recalibrate.main([*arguments, "--authored", str(authored)]) == 0
    after = Bundle.load(folder).manifest
    assert after.files == before.manifest.files  # the weights are as they were
    assert after.calibration.threshold == pytest.approx(
        before.manifest.calibration.threshold, abs=0.05
    )


def test_a_run_can_start_from_a_bundle(
    out: Path, base: Path, authored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step from the weights of a bundle lands near them, and the manifest says where from."""
    path = tmp_path / "more.toml"
    path.write_text(CONFIG.replace("lr = 2e-2", "lr = 1e-6\nstop = 1").replace("5e-3", "1e-6"))
    arguments = [str(path), "--base", str(base), "--authored", str(authored), "--threads", "1"]
    start = ["--from-bundle", str(out / "bundle")]
    assert main([*arguments, *start, "--out", str(tmp_path / "more")]) == 0
    first, more = Bundle.load(out / "bundle"), Bundle.load(tmp_path / "more" / "bundle")
    assert more.manifest.training["start"] == first.hash
    assert first.manifest.training["start"] is None
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        before, after = load_file(first.folder / name), load_file(more.folder / name)
        for key, value in before.items():
            assert torch.allclose(value.float(), after[key].float(), atol=1e-3), key
    assert len(json.loads((tmp_path / "more" / "loss.json").read_text())) == 1
    recalibrate.recalibrate(Config.from_toml(path), more.folder, None, authored, base)
    assert Bundle.load(more.folder).manifest.training["start"] == first.hash


@pytest.mark.parametrize(
    "change",
    [
        ("layer = 2", "layer = 1"),
        ("seed = 3", "seed = 3\n[refit]\nlayer = 2"),
        ("[data.rewriting]", "[data.detection]\ncmd = 0\n[data.rewriting]"),
    ],
)
def test_training_of_rewriting_alone_leaves_detection_as_it_is(
    change: tuple[str, str],
    out: Path,
    base: Path,
    authored: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "tiny.toml"
    alone = CONFIG.replace("[data.detection]\ncmd = 0\n", "")
    path.write_text(alone.replace("seed = 3", "rewriting_only = true\nseed = 3").replace(*change))
    arguments = [str(path), "--base", str(base), "--authored", str(authored), "--threads", "1"]
    start = ["--from-bundle", str(out / "bundle")]
    assert main([*arguments, *start, "--out", str(tmp_path / "more")]) == 1
    assert "rewriting only" in caplog.text


def test_a_folder_takes_up_no_other_run(
    out: Path, base: Path, authored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(CONFIG.replace("seed = 3", "seed = 4"))
    before = (out / "bundle" / MANIFEST).read_bytes()
    arguments = [str(path), "--base", str(base), "--authored", str(authored), "--threads", "1"]
    assert main([*arguments, "--out", str(out)]) == 1
    assert "run of another seed" in caplog.text
    (tmp_path / "origin.json").write_text("{")
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    assert "origin.json cannot be read" in caplog.text
    assert (out / "bundle" / MANIFEST).read_bytes() == before


def test_frozen_layers_stay_as_they_are(
    out: Path, base: Path, authored: Path, tmp_path: Path
) -> None:
    path = tmp_path / "frozen.toml"
    path.write_text(CONFIG.replace("seed = 3", "seed = 3\nstop = 2\nfrozen_layers = 1"))
    arguments = [str(path), "--base", str(base), "--authored", str(authored), "--threads", "1"]
    start = ["--from-bundle", str(out / "bundle")]
    assert main([*arguments, *start, "--out", str(tmp_path / "frozen")]) == 0
    before = load_file(out / "bundle" / "adapter_model.safetensors")
    after = load_file(tmp_path / "frozen" / "bundle" / "adapter_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.0." not in name}


COMPILES = shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").is_file()


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.skipif(not COMPILES, reason="needs a C++ compiler and the headers of Python")
def test_compiled_training_learns_the_same(base: Path, authored: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    arguments = [str(path), "--base", str(base), "--authored", str(authored), "--threads", "1"]
    plain = CONFIG.replace("seed = 3", "seed = 3\nstop = 2").replace("dropout = 0.1", "dropout = 0")
    losses = {}
    for name, text in (("compiled", f"{plain}\ncompile = true\n"), ("plain", plain)):
        path.write_text(text)
        counters.clear()
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
        assert bool(counters["stats"]["unique_graphs"]) == (name == "compiled")
        losses[name] = json.loads((tmp_path / name / "loss.json").read_text())
    for one, other in zip(losses["compiled"], losses["plain"], strict=True):
        assert one == pytest.approx(other, rel=0.02)


@pytest.mark.parametrize("bf16", [True, False])
def test_the_weights_are_as_before_when_compiled_training_ends(
    bf16: bool, out: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    kinds = {torch.float32, torch.bfloat16} if bf16 else {torch.float32}
    model = load_model(
        Config.from_toml(out.parent / "tiny.toml"), Bundle.load(out / "bundle"), base
    )
    layers = model.language.get_base_model().model.layers
    before = {name: value.clone() for name, value in model.named_parameters()}

    def interrupted() -> None:
        with compiled(model):
            assert {value.dtype for value in model.parameters()} == kinds
            assert all(layer._compiled_call_impl for layer in layers)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert not any(layer._compiled_call_impl for layer in layers)
    for name, value in model.named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_a_bundle_of_another_shape_is_no_start(
    out: Path, base: Path, authored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "wide.toml"
    path.write_text(CONFIG.replace("r = 8", "r = 4"))
    arguments = [str(path), "--base", str(base), "--authored", str(authored), "--threads", "1"]
    start = ["--from-bundle", str(out / "bundle")]
    assert main([*arguments, *start, "--out", str(tmp_path / "wide")]) == 1
    assert "[lora]" in caplog.text


def test_an_adapter_grows_and_says_the_same(out: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG)
    config = Config.from_toml(tmp_path / "tiny.toml")
    wide = replace(config, lora=replace(config.lora, r=20, alpha=40))
    bundle = Bundle.load(out / "bundle")
    ids = torch.arange(5, 29).reshape(2, 12)
    one, grown = (load_model(each, bundle, base, grow=True).eval() for each in (config, wide))
    with torch.no_grad():
        expected = one.language(input_ids=ids).logits
        torch.testing.assert_close(grown.language(input_ids=ids).logits, expected)
    down, up = (
        next(weight for name, weight in grown.language.named_parameters() if f"lora_{part}" in name)
        for part in "AB"
    )
    assert down.shape[0] == up.shape[1] == 20
    assert down[8:].abs().max() > 0  # or the new part would learn nothing
    assert not up[:, 8:].any()
    with pytest.raises(ConfigError, match="rank 8"):
        load_model(wide, bundle, base)


def test_an_adapter_of_another_scale_is_refused(out: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG)
    config = Config.from_toml(tmp_path / "tiny.toml")
    other = replace(config, lora=replace(config.lora, alpha=config.lora.alpha + 1))
    with pytest.raises(ConfigError, match="alpha"):
        load_model(other, Bundle.load(out / "bundle"), base)
