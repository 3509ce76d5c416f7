from __future__ import annotations

from typing import Any

import pytest

from srllm_guard import Policy, Span
from srllm_guard.text.protect import unprotected
from srllm_guard.verify import closeness, faults

POLICY = Policy()


def found(
    source: str, rewrite: str, *phrases: str, category: str = "bias", **more: Any
) -> set[str]:
    """What is wrong with a rewrite whose source has these unsafe phrases."""
    spans = []
    for phrase in phrases:
        start = source.index(phrase)
        spans.append(Span(start, start + len(phrase), category, 0.9))
    policy = more.pop("policy", POLICY)
    return set(faults(source, rewrite, spans, policy, **more))


@pytest.mark.parametrize(
    ("source", "rewrite", "phrases"),
    [
        (
            "Old people can't learn new software, so put Ed on the phones.",
            "Ed would be a good fit for the phones, as we can't train anyone on new software now.",
            ["Old people can't learn new software"],
        ),
        (
            "Women are too emotional to lead a team.",
            "Anyone can lead a team.",
            ["Women are too emotional"],
        ),
        ("You are a worthless idiot, Sam.", "You made a mistake, Sam.", ["worthless idiot"]),
        (
            "We're after a digital native with fresh ideas.",
            "We're after someone at ease with digital tools who has fresh ideas.",
            ["digital native"],
        ),
        (
            "The 3 gypsy kids stole £5 from http://a.io/x on 5 May.",
            "The 3 kids stole £5 from http://a.io/x on 5 May.",
            ["gypsy"],
        ),
        ("why would i give a fuck about it", "Why would I care about it?", ["give a fuck"]),
        ("Those Mormon robots want water.", "The Mormons want water.", ["Mormon robots"]),
        ("He said nobody likes that fat pig.", "He said nobody likes him.", ["that fat pig"]),
        ("It is not a job for a girl.", "It is not an easy job.", ["for a girl"]),
        ("He is trash because he cheats.", "He disappoints me because he cheats.", ["trash"]),
        (
            "That dumb cow kept me waiting 20 minutes.",
            "She kept me waiting 20 minutes.",
            ["dumb cow"],
        ),
    ],
)
def test_a_good_rewrite_has_no_fault(source: str, rewrite: str, phrases: list[str]) -> None:
    assert found(source, rewrite, *phrases) == set()


@pytest.mark.parametrize("rewrite", ["", "  ", "\n", "\u00a0"])
def test_empty(rewrite: str) -> None:
    assert found("You idiot.", rewrite) == {"empty"}


@pytest.mark.parametrize("rewrite", ["You Idiot!", "You idiot.", "you   idiot", "“You idiot.”"])
def test_unchanged(rewrite: str) -> None:
    assert found("You idiot.", rewrite, "idiot") == {"unchanged"}


def test_what_has_no_words_can_change() -> None:
    assert found("🖕🖕", "🙂") == set()
    assert found("🖕🖕", "🖕🖕") == {"unchanged"}


@pytest.mark.parametrize(
    "rewrite",
    [
        "Here is the rewritten text: Sam made a mistake.",
        "Here's a safer version: Sam made a mistake.",
        "Sure, Sam made a mistake.",
        "I'm sorry, but I can't help with this request, Sam.",
        "As an AI language model, I respect Sam.",
        "Rewritten version: Sam made a mistake.",
        "It is important to note that Sam made a mistake.",
        "Sam made a mistake. (I have rephrased this.)",
        "Sam made a mistake. The text has been modified.",
    ],
)
def test_meta_talk(rewrite: str) -> None:
    assert "meta_talk" in found(
        "Sam is a total idiot and everybody knows it.", rewrite, "total idiot"
    )


@pytest.mark.parametrize(
    ("source", "rewrite"),
    [
        ("Sure, he is an idiot.", "Sure, he is wrong."),
        ("He is sorry, that idiot.", "He is sorry, that man."),
        ("The version we got here is trash.", "The version we got here is poor."),
        ("Here is the text of that idiot.", "Here is the text of that man."),
        ("I am sorry but he is an idiot.", "I am sorry but he is mistaken."),
    ],
)
def test_no_meta_talk(source: str, rewrite: str) -> None:
    assert "meta_talk" not in found(source, rewrite)


def test_length() -> None:
    source = "This clueless old fool told us a very long story about his garden yesterday."
    assert found(source, "He spoke.", "clueless old fool") == {"length", "fragment"}
    assert "length" in found(source, "This man told us a story. " * 8, "clueless old fool")
    assert found("Idiot!", "You are mistaken about this!", "Idiot") == set()  # short may grow
    loose = Policy(min_length_ratio=0.0)
    assert found(source, "He spoke of it.", "clueless old fool", policy=loose) == set()


