"""The command `srllm-guard export`: write a bundle as a folder that ONNX Runtime runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from srllm_guard.models.exported import PRECISIONS

if TYPE_CHECKING:
    from argparse import Namespace


def add_to(commands: Any) -> None:
    """Add the command to argparse's subcommands."""
    command = commands.add_parser(
        "export",
        help="write the model for ONNX Runtime, which needs no torch",
        description="Merge a bundle into its base, export it, and compare it with what it was made "
        "from. The folder is written when it is near enough. Needs the extra `export`; what is "
        "written runs with the extra `onnx`: srllm-guard rewrite --model DIR.",
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="folder to write")
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the weights; fp16 is for CUDA (%(default)s)",
    )
    command.add_argument("--model", metavar="NAME", help="bundle: a folder or a Hub id (shipped)")
    command.add_argument("--base", type=Path, metavar="DIR", help="folder of the base weights")
    command.add_argument("--overwrite", action="store_true", help="replace an export in DIR")


def run(args: Namespace) -> str:
    """Export, and return what there is to say about it.

    Raises:
        GuardError: see `srllm_guard.export.export`.
    """
    from srllm_guard.export import export

    made = export(
        args.folder,
        precision=args.precision,
        model=args.model,
        base=args.base,
        overwrite=args.overwrite,
    )
    size = sum(path.stat().st_size for path in made.folder.iterdir()) / 2**20
    parity = made.parity
    return (
        f"{made.folder}: {made.manifest.title} in {made.precision}, {size:.0f} MB\n"
        f"against fp32 in torch, on {parity['texts']} texts: scores differ by at most "
        f"{parity['score']:.4f}, {parity['flips']:.1%} of {parity['tokens']} tokens differ\n"
    )
