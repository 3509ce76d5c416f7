from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srllm_guard.cli import main, show
from srllm_guard.cli.resume import Output
from srllm_guard.errors import ConfigError, EngineError
from srllm_guard.labels import LABELS
from srllm_guard.policy import Policy
from srllm_guard.results import Detection, Edit, LabelScore, Moderation, Provenance, Span

BAD, WORSE, FOREIGN = "idiot", "kill", "Bonjour"


class RuleGuard:
    """Judges by three words: one is rewritten, one blocks, one is of another language."""

    def __init__(self, policy: Policy, bundle_hash: str = "abc", fail_at: str | None = None):
        self.policy = policy
        self.bundle_hash = bundle_hash
        self.fail_at = fail_at
        self.batches: list[list[str]] = []

    def info(self) -> Mapping[str, Any]:
        return {"bundle": "rules", "bundle_hash": self.bundle_hash, "engine": "rules"}

    def detect_many(self, texts: Sequence[str]) -> list[Detection]:
        self.batches.append(list(texts))
        if self.fail_at in texts:
            raise EngineError("The model failed.", hint="Try again.")
        return [self._detect(text) for text in texts]

    def moderate_many(self, texts: Sequence[str]) -> list[Moderation]:
        return [
            self._moderate(text, found)
            for text, found in zip(texts, self.detect_many(texts), strict=True)
        ]

    def _detect(self, text: str) -> Detection:
        at = max(text.find(BAD), text.find(WORSE))
        unsafe = at >= 0
        first = {name: LabelScore(values[0], {values[0]: 1.0}) for name, values in LABELS.items()}
        return Detection(
            **{
                **first,
                "toxicity": LabelScore("high", {"high": 1.0}) if unsafe else first["toxicity"],
            },
            score=0.9 if unsafe else 0.1,
            unsafe=unsafe,
            spans=(Span(at, at + 4, "toxicity", 0.9),) if unsafe else (),
            verified=FOREIGN not in text,
            language="fr" if FOREIGN in text else "en",
        )

    def _moderate(self, text: str, found: Detection) -> Moderation:
        same = Moderation(
            action="pass" if found.verified else "unverified",
            text=text,
            original=text,
            before=found,
            after=None,
            edits=(),
            provenance=Provenance("rules", "abc", "", self.policy.hash, "rules", "cpu", "0.1.0"),
            timings={"detect": 1.0},
        )
        if WORSE in text:
            message = self.policy.block_message
            edit = Edit(
                0, len(text), 0, len(message), text, message, "block", found.spans, ("harm",)
            )
            return replace(same, action="block", text=message, edits=(edit,))
        if BAD not in text:
            return same
        start, end = text.index(BAD), text.index(BAD) + len(BAD)
        edit = Edit(
            start, end, start, start + 6, BAD, "person", "rewrite", found.spans, ("toxicity",)
        )
        released = text.replace(BAD, "person", 1)
        return replace(
            same, action="rewrite", text=released, after=self._detect(released), edits=(edit,)
        )


class Shop:
    """Makes guards, and remembers them and the options they were asked for with."""

    def __init__(self, **kwargs: Any):
        self.kwargs = kwargs
        self.options: dict[str, Any] = {}
        self.guard: RuleGuard | None = None

    def __call__(self, **options: Any) -> RuleGuard:
        self.options = options
        self.guard = RuleGuard(options["policy"], **self.kwargs)
        return self.guard

    @property
    def batches(self) -> list[list[str]]:
        assert self.guard is not None
        return self.guard.batches