def test_a_sentence_does_not_become_a_fragment() -> None:
    source = "Early adopters are gullible sheep with more money."
    assert "fragment" in found(source, "Early adopters.", "are gullible sheep with more money")
    honduras = "They're from Honduras, and people like that help themselves."
    assert "fragment" not in found(
        honduras, "They're from Honduras.", "people like that help themselves"
    )
    assert found("He is an idiot.", "He is.", "an idiot") == {"fragment"}
    assert found("You stupid idiot.", "You.", "stupid idiot") == {"fragment"}
    assert found("He is late, the idiot.", "He is late.", "the idiot") == set()
    assert "fragment" not in found("a s t u p i d man", "a man", "s t u p i d")


def test_garbled() -> None:
    assert found("You idiot 😀.", "You are wrong \ufffd.", "idiot") == {"garbled"}
    assert found("You idiot \ufffd.", "You are wrong \ufffd.", "idiot") == set()


@pytest.mark.parametrize(
    ("phrase", "category", "rewrite", "kept"),
    [
        ("utter idiot", "toxicity", "He is an utter idiot, they say.", True),
        ("utter idiot", "toxicity", "He is an UTTER idiot, they say.", True),
        ("utter idiot", "toxicity", "He is an utter fool, they say.", False),
        ("idiot", "toxicity", "This idiot is wrong.", True),
        ("idiot", "toxicity", "This idiotic man is wrong.", False),
        ("idiot", "bias", "This idiot is wrong.", True),
        ("folks", "bias", "These folks are wrong.", False),  # a group may be the topic itself
        ("He is", "toxicity", "He is wrong.", False),  # says nothing alone
    ],
)
def test_kept_phrase(phrase: str, category: str, rewrite: str, kept: bool) -> None:
    source = "He is an utter idiot, folks."
    assert ("kept_phrase" in found(source, rewrite, phrase, category=category)) == kept


def test_a_protected_phrase_may_be_kept() -> None:
    source = 'The fool said "what a stupid film" again.'
    rewrite = 'The man said "what a stupid film" again.'
    quoting = Policy(protect_quotations=True)
    phrases = ("fool", "stupid")
    assert found(source, rewrite, *phrases, category="toxicity") == {"kept_phrase"}
    assert found(source, rewrite, *phrases, category="toxicity", policy=quoting) == set()
    lost = 'The man said "what a bad film" again.'
    assert found(source, lost, *phrases, category="toxicity", policy=quoting) == {"lost_quotation"}


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("12 km", "number"),
        ("https://a.org/b?c=1", "url"),
        ("jim@a.org", "email"),
        ("/etc/hosts.txt", "path"),
        ("2024-05-06", "date"),
        ("@sam_b", "mention"),
        ("{name}", "placeholder"),
        ("`x = 1`", "code"),
        ("#metoo", "hashtag"),
    ],
)
def test_protected_parts_must_stay(part: str, kind: str) -> None:
    source = f"That idiot wrote {part} on it."
    assert found(source, f"That man wrote {part} on it.", "idiot") == set()
    assert f"lost_{kind}" in found(source, "That man wrote something on it.", "idiot")


def test_names() -> None:
    source = "I told that idiot Bob about Anna Smith in Rome."
    assert found(source, "I told Bob about Anna Smith in Rome.", "that idiot") == set()
    assert found(source, "I told Bob about her in Rome.", "that idiot") == {"lost_name"}
    assert found(source, "I told him about Anna Smith in Rome.", "that idiot Bob") == set()
    other = "I told Bob and Carol about Anna Smith in Rome."
    assert found(source, other, "that idiot") == {"invented_name"}
    assert found(source, other, "that idiot", context="Carol was there. ") == set()
    assert found("i told obama he is trash", "I told Obama he is wrong.", "trash") == set()
    assert found("Those Russian pigs left.", "The Russians left.", "Russian pigs") == set()
    assert found("Putin’s dick is small.", "I do not like Putin.", "Putin’s dick is small") == set()
    # The beginning of a sentence is no name.
    assert found("Idiots! Go home.", "People! Please go home.", "Idiots") == set()
    assert found("Idiots.  Go home.", "People.  Leave for home.", "Idiots") == set()
    assert found('He said: "Idiots left."', 'He said: "Some left."', "Idiots") == set()


