"""Tables of look-alikes for `srllm_guard.text.normalize`: data only.

`HOMOGLYPHS` is the part of the Unicode confusables (UTS #39, confusables.txt) that people type:
letters of living scripts that look like one Latin letter.
"""

from __future__ import annotations


def _table(*pairs: str) -> dict[str, str]:
    """Read "aA bB" as {"a": "A", "b": "B"}."""
    return {pair[0]: pair[1] for line in pairs for pair in line.split()}


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


HOMOGLYPHS = _table(
    # Cyrillic
    "ЅS ІI ЈJ АA ВB ЕE КK МM НH ОO РP СC ТT УY ХX ЬB аa еe оo рp сc уy хx ѕs іi јj ѡw ѴV ѵv ҮY үy",
    "һh ӀI ӏl ԁd ԌG ԛq ԜW ԝw ԍg ҺH ёe ЁE їi ЇI",
    # Greek
    "ϳj ͿJ ΑA ΒB ΕE ΖZ ΗH ΙI ΚK ΜM ΝN ΟO ΡP ΤT ΥY ΧX αa γy ιi νv οo ρp υu ϲc ϹC κk ϜF",
    # Armenian
    "ՍU ՏS ՕO աw զq հh ոn ռn սu ցg քf օo",
    # Cherokee
    "ᎠD ᎡR ᎢT ᎩY ᎪA ᎫJ ᎬE ᎳW ᎷM ᎻH ᏀG ᏃZ ᏒR ᏕS ᏙV ᏞL ᏟC ᏢP ᏦK ᏴB ꭵi ꮃw ꮓz ꮩv ꮪs ꮯc",
)
"""Letters that cannot be told from a Latin letter."""

NEAR_HOMOGLYPHS = HOMOGLYPHS | _table("вb гr кk мm нh тt пn иu яR ДA βb εe σo τt ηn ωw δd")
"""As above, and letters that only pass for a Latin one inside of a Latin word."""

ALWAYS = _table(
    # small capitals and phonetic letters
    "ᴀa ʙb ᴄc ᴅd ᴇe ꜰf ɢg ʜh ɪi ᴊj ᴋk ʟl ᴍm ɴn ᴏo ᴘp ꞯq ʀr ꜱs ᴛt ᴜu ᴠv ᴡw ʏy ᴢz ɑa ɡg ıi ƨs ᴑo",
    # letters in negative circles and squares, which NFKC leaves alone
    *(f"{chr(0x1F150 + i)}{chr(97 + i)} {chr(0x1F170 + i)}{chr(97 + i)}" for i in range(26)),
    "Ⓜm 💲$",
)
"""Variants of one Latin letter that no running text is written in: always folded."""

LEET = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t"}
"""Digits that stand for letters."""

LEET_SIGNS = {"@": "a", "$": "s", "!": "i", "|": "i", "€": "e", "+": "t", "©": "c", "®": "r"}
"""Signs that stand for letters."""

AT_WORDS = _words(
    "nd ll ny re bout lways ss sses sshole ssholes sshat ssh0le ssh0les rse rsehole nal nus nimal",
    "nimals pe pes rab rabs sian sians fricans utistic utist ddict ddicts liens buser",
)
"""What may follow an `@` that stands for an `a` at the start of a word (`@sshole`).

Any other `@` at the start of a word is a mention.
"""

NOT_LEET = _words(
    "c3po gpt4o l10n a11y i18n k8s h1n1",
)
"""Lower-case words whose digits are digits."""

LEET_STEMS = _words(
    "asshol bastard bitch bullshit cocksuck cunt damn dick dumb faggot fatass feminazi fuck",
    "gook hate hating hoes idiot imbecil incel jackass jerk kike kill lesbo loser moron muslim",
    "nazi negro nigg nude pathetic pedo penis porn pussy racist rape rapist retard scum sexist",
    "shit slave slut spic stupid suck terror tranny trash twat ugly vagina wank whore women crap",
    "worthless stoopid",
)  # fmt: skip
"""Lower-case stems that settle a doubtful spelling such as `1d10t` or `5h1t`."""

LEET_WHOLE = _words("ass asses fag fags fat gay gays die dyke jew jews kys sex tit tits")
"""Short words that settle it only as a whole (`a55`, `f4g`)."""
