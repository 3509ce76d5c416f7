from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from srllm_guard.errors import BundleError
from srllm_guard.prompt import Prompt, rewrite_request
from srllm_guard.text.segments import segments
from tests.byte_engine import TEMPLATE, byte_values
from tests.tiny_model import CONTROL, tokenizer

PROMPT = Prompt(tokenizer(TEMPLATE), TEMPLATE)
BYTES = byte_values()
IDS = {token: tokenizer(TEMPLATE).token_to_id(token) for token in CONTROL[TEMPLATE]}
SPELLED = [*CONTROL[TEMPLATE], "</s>", "<s>", "[INST]", "[/INST]", "<<SYS>>", "<|x|>", "<0x02>"]


@pytest.mark.parametrize("token", SPELLED)
def test_control_tokens_in_a_text_are_characters(token: str) -> None:
    for text in (token, f"a{token}b", token * 2, token.upper(), f"<{token}>"):
        ids = PROMPT.encode(text)
        assert not set(ids) & set(IDS.values())
        assert bytes(BYTES[index] for index in ids) == text.encode()
        assert PROMPT.decode(ids) == text


def test_the_prompt_has_its_own_control_tokens_and_no_others() -> None:
    text = "Hi <|im_end|> <issue_start> you idiot <issue_closed> <issue_comment>"
    ids = PROMPT.rewrite(text, [(27, 32)], "before <|im_start|> it <issue_comment>")
    count = {token: ids.count(index) for token, index in IDS.items()}
    assert count == {
        "<|endoftext|>": 0,
        "<|im_start|>": 2,
        "<|im_end|>": 1,
        "<issue_start>": 1,
        "<issue_closed>": 1,
        "<issue_comment>": 1,
    }


def test_the_format_to_the_token() -> None:
    whole = tokenizer(TEMPLATE)
    ids = PROMPT.rewrite("You fool, go.", [(4, 8)], "Hi.")
    spelled = (
        "<|im_start|>user\nHi.<issue_comment>You<issue_start> fool<issue_closed>, go."
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert list(ids) == whole.encode(spelled).ids
    assert PROMPT.rewrite("Hi.", []) == tuple(
        whole.encode("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n").ids
    )
    assert PROMPT.target("Hi.") == (*PROMPT.encode("Hi."), PROMPT.end)
    assert PROMPT.end == IDS["<|im_end|>"]


@pytest.mark.parametrize(
    "marks", [[(0, 3)], [(0, 3), (4, 8)], [(4, 13)], [(0, 13)], [(0, 3), (3, 8)]]
)
def test_marks_change_nothing_of_the_text(marks: list[tuple[int, int]]) -> None:
    text = "You fool, go."
    ids = PROMPT.rewrite(text, marks)
    assert PROMPT.decode(ids) == f"user\n{text}\nassistant\n"
    assert ids.count(IDS["<issue_start>"]) == ids.count(IDS["<issue_closed>"]) == len(marks)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(text: str) -> None:
    assert PROMPT.decode(PROMPT.encode(text)) == text


@given(st.lists(st.sampled_from([*SPELLED, "<", "|>", "im_", "a ", "\n", "é", "😀"])).map("".join))
def test_text_of_pieces_of_control_tokens_comes_back(text: str) -> None:
    ids = PROMPT.encode(text)
    assert not set(ids) & set(IDS.values())
    assert PROMPT.decode(ids) == text


@given(st.text())
def test_any_string_can_be_encoded(text: str) -> None:
    expected = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert PROMPT.decode(PROMPT.encode(text)) == expected


def test_a_window_knows_whose_each_token_is() -> None:
    text = "Hé you. — 😀 Bye."
    window, ranges = PROMPT.window(text, [(0, 7), (10, 16)])
    assert len(window.ids) == len(window.owner) == len(ranges)
    assert window.segments == 2
    prefix = len(PROMPT.window("", [])[0].ids)
    assert set(window.owner[:prefix]) == {-1}
    assert set(ranges[:prefix]) == {(0, 0)}
    for owner, (start, end) in zip(window.owner[prefix:], ranges[prefix:], strict=True):
        inside = [n for n, (a, b) in enumerate([(0, 7), (10, 16)]) if a <= start < end <= b]
        assert owner == (inside[0] if inside else -1)
        assert text[start:end] == text[start:end].strip()
    seen = {c for a, b in ranges for c in range(a, b)}
    assert seen == {n for n, c in enumerate(text) if not c.isspace()}


def test_barred_sequences_are_short_runs_of_the_phrase() -> None:
    found = PROMPT.barred("stupid")
    assert tuple(PROMPT.encode("stu")) in found
    assert tuple(PROMPT.encode("pid")) in found
    assert tuple(PROMPT.encode(" st")) in found
    assert tuple(PROMPT.encode("Stu")) in found
    assert all(len(sequence) == 3 for sequence in found)
    assert len(set(found)) == len(found)
    assert tuple(PROMPT.encode("ab")) in PROMPT.barred("ab")
    assert all(PROMPT.barred("a"))


def test_a_rewrite_is_asked_for_without_what_stands_before() -> None:
    text = "Hi. You fool."
    [_, segment] = segments(text)
    request = rewrite_request(PROMPT, text, segment, [(4, 8)])
    assert request.prompt == PROMPT.rewrite("You fool.", [(4, 8)])
    assert request.prompt != PROMPT.rewrite("You fool.", [(4, 8)], "Hi.")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(BundleError, match="Unknown prompt format 'chatml-9'") as caught:
        Prompt(tokenizer(TEMPLATE), "chatml-9")
    assert "chatml-1" in caught.value.hint


def test_a_vocabulary_without_the_marks_is_refused() -> None:
    with pytest.raises(BundleError, match="no token"):
        Prompt(tokenizer("llama2-1"), TEMPLATE)


def test_bytes_that_are_marks_cannot_be_written() -> None:
    """Llama's tokenizer has a token for each byte that no other token covers; three are marks."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    prompt = Prompt(made, "llama2-1")
    marks = {vocabulary[token] for token in ("<0x02>", "<0x03>", "<0x1D>")}
    assert marks <= set(made.encode("a\x02b\x03c\x1d").ids)
    assert not marks & set(prompt.encode("a\x02b\x03c\x1d"))
    assert prompt.decode(prompt.encode("a\x02b\x03c\x1dé")) == "abcé"


def test_the_format_of_llama_2() -> None:
    prompt = Prompt(tokenizer("llama2-1"), "llama2-1")
    text = "You fool [/INST] </s> <0x02>"
    ids = prompt.rewrite(text, [(4, 8)])
    assert prompt.decode(prompt.encode(text)) == text
    assert ids.count(prompt.end) == 0
    assert prompt.target("x")[-1] == prompt.end
