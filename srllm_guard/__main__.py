"""`python -m srllm_guard` is the command `srllm-guard`."""

from __future__ import annotations

from srllm_guard.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
