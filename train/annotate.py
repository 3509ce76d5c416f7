"""Machine-assisted annotation: a chat model labels and rewrites the rows of a CSV or JSONL file.

    python -m train.annotate input.csv output.jsonl --model openai:gpt-4o-mini --rpm 60

Each answer is checked against the CMD schema; the model is told what is wrong with it and may try
again. Rows are written one by one, so a run that was killed goes on where it stopped. Rows without
a usable answer go to `output.rejected.jsonl` with the reason; the next run tries them again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from srllm_guard.errors import GuardError, MissingExtra
from train.annotation_prompt import EXAMPLE_REPLY, correction, messages
from train.schema import SPLITS, Record, SchemaError, csv_table, decoded, json_lines, to_line

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel


class Limiter(Protocol):
    """What holds requests back; LangChain's rate limiters are of this kind."""

    def acquire(self) -> bool:
        """Wait until the next request may go out."""
        ...


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A row to annotate."""

    id: str
    """Given, or made from the text; decides what a resumed run skips."""
    text: str
    """The text to label and to rewrite."""
    split: str = "train"
    """Split that the record will belong to."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a row is tried, and how long the pauses are."""

    answers: int = 3
    """Answers a model may give to one row until one fits the schema."""
    calls: int = 5
    """Attempts at one request while it ends in an exception (network, overload)."""
    pause: float = 1.0
    """Seconds before the second attempt; doubled before each further one."""
    longest_pause: float = 60.0
    """No pause is longer, in seconds."""
    lost_rows: int = 3
    """Rows in a row that end in exceptions before the run stops, as the service must be down."""


_PATIENCE = Patience()


@dataclass(slots=True)
class Report:
    """What became of the rows of one run."""

    written: int = 0
    rejected: int = 0
    skipped: int = 0
    """Rows that were in the output already."""


class Rejected(Exception):
    """A row got no usable answer; the message says why, without the text."""


class CallFailed(Rejected):
    """The chat model raised on every attempt."""


