"""The command `srllm-guard`: rewrite, detect, info and export."""

from __future__ import annotations

import codecs
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from srllm_guard.cli import export, show
from srllm_guard.cli.files import FORMATS, Result, Row, Source, outcome, to_bytes, to_json, verdict
from srllm_guard.cli.options import parse
from srllm_guard.cli.resume import Output, sha256
from srllm_guard.errors import ConfigError, GuardError
from srllm_guard.policy import Policy
from srllm_guard.results import Detection, Moderation

if TYPE_CHECKING:
    from argparse import Namespace

CLEAN, CHANGED, BLOCKED, ERROR, INTERRUPTED = 0, 1, 3, 4, 130
"""Exit status; 2 is argparse's, for wrong usage. For detect: safe, unsafe, unverified."""

_STATUS = {
    "rewrite": {"block": BLOCKED, "rewrite": CHANGED, "mask": CHANGED},
    "detect": {"unsafe": CHANGED, "unverified": BLOCKED},
}
"""What the outcomes of a command mean for its status; the first that occurs counts."""

T = TypeVar("T")


class Judge(Protocol):
    """What the command line needs of a guard."""

    def detect_many(self, texts: Sequence[str]) -> Sequence[Detection]:
        """Return one detection a text, in order."""

    def moderate_many(self, texts: Sequence[str]) -> Sequence[Moderation]:
        """Return one moderation a text, in order."""

    def info(self) -> Mapping[str, Any]:
        """Return bundle, engine, device and hashes."""


def load_guard(*, model: str | None, device: str, engine: str | None, policy: Policy) -> Judge:
    """Return the guard that the options describe."""
    from srllm_guard.guard import Guard

    return Guard(model=model, device=device, engine=engine, policy=policy)


