"""Which state of the code made a bundle or a figure."""

from __future__ import annotations

import subprocess
from pathlib import Path


def revision() -> str:
    """The code's git revision, with a mark if it was changed since; empty outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(  # noqa: S603 - nothing of it comes from outside
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