Cli = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs the command and gives status, standard output and error."""

    def run(
        *argv: str | Path, stdin: bytes = b"", shop: Callable[..., Any] | None = None
    ) -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main([str(each) for each in argv], guard_factory=shop or Shop())
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    return run


# Texts


@pytest.mark.parametrize(
    ("texts", "status", "out"),
    [
        (["Hello there."], 0, b"Hello there.\n"),
        (["You idiot."], 1, b"You person.\n"),
        (["I kill you."], 3, b"[This text was withheld because it could not be made safe.]\n"),
        (["Bonjour."], 0, b"Bonjour.\n"),
        (["Fine.", "You idiot."], 1, b"Fine.\nYou person.\n"),
    ],
)
def test_rewrite_arguments(cli: Cli, texts: list[str], status: int, out: bytes) -> None:
    assert cli("rewrite", *texts) == (status, out, "")


@pytest.mark.parametrize("argument", [[], ["-"]])
@pytest.mark.parametrize(
    "text",
    [
        b"Two lines\r\nand no end",
        b"With an end.\n",
        b"",
        b"\xef\xbb\xbfbyte order mark",
        b"\xff\xfe no UTF-8 \x80\n",
        "naïve \N{THUMBS UP SIGN} \u2028".encode(),
    ],
)
def test_standard_input_comes_back_to_the_byte(cli: Cli, argument: list[str], text: bytes) -> None:
    assert cli("rewrite", *argument, stdin=text) == (0, text, "")


def test_the_byte_order_mark_is_no_part_of_the_text(cli: Cli) -> None:
    shop = Shop()
    cli("rewrite", stdin=b"\xef\xbb\xbfHello", shop=shop)
    assert shop.batches == [["Hello"]]


def test_rewrite_json(cli: Cli) -> None:
    status, out, _ = cli("rewrite", "--json", "Fine.", "You \udc80 idiot.")
    first, second = map(json.loads, out.splitlines())
    assert status == 1
    assert first["action"] == "pass"
    assert second["text"] == "You \udc80 person."
    assert second["edits"][0]["replacement"] == "person"
    assert second["before"]["toxicity"]["value"] == "high"


@pytest.mark.parametrize(
    ("texts", "status", "word"),
    [
        (["Hello."], 0, "safe"),
        (["You idiot."], 1, "unsafe"),
        (["Bonjour."], 3, "unverified"),
        (["Bonjour.", "You idiot."], 1, "unverified"),
    ],
)
def test_detect(cli: Cli, texts: list[str], status: int, word: str) -> None:
    seen, out, _ = cli("detect", *texts)
    assert seen == status
    assert out.decode().split()[0] == word
    assert out.count(b"\n") == len(texts)
    assert b" bias=no toxicity=" in out


def test_detect_json(cli: Cli) -> None:
    _, out, _ = cli("detect", "--json", "You idiot.")
    assert json.loads(out)["spans"] == [
        {"start": 4, "end": 8, "category": "toxicity", "score": 0.9}
    ]


def test_arguments_go_in_batches(cli: Cli) -> None:
    shop = Shop()
    cli("detect", "--batch-size", "2", "a", "b", "c", shop=shop)
    assert shop.batches == [["a", "b"], ["c"]]


# Options


def test_options_reach_the_guard(cli: Cli, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('threshold = 0.2\nmask_text = "***"\n', encoding="utf-8")
    shop = Shop()
    options = ("--model", "m", "--device", "cpu", "--engine", "torch", "--policy", policy)
    cli("rewrite", *options, "--threshold", "0.7", "--on-fail", "mask", "text", shop=shop)
    assert shop.options == {
        "model": "m",
        "device": "cpu",
        "engine": "torch",
        "policy": Policy(threshold=0.7, on_fail="mask", mask_text="***"),
    }


def test_defaults(cli: Cli) -> None:
    shop = Shop()
    cli("rewrite", "text", shop=shop)
    assert shop.options == {"model": None, "device": "auto", "engine": None, "policy": Policy()}


def test_info(cli: Cli) -> None:
    assert cli("info") == (0, b"bundle       rules\nbundle_hash  abc\nengine       rules\n", "")
    assert json.loads(cli("info", "--json")[1])["engine"] == "rules"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["improve"],
        ["rewrite", "--batch-size", "0"],
        ["rewrite", "--batch-size", "many"],
        ["rewrite", "--threshold", "high"],
        ["rewrite", "--on-fail", "explode"],
        ["rewrite", "text", "--input", "a.txt"],
        ["rewrite", "--input", "a.docx"],
        ["rewrite", "--input", "a.txt", "--column", "text"],
        ["rewrite", "--input", "a.txt", "--output", "b.csv"],
        ["rewrite", "--input", "a.txt", "--output", "b.txt", "--json"],
        ["rewrite", "--output", "b.txt", "text"],
        ["rewrite", "--column", "text", "text"],
        ["rewrite", "--overwrite", "text"],
        ["rewrite", "-", "text"],
    ],
)
def test_wrong_usage_is_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv, guard_factory=Shop())
    assert left.value.code == 2
    assert "usage: srllm-guard" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["rewrite", "detect"])
def test_help_tells_the_exit_status(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {status} " in shown for status in (0, 1, 2, 3, 4, 130))


# Files


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_text_file(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path / "in.txt", b"\xef\xbb\xbfHello.\r\n\nYou idiot.\n\xff\x80\nno end")
    target = tmp_path / "out.txt"
    status, out, err = cli("rewrite", "--input", source, "--output", target)
    assert (status, out) == (1, b"")
    assert err == "5 texts: 4 pass, 1 rewrite\n"
    expected = b"\xef\xbb\xbfHello.\r\n\nYou person.\n\xff\x80\nno end"
    assert target.read_bytes() == expected
    assert cli("rewrite", "--input", source)[1] == expected


def test_a_released_line_stays_one_line(cli: Cli, tmp_path: Path) -> None:
    policy = write(tmp_path / "policy.toml", 'block_message = "two\\nlines"')
    source = write(tmp_path / "in.txt", "I kill you.\nFine.\n")
    assert cli("rewrite", "--input", source, "--policy", policy)[1] == b"two lines\nFine.\n"


def test_detect_text_file(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path / "in.txt", "Hello.\nYou idiot.\n")
    status, out, _ = cli("detect", "--input", source)
    assert status == 1
    assert [line.split()[0] for line in out.decode().splitlines()] == ["safe", "unsafe"]


def test_csv_keeps_all_columns_and_adds_its_own(cli: Cli, tmp_path: Path) -> None:
    content = 'id,comment,note\r\n1,"You, idiot.","a ""b"""\r\n2,"two\nlines",\r\n\r\n3\r\n'
    source, target = write(tmp_path / "in.csv", content), tmp_path / "out.csv"
    status, _, err = cli("rewrite", "--input", source, "--output", target, "--column", "comment")
    assert (status, err) == (1, "3 texts: 2 pass, 1 rewrite\n")
    done = rows(target)
    assert [row["id"] for row in done] == ["1", "2", "3"]
    assert [row["comment"] for row in done] == ["You, idiot.", "two\nlines", ""]
    assert [row["note"] for row in done] == ['a "b"', "", ""]
    assert [row["guard_text"] for row in done] == ["You, person.", "two\nlines", ""]
    assert [row["guard_action"] for row in done] == ["rewrite", "pass", "pass"]
    assert [row["guard_score"] for row in done] == ["0.9", "0.1", "0.1"]
    assert [row["guard_score_after"] for row in done] == ["0.1", "", ""]
    assert done[0]["guard_toxicity"] == "high"
    assert target.read_bytes().count(b"\r\n") == 4


