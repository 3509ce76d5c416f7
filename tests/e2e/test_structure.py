"""Structured text on the shipped bundle: what is around the prose survives a real rewrite."""

from __future__ import annotations

import csv
import io
import json

from srllm_guard import Guard

INSULT = "Send me the invoice by Friday, you clueless moron."
PLAIN = "The bus leaves at 9."


def test_json_parses_and_only_the_unsafe_string_changed(guard: Guard) -> None:
    value = {"id": "a-7", "status": "done", "n": [1.50, None], "say": INSULT, "more": [PLAIN]}
    text = json.dumps(value, indent=1)
    result = guard.moderate(text, format="json")
    released = json.loads(result.text)
    assert result.safe
    assert released["say"] != INSULT
    assert "moron" not in released["say"]
    assert {**released, "say": INSULT} == value
    assert guard.moderate(result.text, format="json").text == result.text


def test_html_and_markdown_keep_their_marks(guard: Guard) -> None:
    page = (
        f'<h1 class="moron">{PLAIN}</h1><p>Send me the <b>invoice</b> by Friday,\n you moron.</p>'
    )
    html = guard.moderate(page, format="html")
    assert html.safe
    assert html.text.startswith(f'<h1 class="moron">{PLAIN}</h1><p>')
    assert html.text.endswith("</p>")
    assert html.text.count("<b>") == html.text.count("</b>") == 1
    assert "you moron" not in html.text
    note = f"# {PLAIN}\n\n> {INSULT}\n\n```\nmoron = 1\n```\n- [the bus](https://example.org)\n"
    markdown = guard.moderate(note, format="markdown")
    assert markdown.safe
    first, quote, *rest = markdown.text.split("\n\n")
    assert first == f"# {PLAIN}"
    assert quote.startswith("> ")
    assert "moron" not in quote
    assert rest == ["```\nmoron = 1\n```\n- [the bus](https://example.org)\n"]


def test_csv_keeps_its_cells(guard: Guard) -> None:
    rows = [["id", "comment"], ["1", PLAIN], ["2", INSULT]]
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    released = list(csv.reader(io.StringIO(guard.rewrite(file.getvalue(), format="csv"))))
    assert released[:2] == rows[:2]
    assert released[2][0] == "2"
    assert len(released[2]) == 2
    assert "moron" not in released[2][1]


def test_safe_documents_come_back_as_the_same_string(guard: Guard) -> None:
    documents = [
        ("json", json.dumps({"a": PLAIN, "b": ["Two of the five boxes were empty.", 1.0]})),
        ("html", f"<p>{PLAIN} <b>Fish</b> &amp; chips<br>at noon</p>"),
        ("markdown", f"# Plan\n\n{PLAIN}\n\n| day | what we do |\n|---|---|\n| Monday | rest |\n"),
        ("email", f"Hi Ana,\n\n> {PLAIN}\n\nThank you.\n-- \nBob\n"),
        ("transcript", f"Ana: {PLAIN}\nBob: Thank you, see you at 9.\n"),
    ]
    for format_, text in documents:
        assert guard.moderate(text, format=format_).text is text  # type: ignore[arg-type]


def test_tool_calls_keep_names_and_ids(guard: Guard) -> None:
    call = {"name": "send", "args": {"to": "ed@example.org", "text": INSULT}, "id": "call_1"}
    [done] = guard.moderate_tool_calls([call])
    assert done.moderation.safe
    assert "moron" not in done.call["args"]["text"]
    assert {**done.call, "args": None} == {**call, "args": None}
    assert done.call["args"]["to"] == "ed@example.org"