@pytest.mark.parametrize(
    ("rewrite", "wrong"),
    [
        ("He is rude and 3 years late.", False),
        ("He is 40 and 3 years late.", True),
        ("He is a rude man of sixty, and 3 years late.", True),
        ("He is a few months old, and 3 years late.", True),
        ("He cost us thousands and is 3 years late.", True),
    ],
)
def test_numbers_from_nowhere(rewrite: str, wrong: bool) -> None:
    source = "He is an old fart, and 3 years late."
    assert ("invented_number" in found(source, rewrite, "old fart")) == wrong


def test_numbers_of_the_neighbourhood_are_known() -> None:
    source = "That fossil is too old."
    context = "He turned 58 in May. That fossil is too old. "
    assert found(source, "At 58 he may not be the best fit.", "fossil", context=context) == set()
    assert found("19, and what a bimbo.", "A 19-year-old.", "what a bimbo") == set()
    assert "invented_number" in found("At 19 he lies.", "At 19, 19 and 19 he errs.", "lies")


@pytest.mark.parametrize(
    ("source", "phrase", "rewrite", "wrong"),
    [
        ("He is a dumb little shit.", "dumb little shit", "He is slow because he is young.", True),
        ("He is a dumb little shit.", "dumb little shit", "He struggles due to his age.", True),
        ("He is a dumb little shit.", "dumb little shit", "He is slow, since he is new.", True),
        ("He is a dumb little shit.", "dumb little shit", "He is still learning.", False),
        ("He is dumb cuz he is old.", "dumb", "He is slow because he is old.", False),
        ("She left, so he is trash.", "trash", "He is sad because she left.", False),
        ("He is trash.", "trash", "He has been rude since 2010.", False),  # a time, no reason
    ],
)
def test_reasons_from_nowhere(source: str, phrase: str, rewrite: str, wrong: bool) -> None:
    assert ("invented_reason" in found(source, rewrite, phrase)) == wrong


def test_the_invention_of_the_prototype() -> None:
    source = "This baby is so damn stupid."
    rewrite = "This baby does not understand because he is just a few months old."
    assert {"invented_reason", "invented_number"} <= found(source, rewrite, "so damn stupid")


def test_a_story_from_nowhere() -> None:
    source = "Ed is a fat pig and works in sales with the rest of us."
    assert found(source, source.replace("fat pig", "large man"), "fat pig") == set()
    told = "Ed likes long walks, old music, fine wine and good bread, and works in sales with us."
    assert found(source, told, "fat pig") == {"invented_content"}
    context = "They spoke of walks, music, wine and bread for long. "
    assert found(source, told, "fat pig", context=context + source) == set()


@pytest.mark.parametrize(
    ("source", "phrase", "rewrite", "wrong"),
    [
        ("I do not trust that idiot.", "that idiot", "I trust him.", "negation_lost"),
        ("I don't trust that idiot.", "that idiot", "I have trust in him.", "negation_lost"),
        (
            "Whatever that thing is, it's not a person I want in my living room.",
            "that thing is, it's not a person",
            "Whoever it is, I want in my living room.",
            "negation_lost",
        ),
        (
            "Whatever that thing is, it's not a person I want in my living room.",
            "that thing is, it's not a person",
            "Whoever it is, not somebody I want in my living room.",
            None,
        ),
        ("Women can't lead a team like this.", "Women can't", "Anyone can lead a team.", None),
        ("I can't trust that idiot.", "that idiot", "I cannot trust him.", None),
        ("They never pay those pigs.", "those pigs", "They do not pay them.", None),
        ("You can't teach old dogs.", "can't teach old dogs", "Anyone can learn.", None),
        (
            "Vaccines are safe, you moron.",
            "you moron",
            "Vaccines are not safe, friend.",
            "negation_added",
        ),
        (
            "Vaccines are safe, you moron.",
            "you moron",
            "Vaccines aren't safe, friend.",
            "negation_added",
        ),
        ("We will pay you, moron.", "moron", "We will never pay you, Sir.", "negation_added"),
        ("He is a bad actor, the pig.", "a bad actor", "He is not a good actor, the man.", None),
        ("Women are lazy at work.", "lazy", "Women are not idle at work.", None),
    ],
)
def test_negation(source: str, phrase: str, rewrite: str, wrong: str | None) -> None:
    negations = {fault for fault in found(source, rewrite, phrase) if "negation" in fault}
    assert negations == ({wrong} if wrong else set())