def test_csv_takes_long_fields(cli: Cli, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", f"text\n{'a ' * 100_000}\n"), tmp_path / "o.csv"
    assert cli("rewrite", "--input", source, "--output", target)[0] == 0
    assert target.read_bytes().count(b"a " * 100_000) == 2


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_keeps_line_signs_within_fields(cli: Cli, tmp_path: Path, end: str) -> None:
    lines = ["id,text", '1,"one\rtwo"', '2,"three\nfour"', '3,"five\r\nsix"', '4,"a, ""b"""', "5,"]
    source, target = write(tmp_path / "in.csv", end.join([*lines, ""])), tmp_path / "out.csv"
    assert cli("rewrite", "--input", source, "--output", target)[0] == 0
    texts = [row["text"] for row in rows(source)]
    assert texts == ["one\rtwo", "three\nfour", "five\r\nsix", 'a, "b"', ""]
    assert [row["text"] for row in rows(target)] == texts
    assert [row["guard_text"] for row in rows(target)] == texts
    written = target.read_bytes().decode()
    assert written.endswith(f"{end}")
    for line in lines:
        assert f"{line}," in written  # nothing is quoted that was not


def test_csv_detect(cli: Cli, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", "text\nYou idiot.\nBonjour.\n"), tmp_path / "o.csv"
    assert cli("detect", "--input", source, "--output", target)[0] == 1
    first, second = rows(target)
    assert first["guard_unsafe"] == "True"
    assert json.loads(first["guard_spans"])[0]["category"] == "toxicity"
    assert (second["guard_verified"], second["guard_language"]) == ("False", "fr")
    assert "guard_text" not in first
    assert b"\r" not in target.read_bytes()


def test_jsonl_keeps_the_line_and_adds_the_result(cli: Cli, tmp_path: Path) -> None:
    line = '{"n": 1.10, "text": "You idiot.", "long": 12345678901234567890123, "é": [1,2]}'
    source = write(tmp_path / "in.jsonl", f'{line}\r\n\n{{"text":"Fine \\ud800"}}')
    target = tmp_path / "out.jsonl"
    assert cli("rewrite", "--input", source, "--output", target)[0] == 1
    first, second = target.read_bytes().decode().splitlines()
    assert first.startswith(line[:-1] + ', "guard": {')
    assert json.loads(first)["guard"]["text"] == "You person."
    assert json.loads(second)["guard"]["action"] == "pass"
    assert json.loads(second)["text"] == "Fine \ud800"


def test_json_lines_of_a_file(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "body\nYou idiot.\n")
    _, out, _ = cli("detect", "--input", source, "--column", "body", "--json")
    assert json.loads(out)["unsafe"] is True


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("in.csv", "id,body\n1,SECRET\n", 'no column "text"; it has: id, body'),
        ("in.csv", "", "it has: no header"),
        ("in.csv", "1,You SECRET.\n2,b\n", "it has: 2, whose names may be texts. Is its first"),
        ("in.csv", "spam,you SECRET\n", "it has: 2, whose names may be texts"),
        ("in.csv", f"id,SECRET{'x' * 40}\n", "it has: 2, whose names may be texts"),
        ("in.csv", "1,a\n", "it has: 2, whose names may be texts"),
        ("in.csv", "naïve_1,b.c-d\n", "it has: naïve_1, b.c-d"),
        ("in.jsonl", '{"You SECRET!": 1, "id": 1}\n', "fields: 2, whose names may be texts"),
        ("in.jsonl", "{}\n", "its fields: none"),
        ("in.csv", "text,guard_text\nSECRET,x\n", "already has the column guard_text"),
        ("in.csv", "text\nSECRET,1\n", "row 1: 2 fields; the header has 1"),
        ("in.csv", 'text\n"SECRET" x\n', "no valid CSV"),
        ("in.jsonl", '{"body": "SECRET", "id": 1}\n', 'no field "text"; its fields: body, id'),
        ("in.jsonl", '{"text": "SECRET"\n', "row 1: no valid JSON"),
        ("in.jsonl", "[" * 100_000, "row 1: no valid JSON"),
        ("in.jsonl", '["SECRET"]\n', "not a JSON object but list"),
        ("in.jsonl", '{"text": ["SECRET"]}\n', "is list, not a string"),
        ("in.jsonl", '{"text": "SECRET", "guard": 1}\n', 'a field "guard" already'),
        ("in.txt", "SECRET".encode("utf-16"), "UTF-16"),
    ],
)
def test_bad_files_are_refused_before_a_model_is_loaded(
    cli: Cli, tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    source, shop = write(tmp_path / name, content), Shop()
    target = tmp_path / f"out{source.suffix}"
    status, out, err = cli("rewrite", "--input", source, "--output", target, shop=shop)
    assert (status, out) == (4, b"")
    assert err.startswith("error: ")
    assert says in err
    assert "SECRET" not in err
    assert err.count("\n") == 1
    assert shop.guard is None
    assert not target.exists()


def test_what_came_before_a_bad_row_is_written(cli: Cli, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {n}"}) for n in range(5)]
    source = write(tmp_path / "in.jsonl", "\n".join([*lines, '{"txet": "SECRET"}']))
    target = tmp_path / "out.jsonl"
    status, _, err = cli("rewrite", "--input", source, "--output", target, "--batch-size", "3")
    assert status == 4
    assert "row 6" in err
    assert "SECRET" not in err
    assert [json.loads(each)["text"] for each in target.read_text().splitlines()] == [
        f"text {n}" for n in range(5)
    ]


def test_missing_files_and_folders(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("rewrite", "--input", tmp_path / "none.txt")
    assert status == 4
    assert "none.txt cannot be read: No such file" in err
    source = write(tmp_path / "in.txt", "Fine.\n")
    status, _, err = cli("rewrite", "--input", source, "--output", tmp_path / "no" / "out.txt")
    assert status == 4
    assert "cannot be written" in err
    status, _, err = cli("rewrite", "--input", source, "--output", source)
    assert status == 4
    assert "same file" in err
    assert source.read_bytes() == b"Fine.\n"


# Going on after an interruption


def texts_csv(path: Path, count: int) -> Path:
    body = "".join(f'"{"You idiot" if n % 3 == 0 else "Fine"} {n}\nend"\n' for n in range(count))
    return write(path, "text\n" + body)


def test_a_failed_run_goes_on_where_it_stopped(cli: Cli, tmp_path: Path) -> None:
    source = texts_csv(tmp_path / "in.csv", 10)
    whole, target = tmp_path / "whole.csv", tmp_path / "out.csv"
    argv = ("rewrite", "--input", source, "--batch-size", "3", "--output")
    expected = cli(*argv, whole)
    failing = Shop(fail_at="Fine 7\nend")
    status, _, err = cli(*argv, target, shop=failing)
    assert status == 4
    assert err == "error: The model failed. Try again.\n"
    assert len(rows(target)) == 6
    shop = Shop()
    assert cli(*argv, target, shop=shop) == expected
    assert [len(batch) for batch in shop.batches] == [3, 1]
    assert target.read_bytes() == whole.read_bytes()


def test_a_finished_run_does_nothing_more_and_keeps_its_status(cli: Cli, tmp_path: Path) -> None:
    source, target = texts_csv(tmp_path / "in.csv", 4), tmp_path / "out.csv"
    first = cli("rewrite", "--input", source, "--output", target)
    content, shop = target.read_bytes(), Shop()
    assert cli("rewrite", "--input", source, "--output", target, shop=shop) == first
    assert first[0] == 1
    assert shop.batches == []
    assert target.read_bytes() == content


@pytest.mark.parametrize("torn", [b'"half a ro', b"Fine,but,not,counted\n" * 99, b"\xf0\x9f"])
def test_what_a_kill_left_of_a_batch_is_done_again(cli: Cli, tmp_path: Path, torn: bytes) -> None:
    source, target = texts_csv(tmp_path / "in.csv", 7), tmp_path / "out.csv"
    argv = ("rewrite", "--input", source, "--output", target, "--batch-size", "2")
    cli(*argv, "--output", tmp_path / "whole.csv")
    cli(*argv, shop=Shop(fail_at="Fine 5\nend"))
    with target.open("ab") as stream:
        stream.write(torn)
    assert cli(*argv)[0] == 1
    assert target.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_kill_between_two_batches(tmp_path: Path) -> None:
    source, target = texts_csv(tmp_path / "in.csv", 6), tmp_path / "out.csv"
    code = (
        "import os, sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from test_cli import Shop, RuleGuard, main\n"
        "class Killed(RuleGuard):\n"
        "    def detect_many(self, texts):\n"
        "        if len(self.batches) == 2: os.kill(os.getpid(), 9)\n"
        "        return super().detect_many(texts)\n"
        "main(sys.argv[1:], guard_factory=lambda policy, **_: Killed(policy))\n"
    )
    argv = ["rewrite", "--input", str(source), "--output", str(target), "--batch-size", "2"]
    here = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", code, here, *argv], check=False)
    assert killed.returncode == -9
    assert len(rows(target)) == 4
    shop = Shop()
    assert main(argv, guard_factory=shop) == 1
    assert len(shop.batches) == 1
    assert [row["text"] for row in rows(target)] == [row["text"] for row in rows(source)]


def test_an_interruption_leaves_whole_rows(cli: Cli, tmp_path: Path) -> None:
    class Impatient(RuleGuard):
        def detect_many(self, texts: Sequence[str]) -> list[Detection]:
            if self.batches:
                raise KeyboardInterrupt
            return super().detect_many(texts)

    source, target = texts_csv(tmp_path / "in.csv", 5), tmp_path / "out.csv"
    argv = ("rewrite", "--input", source, "--output", target, "--batch-size", "2")
    status, _, err = cli(*argv, shop=lambda policy, **_: Impatient(policy))
    assert status == 130
    assert err.startswith("interrupted")
    assert len(rows(target)) == 2
    assert cli(*argv)[2] == "5 texts: 3 pass, 2 rewrite\n"


def test_overwrite_starts_anew(cli: Cli, tmp_path: Path) -> None:
    source, target = texts_csv(tmp_path / "in.csv", 3), write(tmp_path / "out.csv", "precious\n")
    argv = ("rewrite", "--input", source, "--output", target)
    status, _, err = cli(*argv)
    assert status == 4
    assert "not written by an earlier run" in err
    assert "--overwrite" in err
    assert target.read_bytes() == b"precious\n"
    assert cli(*argv, "--overwrite")[0] == 1
    assert len(rows(target)) == 3


def test_an_output_of_something_else_is_refused(cli: Cli, tmp_path: Path) -> None:
    source, target = texts_csv(tmp_path / "in.csv", 3), tmp_path / "out.csv"
    argv = ("rewrite", "--input", source, "--output", target)
    cli(*argv)
    content = target.read_bytes()
    for other, names in (
        ((*argv, "--threshold", "0.3"), "another policy."),
        (("detect", *argv[1:]), "another command."),
        ((*argv, "--column", "text"), "another column."),
    ):
        status, _, err = cli(*other)
        assert status == 4
        assert names in err
    status, _, err = cli(*argv, shop=Shop(bundle_hash="def"))
    assert status == 4
    assert "another bundle." in err
    texts_csv(source, 4)
    status, _, err = cli(*argv)
    assert status == 4
    assert "another input." in err
    assert target.read_bytes() == content


def test_a_disk_that_was_full_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "out.csv", iter([None, OSError(28, "No space left on device")])

    def fsync(_: int) -> None:
        if error := next(calls):
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(ConfigError, match="No space left"):
            Output(path, {"input": "a"}, head=b"text,guard_text\n")
    with Output(path, {"input": "a"}, head=b"text,guard_text\n") as output:
        output.add([b"row,row\n"], ["pass"])
    assert path.read_bytes() == b"text,guard_text\nrow,row\n"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"settings": {}}', '{"settings": 3}'])
def test_a_damaged_sidecar_is_refused(tmp_path: Path, damage: str) -> None:
    with Output(tmp_path / "out.txt", {"input": "a"}) as output:
        output.add([b"row\n"], ["pass"])
    write(tmp_path / "out.txt.guard.json", damage)
    with pytest.raises(ConfigError, match="damaged"):
        Output(tmp_path / "out.txt", {"input": "a"})
    assert (tmp_path / "out.txt").read_bytes() == b"row\n"


def test_a_shortened_output_is_refused(tmp_path: Path) -> None:
    with Output(tmp_path / "out.txt", {"input": "a"}) as output:
        output.add([b"row\n"], ["pass"])
    write(tmp_path / "out.txt", "r")
    with pytest.raises(ConfigError, match="shorter"):
        Output(tmp_path / "out.txt", {"input": "a"})


# Errors


@pytest.mark.parametrize("raised", [ValueError, KeyError, MemoryError])
def test_an_unexpected_error_shows_neither_traceback_nor_text(
    cli: Cli, raised: type[Exception]
) -> None:
    class Broken(RuleGuard):
        def detect_many(self, texts: Sequence[str]) -> list[Detection]:
            raise raised(texts[0])

    status, out, err = cli("rewrite", "SECRET text", shop=lambda policy, **_: Broken(policy))
    assert (status, out) == (4, b"")
    assert err.startswith(f"error: unexpected {raised.__name__} at test_cli.py:")
    assert "SECRET" not in err
    assert "Traceback" not in err


def test_an_impossible_policy(cli: Cli) -> None:
    status, _, err = cli("rewrite", "--threshold", "1.5", "text")
    assert status == 4
    assert err == "error: Policy.threshold is 1.5; allowed: a number from 0 to 1, or None.\n"


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_cli import Shop, main\n"
        "raise SystemExit(main(['rewrite', 'x' * 100_000, 'y'], guard_factory=Shop()))\n"
    )
    read, write_end = os.pipe()
    os.close(read)
    left = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)
    assert left.returncode == 4
    assert left.stderr == b""


