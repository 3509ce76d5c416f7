"""Moderate a few texts with the shipped bundle and show what came of each.

make demo
"""

from __future__ import annotations

import time

from srllm_guard import Guard, Moderation

TEXTS = (
    "The meeting moved to 14:30; the agenda is at https://example.org/agenda.",
    "Old people can't learn new software, so put Ed on the phones.",
    "Thanks for the report. Only an idiot would have missed the typo on page 3, though.",
    "Deputy mayor Ruiz, hysterical as women in politics tend to be, asked for 68 million pesos.",
    "Send me the invoice by Friday, you clueless moron. The bank details are on page 2.",
    "I'm really unhappy with this delivery: two of the five boxes were empty.",
)


def show(result: Moderation, milliseconds: float) -> None:
    """Print one result: the original, what is released, the labels and the time."""
    found = result.before
    labels = (
        f"bias {found.bias.value}, toxicity {found.toxicity.value}, "
        f"sentiment {found.sentiment.value}, harm {found.harm.value}"
    )
    print(f"original  {result.original}")
    print(f"released  {result.text if result.changed else '(the same)'}")
    print(f"labels    {labels}; score {found.score:.3f}")
    if result.after is not None:
        print(f"after     score {result.after.score:.3f}")
    print(f"action    {result.action} in {milliseconds:.0f} ms\n")


def main() -> None:
    """Load the guard once, then moderate each text."""
    started = time.perf_counter()
    guard = Guard()
    print(f"loaded in {time.perf_counter() - started:.1f} s: {guard.info()}\n")
    for text in TEXTS:
        started = time.perf_counter()
        result = guard.moderate(text)
        show(result, 1000 * (time.perf_counter() - started))


if __name__ == "__main__":
    main()
