"""A guarded client of the openai package, for any server that speaks its API.

    python examples/openai_client.py MODEL "What do you think of my neighbours?"

The server is the one that OPENAI_BASE_URL and OPENAI_API_KEY name.
"""

from __future__ import annotations

import sys

from openai import OpenAI

from srllm_guard import Guard


def main(model: str, question: str) -> None:
    """Ask, and print the answer as it comes: every sentence once it is verified."""
    client = Guard().openai(OpenAI(), inputs=True)
    with client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], stream=True
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} MODEL QUESTION")
    main(sys.argv[1], sys.argv[2])
