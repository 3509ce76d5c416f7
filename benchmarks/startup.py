"""How long a process takes to its first answer.

    python -m benchmarks.startup --rounds 5

Fresh processes, one after another: `import srllm_guard`; `Guard()` and one safe text with converted
weights in the cache; the same, to a rewritten text. Medians. `--python` takes the interpreter of
another environment: transformers imports scikit-learn where it is installed, which a user of the
guard does not need.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.report import RESULTS, header, table, write
from srllm_guard import Guard

IMPORT = "import srllm_guard"
SAFE = "from srllm_guard import Guard; Guard().rewrite('The bus leaves at 9.')"
UNSAFE = "from srllm_guard import Guard; Guard().rewrite('You stupid idiot, get lost.')"

TIMED = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"

ROWS = {
    "import srllm_guard": IMPORT,
    "Guard() to a safe answer": SAFE,
    "Guard() to a rewritten answer": UNSAFE,
}


def seconds(python: str, code: str) -> float:
    """Seconds that `code` takes in a fresh interpreter, the start of the interpreter apart.

    Raises:
        CalledProcessError: the code failed.
    """
    command = [python, "-W", "ignore", "-c", TIMED.format(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return float(done.stdout.splitlines()[-1])


def works(python: str, code: str) -> bool:
    """Whether `code` runs in that interpreter."""
    done = subprocess.run([python, "-c", code], capture_output=True, check=False)  # noqa: S603
    return done.returncode == 0


def main() -> None:
    """Measure, print the table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", help="interpreter to measure (default: this one)")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    parser.set_defaults(seed=0)
    args = parser.parse_args()
    python = args.python or sys.executable
    for code in ROWS.values():  # the first run fills caches
        seconds(python, code)
    spent: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(args.rounds):
        for name, code in ROWS.items():
            spent[name].append(seconds(python, code))
    found = {
        name: {"median_s": round(statistics.median(times), 3), "worst_s": round(max(times), 3)}
        for name, times in spent.items()
    }
    content = {
        "header": header(args, "startup", Guard().info(), ()),
        "scikit_learn_installed": works(python, "import sklearn"),
        "seconds": found,
    }
    rows = [[name, row["median_s"], row["worst_s"]] for name, row in found.items()]
    text = table(["", "median, s", "worst, s"], rows)
    print(
        write(
            args.out,
            content,
            [("From a fresh process", text)],
            "The interpreter's own start apart.",
        )
    )


if __name__ == "__main__":
    main()