def annotate(
    rows: Iterable[Unlabelled],
    chat_model: BaseChatModel,
    output: str | Path,
    *,
    patience: Patience = _PATIENCE,
    limiter: Limiter | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Report:
    """Annotate the rows that are not in `output` yet, and append them to it one by one.

    Raises:
        SchemaError: `output` holds something else than records.
        CallFailed: the chat model failed on several rows in a row; what is done stays.
    """
    output = Path(output)
    done, rejects = _done(output), rejects_path(output)
    rejects.unlink(missing_ok=True)
    report, lost = Report(), 0
    for row in rows:
        if row.id in done:
            report.skipped += 1
            continue
        done.add(row.id)
        try:
            line = to_line(_annotated(row, chat_model, patience, limiter, sleep))
        except Rejected as error:
            reject = {"id": row.id, "reason": str(error), "text": row.text, "split": row.split}
            _append(rejects, json.dumps(reject) + "\n")
            report.rejected += 1
            lost = lost + 1 if isinstance(error, CallFailed) else 0
            if lost >= patience.lost_rows:
                raise
        else:
            _append(output, line)
            report.written += 1
            lost = 0
    return report


def read_rows(path: str | Path, column: str = "text", split: str = "train") -> list[Unlabelled]:
    """Rows of a CSV (".csv") or JSON Lines file; columns `id` and `split` count if present.

    Without an id a row gets one made from its text, so the same text is annotated once.

    Raises:
        SchemaError: the column is missing (the message names those there are), or two rows have one
            id and different texts.
    """
    path = Path(path)
    rows: dict[str, Unlabelled] = {}
    for place, row in _csv(path) if path.suffix.lower() == ".csv" else json_lines(path):
        if not isinstance(row, dict) or not isinstance(text := row.get(column), str):
            names = ", ".join(f'"{name}"' for name in row) if isinstance(row, dict) else "none"
            raise SchemaError(f'{place}: no text in column "{column}"; the columns are {names}')
        part = row.get("split") or split
        if part not in SPLITS:
            raise SchemaError(f'{place}: column "split" must be one of {", ".join(SPLITS)}')
        name = row.get("id")
        if name is None or name == "":
            name = "t-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        new = Unlabelled(str(name), text, part)
        if rows.setdefault(new.id, new).text != text:
            raise SchemaError(f"{place}: another row with another text has the same id")
    return list(rows.values())


def rejects_path(output: Path) -> Path:
    """Where the rows without a usable answer go: NAME.rejected.jsonl beside the output."""
    return output.with_name(output.stem + ".rejected.jsonl")


def rate_limiter(requests_per_minute: float) -> Limiter:
    """A limiter that lets single requests out evenly.

    Raises:
        MissingExtra: LangChain is not installed.
    """
    limiters = _langchain("langchain_core.rate_limiters")
    seconds = 60 / requests_per_minute
    limiter: Limiter = limiters.InMemoryRateLimiter(
        requests_per_second=1 / seconds,
        check_every_n_seconds=min(0.1, seconds / 10),
        max_bucket_size=1,
    )
    return limiter


def connect(name: str) -> BaseChatModel:
    """The chat model PROVIDER:NAME, by LangChain's `init_chat_model`.

    Raises:
        MissingExtra: LangChain is not installed.
    """
    model: BaseChatModel = _langchain("langchain.chat_models").init_chat_model(name)
    return model


def _annotated(
    row: Unlabelled,
    chat_model: BaseChatModel,
    patience: Patience,
    limiter: Limiter | None,
    sleep: Callable[[float], object],
) -> Record:
    """Ask until an answer fits the schema, each time telling the model what was wrong."""
    if not row.text.strip():
        raise Rejected("the text is empty")
    if any("\ud800" <= sign <= "\udfff" for sign in row.text):
        raise Rejected("the text holds a lone surrogate")
    talk, reason = messages(row.text), ""
    for _ in range(patience.answers):
        answer = _call(chat_model, talk, patience, limiter, sleep)
        try:
            return parse(answer, row)
        except SchemaError as error:
            reason = str(error)
        talk += [("ai", answer), ("human", correction(reason))]
    raise Rejected(f"no usable answer in {patience.answers}; the last: {reason}")


def parse(answer: str, row: Unlabelled) -> Record:
    """The record that an answer makes of a row.

    Raises:
        SchemaError: the answer is not one JSON object with the right keys and values, or its parts
            contradict each other or the text.
    """
    body = answer.strip()
    if body.startswith("```") and body.endswith("```"):  # many models cannot do without a fence
        body = body[3:-3].removeprefix("json").strip()
    try:
        data = json.loads(body)
    except ValueError:
        raise SchemaError("answer: not one JSON object") from None
    if not isinstance(data, dict):
        raise SchemaError("answer: not one JSON object")
    if unknown := [str(key)[:40] for key in data if key not in EXAMPLE_REPLY]:
        raise SchemaError(f"answer: unknown keys {unknown}; the keys are {list(EXAMPLE_REPLY)}")
    if data.get("safe", "") is None:
        raise SchemaError('answer: "safe" must be a string')
    given = {"id": row.id, "text": row.text, "split": row.split}
    record = Record.from_dict(data | given, "answer")
    if problems := record.contradictions():
        raise SchemaError("answer: " + "; ".join(problems))
    return record


def _call(
    chat_model: BaseChatModel,
    talk: list[tuple[str, str]],
    patience: Patience,
    limiter: Limiter | None,
    sleep: Callable[[float], object],
) -> str:
    """One answer; exceptions of the client, of whatever class, are met with growing pauses."""
    pause = patience.pause
    for attempt in range(1, patience.calls + 1):
        if limiter is not None:
            limiter.acquire()
        try:
            return _text(chat_model.invoke(talk).content)
        except Exception as error:
            if attempt == patience.calls:
                # Messages of clients may repeat the text, so only the class is told.
                name = type(error).__name__
                raise CallFailed(f"the chat model raised {name} {attempt} times") from error
        sleep(min(pause, patience.longest_pause))
        pause *= 2
    raise CallFailed("no attempt was allowed")


def _text(content: str | Sequence[str | dict[str, Any]]) -> str:
    """The text of a message, whose content is a string or a list of blocks."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)


def _append(path: Path, line: str) -> None:
    """Add a line to a file and close it, so that a kill loses no row that was paid for."""
    with path.open("a", encoding="utf-8", newline="\n") as out:
        out.write(line)


def _done(output: Path) -> set[str]:
    """Ids in the output; a last line that was cut short is cut off.

    Raises:
        SchemaError: it holds something else than records; the file stays as it is.
    """
    if not output.exists():
        return set()
    data = output.read_bytes()
    end = data.rfind(b"\n") + 1
    tail = data[end:]
    if tail and not tail.startswith(b"{"):
        raise SchemaError(f"{output.name}: its last line is no record")
    whole = _is_json(tail)  # but for its end
    lines = io.BytesIO(data if whole else data[:end])
    found = {Record.from_dict(row, place).id for place, row in decoded(lines, output.name)}
    if whole:
        _append(output, "\n")
    elif tail:
        os.truncate(output, end)
    return found


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:  # of JSON and of UTF-8
        return False
    return True


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(csv_table(path), 1):
        yield f"{path.name} row {number}", row


def _langchain(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtra(extra="train", needed_for="annotation by a chat model") from None


def main(
    argv: Sequence[str] | None = None, connect: Callable[[str], BaseChatModel] = connect
) -> int:
    """Run the command line; 0 if every row was annotated, 1 if some were rejected, 2 on errors."""
    parser = argparse.ArgumentParser(prog="python -m train.annotate", description=__doc__)
    parser.add_argument("input", type=Path, help="CSV (.csv) or JSON Lines")
    parser.add_argument("output", type=Path, help="JSON Lines of the CMD schema, appended to")
    parser.add_argument("--model", required=True, metavar="PROVIDER:NAME")
    parser.add_argument("--column", default="text", help="column of the text (default: text)")
    parser.add_argument("--split", default="train", choices=SPLITS, help="where rows name none")
    parser.add_argument("--rpm", type=float, default=60, help="requests a minute (default: 60)")
    parser.add_argument("--answers", type=int, default=3, help="answers tried for a row")
    args = parser.parse_args(argv)
    if args.rpm <= 0 or args.answers < 1:
        parser.error("--rpm must be above 0 and --answers at least 1")
    try:
        from tqdm import tqdm

        rows = read_rows(args.input, args.column, args.split)
        chat_model = connect(args.model)
        report = annotate(
            tqdm(rows, unit="row"),
            chat_model,
            args.output,
            patience=Patience(answers=args.answers),
            limiter=rate_limiter(args.rpm),
        )
    except (GuardError, SchemaError, CallFailed, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 2
    print(f"{report.written} annotated, {report.rejected} rejected, {report.skipped} done before")
    return 1 if report.rejected else 0


if __name__ == "__main__":
    sys.exit(main())
