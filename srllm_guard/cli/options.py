"""The command line's options, checked as far as they can be without a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from srllm_guard import __version__
from srllm_guard.cli import export
from srllm_guard.cli.files import FORMATS

_SOURCES = """\
Text comes from the arguments (each one is a text), from standard input (one text, when there is no
argument or it is "-"), or from a file (--input), read as UTF-8, whose suffix tells the form:
  .txt    one text a line
  .csv    one text a row, in --column; all columns are kept, columns named guard_... are added
  .jsonl  one text a line, in the field --column; a field "guard" with the whole result is added
A run that was cut short goes on where it stopped when it is started again with the same --input
and --output; FILE.guard.json beside the output keeps count.
"""

_REWRITE = """\
exit status:
  0    clean: everything was released as it was
  1    changed: something was rewritten or masked
  2    wrong usage
  3    blocked: at least one text was withheld
  4    error
  130  interrupted
"""

_DETECT = """\
exit status:
  0    safe
  1    unsafe: at least one text is
  2    wrong usage
  3    nothing is unsafe, but at least one text could not be judged (it is "unverified")
  4    error
  130  interrupted
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="srllm-guard",
        description="Find unsafe text, rewrite it, and release only what is verified.",
        epilog="srllm-guard COMMAND --help tells the options and the exit status of a command.",
    )
    top.add_argument("--version", action="version", version=f"srllm-guard {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, does, status in (
        ("rewrite", "release safe versions of texts", _REWRITE),
        ("detect", "tell how safe texts are", _DETECT),
    ):
        command = commands.add_parser(
            name,
            help=does,
            description=f"{does.capitalize()}.\n\n{_SOURCES}",
            epilog=status,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("text", nargs="*", metavar="TEXT", help='a text, or "-"')
        _add_file_options(command)
        _add_guard_options(command)
    info = commands.add_parser(
        "info",
        help="print bundle, engine, device and hashes",
        description="Print what would do the work: bundle, engine, device and hashes.",
    )
    info.add_argument("--json", action="store_true", help="print one JSON object")
    _add_guard_options(info)
    export.add_to(commands)
    return top


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options; wrong usage ends the process with status 2, as argparse does."""
    top = parser()
    args = top.parse_args(argv)
    if args.command in ("rewrite", "detect") and (wrong := _conflict(args)):
        top.error(wrong)
    return args


def _conflict(args: argparse.Namespace) -> str | None:
    """Return what is wrong with options that are fine one by one."""
    source, target, column = args.input, args.output, args.column
    suffix = "" if source is None else source.suffix.lower()
    wrong = {
        "--output needs --input": target and not source,
        "--column needs --input": column and not source,
        "--overwrite needs --output": args.overwrite and not target,
        "give texts or --input, not both": source and args.text,
        f"--input must end in {', '.join(FORMATS)}": source and suffix not in FORMATS,
        "--column is for .csv and .jsonl": column and suffix == ".txt",
        f"--output must end in {suffix} like --input": target and target.suffix.lower() != suffix,
        "--json prints to standard output: leave out --output": args.json and target,
        '"-" is standard input and stands alone': "-" in args.text and len(args.text) > 1,
    }
    return next((message for message, applies in wrong.items() if applies), None)


def _add_file_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("files")
    group.add_argument("--input", type=Path, metavar="FILE", help="read texts from this file")
    group.add_argument(
        "--output", type=Path, metavar="FILE", help="write to this file (default: standard output)"
    )
    group.add_argument("--column", metavar="NAME", help='column or field of the text ("text")')
    group.add_argument(
        "--batch-size",
        type=_positive,
        default=32,
        metavar="N",
        help="texts at a time (%(default)s)",
    )
    group.add_argument("--overwrite", action="store_true", help="start the output anew")
    group.add_argument("--json", action="store_true", help="print one JSON object a text")


def _add_guard_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("model and policy")
    group.add_argument(
        "--model",
        metavar="NAME",
        help="folder or Hub id of a bundle, or folder of an export (shipped bundle)",
    )
    group.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda or auto (%(default)s)"
    )
    group.add_argument("--engine", metavar="NAME", help="torch, reference or onnx (best at hand)")
    group.add_argument("--policy", type=Path, metavar="FILE", help="policy as a TOML file")
    group.add_argument(
        "--threshold", type=float, metavar="P", help="unsafe from this score on, 0 to 1"
    )
    group.add_argument(
        "--on-fail",
        choices=("block", "mask", "pass"),
        help="what ends the ladder when no rewrite is verified; pass needs fail_open in --policy",
    )


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
