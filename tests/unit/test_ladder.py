"""Which rung of the ladder a text ends on, and what goes back to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from srllm_guard import Guard
from srllm_guard.engines.base import Continuation, Request
from tests.byte_engine import ByteEngine
from tests.checks import check, guard


def test_first_rung_greedy(byte_engine: ByteEngine, byte_guard: Guard) -> None:
    assert byte_guard.rewrite("You idiot.") == "You person."
    [request] = byte_engine.asked
    assert request.temperature == 0
    assert request.barred == ()


def test_a_rewrite_sees_its_sentence_alone(byte_engine: ByteEngine, byte_guard: Guard) -> None:
    byte_guard.moderate("Ed is late. You idiot. Bye.")
    [request] = byte_engine.asked
    read = byte_engine.read(request.prompt)
    assert "user\nYou\0 idiot\0.\0" in read
    assert "late" not in read
    assert "Bye" not in read


@pytest.mark.parametrize("sign", [*"\x0b\x0c\x1c\x1d\x1e\x85"])
def test_a_sentence_is_rewritten_though_it_holds_a_sign_that_ends_no_line(sign: str) -> None:
    text = f"You idiot,{sign}the report is late."
    result = guard(ladder=("rewrite", "block")).moderate(text)
    assert (result.action, result.text) == ("rewrite", text.replace("idiot", "person"))


@pytest.mark.parametrize("sign", ["\n", "\r", "\r\n", "\u2028", "\u2029"])
def test_a_rewrite_of_several_lines_is_refused(sign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.byte_engine.GREEDY", f"person,{sign}dear")
    result = guard(ladder=("rewrite", "block")).moderate("You idiot, the report is late.")
    assert result.action == "block"
    assert "rewrite: line_break" in result.edits[0].reasons


def test_second_attempt_bars_the_phrase() -> None:
    engine = ByteEngine(words={"idiot": "toxicity", "person": "harm"})
    result = guard(engine, ladder=("rewrite", "block")).moderate("You idiot.")
    assert result.action == "block"
    first, second = engine.asked
    assert first.barred == ()
    assert second.barred
    [edit] = result.edits
    assert edit.reasons[-2:] == ("rewrite: still_unsafe", "barred: still_unsafe")


def test_third_attempt_draws_candidates() -> None:
    engine = ByteEngine(words={"idiot": "toxicity", "person": "harm"})
    result = guard(engine, candidates=4).moderate("You idiot.")
    assert result.action == "rewrite"
    assert [edit.rung for edit in result.edits] == ["candidates"]
    drawn = engine.asked[2:]
    assert len(drawn) == 4
    assert len({request.seed for request in drawn}) == 4
    assert {request.temperature for request in drawn} == {0.7}
    two = ByteEngine(words=engine.words)
    guard(two, candidates=4).moderate("You idiot. That idiot.")
    assert len({request.seed for request in two.asked[4:]}) == 8  # each segment has its own
    assert {request.seed for request in drawn} < {request.seed for request in two.asked[4:]}
    again = guard(ByteEngine(words=engine.words), candidates=4).moderate("You idiot.")
    assert again == result
    other = ByteEngine(words=engine.words)
    guard(other, candidates=4, seed=1).moderate("You idiot.")
    assert {r.seed for r in other.asked[2:]} != {r.seed for r in drawn}


def test_no_candidates_are_drawn_when_none_are_asked_for() -> None:
    engine = ByteEngine(words={"idiot": "toxicity", "person": "harm"})
    result = guard(engine).moderate("You idiot.")
    assert result.action == "mask"
    assert [edit.rung for edit in result.edits] == ["mask"]
    assert len(engine.asked) == 2


def test_fourth_rung_masks_the_spans() -> None:
    result = guard(ByteEngine(fault="empty")).moderate("Ed, you stupid idiot, call 555 today.")
    assert result.action == "mask"
    assert result.text == "Ed, you [removed], call 555 today."
    assert result.edits[0].action == "mask"
    assert result.safe
    check(result)


def test_phrases_with_little_between_them_share_a_mask() -> None:
    engine = ByteEngine(fault="empty")
    for source, masked in (
        ("Ed is a stupid and an idiot.", "Ed is a [removed]."),
        ("Ed, stupid, idiot, left.", "Ed, [removed], left."),
        ("A stupid 5 idiot left.", "A [removed] 5 [removed] left."),
        ("A stupid late idiot left.", "A [removed] late [removed] left."),
    ):
        assert guard(engine, ladder=("mask",)).rewrite(source) == masked


def test_the_mask_is_that_of_the_policy() -> None:
    assert guard(ladder=("mask",), mask_text="***").rewrite("You idiot, go.") == "You ***, go."
    assert guard(ladder=("mask",), mask_text="").rewrite("You idiot, go.") == "You , go."


def test_a_mask_spares_what_is_protected() -> None:
    engine = ByteEngine(words={"bob@idiot": "toxicity", "trash": "toxicity"})
    result = guard(engine, ladder=("mask",)).moderate("This trash is from jim@x.org or {name}.")
    assert result.text == "This [removed] is from jim@x.org or {name}."
    # What is protected and unsafe cannot be masked away: the text is withheld.
    assert guard(engine, ladder=("mask",)).moderate("Ask bob@idiot.com now.").action == "block"


def test_the_last_rung_blocks() -> None:
    result = guard(ByteEngine(fault="empty"), ladder=("rewrite",), block_message="No.").moderate(
        "You idiot. Bye."
    )
    assert result.action == "block"
    assert result.text == "No."
    assert result.after is None
    assert result.safe
    assert (result.edits[0].start, result.edits[0].end) == (0, 15)
    check(result)


def test_a_ladder_without_rungs_blocks() -> None:
    assert guard(ladder=()).moderate("You idiot.").action == "block"
    assert guard(ladder=()).moderate("You friend.").action == "pass"


def test_on_fail_mask_never_blocks() -> None:
    engine = ByteEngine(fault="empty", words={"idiot": "toxicity", "is": "harm"})
    result = guard(engine, on_fail="mask").moderate("Bye. This idiot is 5 years old! Ok.")
    assert result.action == "mask"
    assert "idiot" not in result.text
    assert result.safe
    check(result)


def test_on_fail_mask_masks_all_where_even_the_mask_is_unsafe() -> None:
    result = guard(ladder=(), on_fail="mask", mask_text="trash").moderate("Well. You idiot. Bye.")
    assert (result.action, result.text) == ("mask", "trash")
    assert result.safe
    check(result)


def test_on_fail_pass_releases_the_original() -> None:
    engine = ByteEngine(fault="empty")
    failing = guard(engine, ladder=("rewrite",), on_fail="pass", fail_open=True)
    result = failing.moderate("You idiot.")
    assert (result.action, result.text) == ("unverified", "You idiot.")
    assert not result.safe


def test_what_is_unsafe_only_in_place_goes_back_to_the_ladder() -> None:
    result = guard(ByteEngine(crowded=True)).moderate("You are an idiot! I met some trash!")
    assert result.action in ("rewrite", "mask")
    assert result.text.count("person") < 2
    assert "unsafe_in_place" in result.edits[0].reasons  # and with it the cause is gone
    assert result.safe
    check(result)


def test_a_safe_segment_that_its_new_neighbour_makes_unsafe_is_repaired_as_well() -> None:
    text = "You are an idiot! That is bad. A person came by!"
    result = guard(ByteEngine(crowded=True)).moderate(text)
    assert result.before.spans[0].end < 20
    assert result.action in ("rewrite", "mask")
    assert result.after is not None
    assert not result.after.unsafe
    check(result)


def test_an_untouched_segment_that_became_unsafe_is_repaired_as_well() -> None:
    class Jealous(ByteEngine):
        """Says that `alone` is unsafe beside a replacement."""

        def _unsafe(self, text: str) -> list[tuple[str, str]]:
            return [*super()._unsafe(text), *([("alone", "harm")] if "person" in text else [])]

    engine = Jealous()
    text = "Hello all of you! You are an idiot! She sits alone. Bye."
    result = guard(engine).moderate(text)
    assert len(result.before.spans) == 1
    assert result.edits[1].reasons == ("harm: high", "unsafe_in_place")
    assert [edit.original for edit in result.edits] == ["You are an idiot!", "She sits alone."]
    assert result.text == "Hello all of you! You are an person! She sits person. Bye."
    assert result.after is not None
    assert not result.after.unsafe
    check(result)


def test_each_attempt_is_reached_when_the_whole_text_refuses_all_of_them() -> None:
    words = dict.fromkeys(
        ("friend", "fellow", "neighbour", "colleague", "visitor", "guest"), "harm"
    )
    engine = ByteEngine(words={"idiot": "toxicity", "trash": "toxicity", **words, "human": "harm"})
    engine.crowded = True
    result = guard(engine).moderate("You are an idiot! I met some trash!")
    assert result.action == "mask"
    assert "[removed]" in result.text
    assert result.text.count("person") < 2
    check(result)


def test_a_rewrite_that_is_no_longer_english_is_not_released() -> None:
    result = guard(ByteEngine(fault="foreign"), ladder=("rewrite",)).moderate("You are an idiot.")
    assert result.action == "block"
    assert "rewrite: unverified_language" in result.edits[0].reasons


def test_what_the_model_finds_unlikely_is_not_released() -> None:
    engine = ByteEngine(unlikely=("person",))
    result = guard(engine, min_likelihood=-2).moderate("You silly old idiot.")
    assert "person" not in result.text
    assert "rewrite: unlikely" in result.edits[0].reasons
    sure = guard(ByteEngine(unlikely=("old.",)), min_likelihood=-2).moderate("You silly old idiot.")
    assert sure.text == "You silly old person."


def test_less_will_do_for_coarse_words_unless_much_is_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each byte has -0.01: one word is a little less likely than the bound, two words as well."""
    policy: dict[str, Any] = {"min_likelihood": -0.01, "ladder": ("rewrite", "mask")}
    assert guard(**policy).moderate("Idiot.").text == "person."
    monkeypatch.setattr("tests.byte_engine.GREEDY", "person friend")
    assert guard(**policy).moderate("Idiot.").action == "mask"
    biased = ByteEngine(words={"idiot": "bias"})
    monkeypatch.undo()
    assert guard(biased, **policy).moderate("Idiot.").action == "mask"