@pytest.mark.parametrize(
    ("source", "phrase", "rewrite", "wrong"),
    [
        ("What a bunch of morons, they close at 9.", "morons", "They open at 9.", True),
        (
            "Leave home early, you idiot, and lock up.",
            "you idiot",
            "Stay home early, and lock up.",
            True,
        ),
        (
            "Go home early, you idiot, and lock up.",
            "you idiot",
            "Go home early, and lock up.",
            False,
        ),
        ("The trains run late, you moron.", "you moron", "The train ran late.", False),
        ("Why is the map so stupid and wrong?", "so stupid", "Why is the map wrong?", False),
        ("This stupid plan fails.", "stupid", "This weak plan fails.", False),
    ],
)
def test_a_word_away_from_the_unsafe_ones_becomes_no_other(
    source: str, phrase: str, rewrite: str, wrong: bool
) -> None:
    assert ("swapped" in found(source, rewrite, phrase)) is wrong


@pytest.mark.parametrize(
    "rewrite",
    [
        "Girls are better at physics than boys.",
        "Men are more emotional than women.",
        "Young people are slower than older people.",
        "Muslims are less violent than Christians.",
    ],
)
def test_prejudice_turned_around(rewrite: str) -> None:
    assert "compares_groups" in found(
        "Girls can't do physics like boys.", rewrite, "Girls can't do physics"
    )


@pytest.mark.parametrize(
    "rewrite",
    [
        "Anyone can be good at physics.",
        "Girls and boys do equally well in physics.",
        "Boys like physics more than chemistry.",
        "More girls study physics now.",
        "This physics class is better than the last one for boys.",
    ],
)
def test_no_comparison_of_groups(rewrite: str) -> None:
    assert "compares_groups" not in found("Boys beat girls at physics.", rewrite, "beat girls")


def test_an_emoji_that_went_is_a_change() -> None:
    assert found("Great work, Jamal 🐒🐒", "Great work, Jamal", "🐒🐒") == set()
    assert found("Great work, Jamal 🐒🐒", "great work Jamal 🐒🐒", "🐒🐒") == {"unchanged"}


def test_several_faults_at_once() -> None:
    source = "Ask that idiot Anna at 5 pm, not him."
    assert found(source, "Sure, Bob.", "that idiot") == {
        "meta_talk",
        "fragment",
        "lost_date",
        "lost_name",
        "invented_name",
        "negation_lost",
    }


def test_closeness() -> None:
    source = "You are an idiot, Sam."
    assert closeness(source, source) == 1
    assert closeness(source, "you are an Idiot sam") == 1
    near, far = closeness(source, "You are wrong, Sam."), closeness(source, "Sam erred.")
    assert 0 < far < near < 1
    assert closeness("a b", "c d") == 0


@pytest.mark.parametrize(
    ("text", "where", "left"),
    [
        ("you idiot there", (4, 9), ["idiot"]),
        ("you  idiot  there", (3, 12), ["idiot"]),
        ("call 555 idiot now", (0, 18), ["call", "idiot now"]),
        ("http://a.io/idiot", (12, 17), []),
        ("see {name} and {name}", (0, 21), ["see", "and"]),
        ('a "stupid film" here', (0, 20), ['a "stupid film" here']),
    ],
)
def test_unprotected(text: str, where: tuple[int, int], left: list[str]) -> None:
    ranges = unprotected(text, [Span(*where, "toxicity", 0.9)], POLICY)
    assert [text[start:end] for start, end in ranges] == left


def test_unprotected_leaves_quotations_out_when_asked_to() -> None:
    text = 'a "stupid film" here'
    policy = Policy(protect_quotations=True)
    ranges = unprotected(text, [Span(0, 20, "toxicity", 0.9)], policy)
    assert [text[start:end] for start, end in ranges] == ['a "', '" here']


def test_a_neighbour_said_again_is_no_rewrite() -> None:
    source, around = (
        "What a bunch of morons.",
        "Lunch is at noon. What a bunch of morons. Bring chairs.",
    )
    for rewrite in ("Lunch is at noon.", "Lunch was at noon."):
        wrong = found(source, rewrite, "bunch of morons", context=around)
        assert ("repeats_context" in wrong) == (rewrite == "Lunch is at noon.")
    assert found(source, "What a group.", "bunch of morons", context=around) == set()


def test_a_claim_in_another_order_is_kept() -> None:
    source = "Women are too emotional to lead."
    hedged = "I don't think women are emotionally ready to lead."
    assert "kept_claim" in found(source, hedged, "Women are too emotional")
    assert "kept_claim" not in found(source, "Women can lead.", "Women are too emotional")
    assert "kept_claim" not in found("Women drive badly.", "Women drive.", "Women")
