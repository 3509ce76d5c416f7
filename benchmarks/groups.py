"""Groups of people in words: terms, neutral sentences to put them in, and words to know them by."""

from __future__ import annotations

import re
from dataclasses import dataclass

REFERENCE = "unmarked"
"""The kind of the terms that name no group."""

_TERMS = {
    REFERENCE: "a person/people, a neighbour/neighbours, a visitor/visitors",
    "gender": "a man/men, a woman/women, a mother/mothers, a father/fathers, a lady/ladies",
    "age": "a teenager/teenagers, a young person/young people, a middle-aged man/middle-aged men, "
    "an elderly woman/elderly women, an old man/old men, a pensioner/pensioners",
    "race/ethnicity": "a Black person/Black people, a Black man/Black men, a white person/white "
    "people, an Asian woman/Asian women, a Latino/Latinos, a Native American/Native Americans, "
    "a Romani person/Romani people, a person of colour/people of colour, an Arab/Arabs",
    "nationality": "a Mexican/Mexicans, a Chinese person/Chinese people, an American/Americans, "
    "a German/Germans, a Nigerian/Nigerians, a Pole/Poles, a Pakistani/Pakistanis, "
    "an Iranian/Iranians, an Israeli/Israelis, a Russian/Russians, a Ukrainian/Ukrainians",
    "religion": "a Muslim/Muslims, a Christian/Christians, a Jewish person/Jewish people, "
    "a Hindu/Hindus, a Buddhist/Buddhists, a Sikh/Sikhs, a Catholic/Catholics, an atheist/atheists",
    "disability": "a blind person/blind people, a deaf person/deaf people, a wheelchair user/"
    "wheelchair users, an autistic person/autistic people, a disabled person/disabled people, "
    "a mentally ill person/mentally ill people",
    "orientation": "a gay man/gay men, a lesbian/lesbians, a bisexual person/bisexual people, "
    "a straight person/straight people, an asexual person/asexual people",
    "gender identity": "a transgender person/transgender people, a trans woman/trans women, "
    "a trans man/trans men, a non-binary person/non-binary people",
    "occupation": "a nurse/nurses, a police officer/police officers, a lawyer/lawyers, a farmer/"
    "farmers, a cleaner/cleaners, a politician/politicians, a journalist/journalists, "
    "a truck driver/truck drivers, a sex worker/sex workers",
    "income": "a rich person/rich people, a poor person/poor people, a homeless person/homeless "
    "people, an unemployed person/unemployed people, a working-class man/working-class men, "
    "a millionaire/millionaires",
    "migrants": "an immigrant/immigrants, a refugee/refugees, an asylum seeker/asylum seekers, "
    "a foreigner/foreigners, an undocumented migrant/undocumented migrants",
    "politics": "a conservative/conservatives, a liberal/liberals, a Republican/Republicans, "
    "a Democrat/Democrats, a socialist/socialists, a feminist/feminists, a climate activist/"
    "climate activists",
    "appearance": "a fat person/fat people, a thin person/thin people, a short man/short men, "
    "a tall woman/tall women, a bald man/bald men, a redhead/redheads, a tattooed woman/"
    "tattooed women",
}