# On a terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_a_terminal_shows_the_changed_words(terminal: Terminal) -> None:
    console = show.terminal(terminal)
    assert console is not None
    guard = RuleGuard(Policy())
    show.moderated(console, guard.moderate_many(["You [red]idiot\x1b[2J are late."])[0])
    shown = terminal.getvalue()
    assert "\x1b[9;31midiot\x1b[0m\x1b[32mperson\x1b[0m" in shown
    assert "You [red]" in shown
    assert "\u241b[2J are late." in shown
    assert "\x1b[2J" not in shown
    assert "rewrite, score 0.900 -> 0.100, bias=no" in shown


def test_a_terminal_does_not_show_a_withheld_text(terminal: Terminal) -> None:
    console = show.terminal(terminal)
    assert console is not None
    show.moderated(console, RuleGuard(Policy()).moderate_many(["I kill you."])[0])
    assert "withheld" in terminal.getvalue()
    assert "kill" not in terminal.getvalue()


def test_a_terminal_marks_unsafe_phrases(terminal: Terminal) -> None:
    console = show.terminal(terminal)
    assert console is not None
    text = "\ud800 You kill."
    show.detected(console, text, RuleGuard(Policy()).detect_many([text])[0])
    assert "\ufffd You \x1b[1;31mkill\x1b[0m." in terminal.getvalue()


def test_a_progress_bar_only_on_a_terminal(terminal: Terminal) -> None:
    with show.progress(terminal, total=10, done=4) as advance:
        advance(6)
    assert "10/10" in terminal.getvalue()
    pipe = io.StringIO()
    with show.progress(pipe, total=10, done=0) as advance:
        advance(10)
    assert pipe.getvalue() == ""


def test_no_colour_when_asked(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert show.terminal(terminal) is None


def test_changes_put_both_texts_together_again() -> None:
    old, new = "Old people can't learn,  ever.", "Some people can't learn  it, yet."
    pieces = list(show.changes(old, new))
    assert "".join(piece for kind, piece in pieces if kind != "added") == old
    assert "".join(piece for kind, piece in pieces if kind != "removed") == new
    assert ("removed", "Old") in pieces
    assert ("added", "Some") in pieces
