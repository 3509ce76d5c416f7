"""The Python examples of the README run, in order, in one namespace, and print what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.middleware.server import Answer, chat, response_events, serving

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"```python\n(.*?)```(?:\n```text\n(.*?)```)?",
    (ROOT / "README.md").read_text("utf-8"),
    re.DOTALL,
)
"""Each example, and what it prints."""

NUMBER = re.compile(r"\d+\.\d+")

ANSWERS: dict[str, Answer] = {
    "chat__completions": lambda body: chat(
        "The report is due on Friday at noon. Ask your boss, that stupid idiot."
    ),
    "responses": lambda body: response_events(
        "The invoice goes out on Monday. Stop asking, you moron."
    ),
}
"""What the server says that the example of a client asks."""


def test_there_are_examples() -> None:
    assert BLOCKS


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # where dataclasses look for their names
    with serving(**ANSWERS) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        for block, printed in BLOCKS:
            exec(compile(block, "README.md", "exec"), vars(module))
            said = capsys.readouterr().out
            if printed:
                assert _rounded(said) == _rounded(printed)


def _rounded(text: str) -> str:
    """Scores differ in their last digits between processors."""
    return NUMBER.sub(lambda number: f"{float(number.group()):.2f}", text).rstrip()