def main(argv: list[str] | None = None, *, guard_factory: Callable[..., Judge] = load_guard) -> int:
    """Run one command and return its exit status; `guard_factory` takes the place of `load_guard`.

    Errors go to standard error as one line that never holds any of the texts.
    """
    args = parse(argv)
    try:
        return _run(args, guard_factory)
    except GuardError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print("interrupted; with --output, the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader left; what is still buffered must not raise again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except OSError as error:
        return _failed(f"{error.filename or 'a file'}: {error.strerror or type(error).__name__}.")
    except Exception as error:  # noqa: BLE001
        # Neither the message nor the traceback may be shown: both can quote the text.
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return _failed(f"unexpected {type(error).__name__} at {where}; please report it.")


def _run(args: Namespace, guard_factory: Callable[..., Judge]) -> int:
    if args.command == "export":
        _write(to_bytes(export.run(args)))
        return CLEAN
    policy = _policy(args)

    def load() -> Judge:
        return guard_factory(
            model=args.model, device=args.device, engine=args.engine, policy=policy
        )

    if args.command == "info":
        return _info(args, load())
    if args.input is None:
        return _texts(args, load)
    return _file(args, policy, load)


def _policy(args: Namespace) -> Policy:
    policy = Policy() if args.policy is None else Policy.from_toml(args.policy)
    given = {"threshold": args.threshold, "on_fail": args.on_fail}
    return replace(policy, **{name: value for name, value in given.items() if value is not None})


def _info(args: Namespace, guard: Judge) -> int:
    info = dict(guard.info())
    if args.json:
        _write(to_json(info) + b"\n")
        return CLEAN
    width = max(map(len, info), default=0)
    _write(to_bytes("".join(f"{name:{width}}  {value}\n" for name, value in info.items())))
    return CLEAN


def _texts(args: Namespace, load: Callable[[], Judge]) -> int:
    """Judge texts from the arguments or from standard input; print what becomes of each."""
    from_stdin = args.text in ([], ["-"])
    texts, bom = _standard_input() if from_stdin else (args.text, b"")
    guard, outcomes = load(), Counter[str]()
    console = None if args.json else show.terminal(sys.stdout)
    for batch in _batches(texts, args.batch_size):
        for text, result in zip(batch, _judge(guard, args.command, batch), strict=True):
            outcomes[outcome(result)] += 1
            if console is None:
                _write(_printed(result, args.json, bom=bom, end=b"" if from_stdin else b"\n"))
            elif isinstance(result, Detection):
                show.detected(console, text, result)
            else:
                show.moderated(console, result)
    return _status(args.command, outcomes)


def _standard_input() -> tuple[list[str], bytes]:
    if sys.stdin.isatty():
        print("reading from the terminal; end the text with Ctrl-D", file=sys.stderr)
    content = sys.stdin.buffer.read()
    bom = codecs.BOM_UTF8 if content.startswith(codecs.BOM_UTF8) else b""
    return [content[len(bom) :].decode("utf-8", "surrogateescape")], bom


def _printed(result: Result, as_json: bool, *, bom: bytes, end: bytes) -> bytes:
    if as_json:
        return to_json(result.to_dict()) + b"\n"
    if isinstance(result, Detection):
        return to_bytes(verdict(result)) + b"\n"
    return bom + to_bytes(result.text) + end


def _file(args: Namespace, policy: Policy, load: Callable[[], Judge]) -> int:
    """Judge the texts of a file; write the rows with their results."""
    source = FORMATS[args.input.suffix.lower()](args.input, args.column)
    next(source.rows(), None)  # a file of the wrong kind is refused before a model is loaded
    if args.output is None:
        return _file_to_stdout(args, source, load())
    if args.output.exists() and args.output.samefile(args.input):
        raise ConfigError(f"--output is the same file as --input: {args.output}.")
    guard = load()
    settings = _settings(args, policy, guard)
    head = source.head(args.command)
    with (
        Output(args.output, settings, head=head, overwrite=args.overwrite) as output,
        show.progress(sys.stderr, total=source.count(), done=output.done) as advance,
    ):
        for batch in _batches(islice(source.rows(), output.done, None), args.batch_size):
            results = _judge(guard, args.command, [row.text for row in batch])
            output.add(_rows(source, batch, results), map(outcome, results))
            advance(len(batch))
    counted = ", ".join(f"{count} {name}" for name, count in sorted(output.outcomes.items()))
    print(f"{output.done} texts{': ' if counted else ''}{counted}", file=sys.stderr)
    return _status(args.command, output.outcomes)


def _file_to_stdout(args: Namespace, source: Source, guard: Judge) -> int:
    outcomes = Counter[str]()
    if not args.json:
        _write(source.head(args.command))
    for batch in _batches(source.rows(), args.batch_size):
        results = _judge(guard, args.command, [row.text for row in batch])
        outcomes.update(map(outcome, results))
        if args.json:
            _write(b"".join(to_json(result.to_dict()) + b"\n" for result in results))
        else:
            _write(b"".join(_rows(source, batch, results)))
    return _status(args.command, outcomes)


def _settings(args: Namespace, policy: Policy, guard: Judge) -> dict[str, str]:
    """Return what all rows of one output must have in common."""
    info = guard.info()
    return {
        "command": args.command,
        "column": args.column or "",
        "input": sha256(args.input),
        "policy": policy.hash,
        "bundle": str(info.get("bundle_hash", "")),
        "base": str(info.get("base_hash", "")),
    }


def _judge(guard: Judge, command: str, texts: Sequence[str]) -> Sequence[Result]:
    return guard.detect_many(texts) if command == "detect" else guard.moderate_many(texts)


def _rows(source: Source, batch: Sequence[Row], results: Sequence[Result]) -> list[bytes]:
    return [source.written(row.raw, result) for row, result in zip(batch, results, strict=True)]


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; what came before an error is yielded before it is raised."""
    batch: list[T] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except ConfigError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _status(command: str, outcomes: Mapping[str, int]) -> int:
    found = (status for name, status in _STATUS[command].items() if outcomes.get(name))
    return next(found, CLEAN)


def _write(content: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return ERROR
