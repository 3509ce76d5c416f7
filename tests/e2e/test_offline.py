"""A guard needs no network, and says so in a process that cannot reach one."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import socket, json, sys

def refuse(*args, **kwargs):
    raise OSError("no network in this test")

socket.socket.connect = refuse
socket.create_connection = refuse
socket.getaddrinfo = refuse

from srllm_guard import Guard

guard = Guard()
print(json.dumps([guard.rewrite("The train leaves at 9."), guard.info()["engine"]]))
"""


def test_works_without_network() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["The train leaves at 9.", "torch"]