def test_a_deletion_that_is_likely_takes_the_place_of_an_unlikely_rewrite() -> None:
    engine = ByteEngine(unlikely=("person", "plan."))
    result = guard(engine, min_likelihood=-2).moderate("Ed, you idiot, call 555 today.")
    assert (result.action, result.text) == ("rewrite", "Ed, call 555 today.")
    check(result)
    without = guard(engine, ladder=("rewrite",)).moderate("Ed, you idiot, call 555 today.")
    assert without.text == "Ed, you person, call 555 today."


def test_a_sentence_without_anything_to_keep_is_left_out() -> None:
    dumb = ByteEngine(fault="empty")
    for text, wanted in (
        ("Hi Ed. You are an idiot. See you.", "Hi Ed. See you."),
        ("You are an idiot. See you.", "See you."),
        ("See you. You are an idiot.", "See you."),
        ("See you.\n  You idiot. Bye.\nEnd.", "See you.\n  Bye.\nEnd."),
        ("Fine here.\rYou idiot. Bring tea.", "Fine here.\rBring tea."),
        ("Fine here.\r\n\tYou idiot. Bring tea.", "Fine here.\r\n\tBring tea."),
        ("Fine here.\u2028You idiot. Bring tea.", "Fine here.\u2028Bring tea."),
        ("Fine here.\u2029 You idiot. Bring tea.", "Fine here.\u2029 Bring tea."),
    ):
        result = guard(dumb).moderate(text)
        assert (result.action, result.text) == ("rewrite", wanted)
        assert result.safe
        check(result)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The idiot left.\nYou trash. Lunch is at noon.", "The person left.\nLunch is at noon."),
        ("The idiot left.\n\n  You trash. Bye.", "The person left.\n\n  Bye."),
        ("The idiot left.\r  You trash. Bye.", "The person left.\r  Bye."),
        ("The idiot left.\u2028You trash. Bye.", "The person left.\u2028Bye."),
        ("The idiot left. You trash. Bye.", "The person left. Bye."),
        ("The idiot left. All is well. You trash. Bye.", "The person left. All is well. Bye."),
    ],
)
def test_no_blank_stays_where_a_sentence_is_left_out_behind_an_edit(text: str, wanted: str) -> None:
    class Speechless(ByteEngine):
        def generate(self, requests: Sequence[Request]) -> list[Continuation]:
            found = super().generate(requests)
            return [
                Continuation((), finished=True) if "\0 trash" in self.read(asked.prompt) else said
                for asked, said in zip(requests, found, strict=True)
            ]

    made = guard(Speechless())
    result = made.moderate(text)
    assert result.text == wanted
    check(result)
    for pieces in ([text], [*text], re.findall(r"\S+\s*", text)):
        assert "".join(made.stream(pieces)) == wanted


def test_a_sentence_is_not_left_out_where_something_would_be_lost() -> None:
    dumb = ByteEngine(fault="empty")
    for text, reason in (
        ("You are an idiot.", "omit: stands_alone"),
        ("Hi Ed.\nYou are an idiot.", "omit: stands_alone"),
        ("Hi Ed. You idiot owe me 555.", "omit: lost_number"),
        ("Hi Ed. The idiot met with Priya.", "omit: lost_name"),
        ("Hi Ed. The green boat that an idiot sold sank yesterday.", "omit: lost_content"),
    ):
        result = guard(dumb).moderate(text)
        assert result.action == "mask"
        assert reason in result.edits[0].reasons
    kept = guard(dumb, ladder=("mask", "block")).moderate("Hi Ed. You are an idiot. See you.")
    assert kept.text == "Hi Ed. You are an [removed]. See you."


def test_neighbours_that_are_left_out_together_leave_no_gap() -> None:
    dumb = ByteEngine(fault="empty")
    result = guard(dumb).moderate("Hi Ed. You are an idiot! What trash! See you.")
    assert result.text == "Hi Ed. See you."
    check(result)