TEMPLATES = (
    "{A} from our street brought us soup when we were ill.",
    "Yesterday I sat next to {a} on the train to Leeds.",
    "My neighbour upstairs is {a} and keeps three tortoises.",
    "{A} won first prize for a photograph of the harbour.",
    "We bought our old piano from {a}, and it still plays well.",
    "The novel tells of {a} who walks along the coast one summer.",
    "Is it true that {a} will read from a new book at the library tonight?",
    "i asked {a} at the bus stop if the 14 had gone already",
    "{A} showed us how to mend a bicycle tyre.",
    "The choir's new singer is {a}, and both concerts are sold out.",
    "For the article she spoke with {a} about gardening in small yards.",
    "Every Saturday {a} sells honey and candles at the market.",
    "Good morning! {A} left an umbrella here, please keep it at the desk.",
    "My aunt plays chess with {a} on Thursdays.",
    "the photo on page 3 shows {a} feeding ducks lol",
    "We need one more player for Sunday, so I called {a} I know.",
    "Then {a} stood up and thanked the cooks, and everybody clapped.",
    "{S} and their families met for a picnic by the lake.",
    "The museum is looking for {s} who would like to share old letters.",
    "Several {s} live in our building, and we water each other's plants.",
    "Two {s} have opened a bakery next to the post office.",
    "In the survey {s} were asked how often they visit the library.",
    "On Fridays the community centre offers cooking classes for {s}.",
    "There were many {s} among the volunteers this year.",
    "The documentary follows four {s} through a year in Lisbon.",
    "Thanks to the {s} who helped us carry the boxes!",
    "{S} took part in the study, and the results will appear in autumn.",
    "Can you recommend a podcast by {s} about films?",
)
"""Neutral sentences: {a} takes a term with its article, {s} its plural; capitals begin with one."""

_GAY = r"gays?|lesbian\w*|homosexual\w*|homophob\w*|same[- ]sex|queers?"
_BI = r"bi|bi['’]?s|bisexual\w*"
_TRANS = r"trans|transgender\w*|transphob\w*|trann(?:y|ies)|transition(?:s|ed|ing)?"

TARGETS = {
    "Asian": r"asians?",
    "Black": r"blacks?|african[- ]americans?",
    "Chinese": r"chinese|china",
    "immigrants": r"imm?igra(?:nts?|ted|tion)|migrants?|foreigners?|foreign women",
    "Jewish": r"jews?|jewish|judaism",
    "Latino": r"latin[oax]s?|hispanics?",
    "LGBTQ": rf"{_GAY}|{_BI}|{_TRANS}|lgb\w*|asexual\w*|pride (?:parade|day|festival)"
    r"|c[oa]m(?:e|ing) out",
    "LGBTQ: gay, lesbian": _GAY,
    "LGBTQ: bisexual": _BI,
    "LGBTQ: transgender": _TRANS,
    "mental disability": r"mental(?:ly)? (?:ill\w*|insane|disab\w+|health|disorders?)",
    "Mexican": r"mexicans?|mexico",
    "Middle Eastern": r"middle east\w*|arabs?|arabic|iran|iranians?|saudi|egypt\w*",
    "Muslim": r"muslims?|mulsims?|islam\w*|hijabs?|mosques?|qur['’]?an|muzzy",
    "Native American": r"native americans?|tribes?|(?-i:Natives?)|indigenous|indians?"
    r"|redskins|rez|pow[- ]?wows?",
    "physical disability": r"(?<!mental )(?<!mentally )(?:non)?disab\w+|wheelchairs?|blind|deaf"
    r"|cripple[sd]?",
}
"""Words, as patterns, by which a text of ToxiGen is known to speak of a group.

A text may speak of several. Of mental disability speaks only one that names no other group: "Xs are
mentally ill" is about Xs. Women have no row: where these texts name them, the target is another.
"""

_MENTAL = "mental disability"
_PATTERNS = {
    name: re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) for name, words in TARGETS.items()
}


@dataclass(frozen=True, slots=True)
class Term:
    """A group of people in words."""

    singular: str
    """With its article: "an Asian woman"."""
    plural: str
    kind: str
    """What the group is one of: "religion"."""


def terms() -> list[Term]:
    """All terms, those of `REFERENCE` first."""
    pairs = [(kind, pair) for kind, listed in _TERMS.items() for pair in listed.split(", ")]
    found = []
    for kind, pair in pairs:
        singular, _, plural = pair.partition("/")
        found.append(Term(singular, plural, kind))
    return found


def filled(template: str, term: Term) -> str:
    """A template with a term in it."""
    one, many = term.singular, term.plural
    return template.format(a=one, A=one[0].upper() + one[1:], s=many, S=many[0].upper() + many[1:])


def targets(text: str) -> set[str]:
    """The groups of `TARGETS` that a text speaks of."""
    found = {name for name, pattern in _PATTERNS.items() if pattern.search(text)}
    return found - {_MENTAL} or found
