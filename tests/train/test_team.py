"""Two processes started by torchrun against one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srllm_guard.models.bundle import ADAPTER
from tests.train.conftest import CONFIG, ROW
from train.checkpoint import CHECKPOINT
from train.corpus import READINGS
from train.run import main
from train.team import Team


def test_each_job_goes_to_one_process_and_the_work_is_even() -> None:
    jobs, costs = list("abcdef"), [9.0, 1.0, 4.0, 4.0, 2.0, 2.0]
    parts = [Team(rank, 2).mine(jobs, costs) for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == jobs
    loads = [sum(costs[jobs.index(job)] for job in part) for part in parts]
    assert sorted(loads) == [11.0, 11.0]
    assert Team().mine(jobs, costs) == ["a", "c", "d", "e", "f", "b"]


def test_two_processes_learn_what_one_learns(base: Path, authored: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(CONFIG.replace("s = 4", "s = 1") + "[preference]\nepochs = 1\n")
    records = tmp_path / "authored"
    shutil.copytree(authored, records)
    (records / READINGS).mkdir()
    rows = (ROW | {"source": f"{name}, you fool, call me."} for name in ("Ann", "Lou", "Joe"))
    (records / READINGS / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [str(config), "--base", str(base), "--authored", str(records), "--threads", "1"]
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command = [*launch, "-m", "train.run", *arguments, "--out", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "two" / "bundle" / "guard.json").is_file()
    one, two = (
        torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("one", "two")
    )
    # Gradients are added in another order, and Adam makes steps of noise about nought: losses agree
    # closely, single weights do not.
    histories = (json.loads(run["history"]) for run in (one, two))
    for left, right in zip(*histories, strict=True):
        assert left == pytest.approx(right, rel=0.03), left["step"]
    apart = [(value - two["weights"][name]).abs().mean() for name, value in one["weights"].items()]
    assert float(torch.stack(apart).mean()) < 1e-3
    tuned = [load_file(tmp_path / name / "bundle" / ADAPTER) for name in ("one", "two")]
    apart = [
        (value.float() - tuned[1][name].float()).abs().mean() for name, value in tuned[0].items()
    ]
    assert float(torch.stack(apart).mean()) < 1e-3


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = Team.join()
    assert (team.rank, team.size, team.leads) == (0, 1, True)
    parameter = torch.nn.Parameter(torch.ones(2))
    team.add_gradients([parameter])
    assert parameter.grad is None
    assert team.add_numbers({"a": 1.0}, ("a", "b")) == {"a": 1.0}
