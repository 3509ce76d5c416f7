"""Examples from many data sets, each mapped to the CMD labels that it can support.

Labels of different sets do not mean the same thing: a set about sexism says nothing about insults.
So each loader gives, for every label it can speak about, the set of values that are possible, and
leaves the others out; training masks the loss of a label that is absent and, where several values
are possible, asks for their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from srllm_guard.labels import LABELS
from train.diff import removed_spans, same_words
from train.example import ALLOWED, Example, Span, labelled, merged, occurrences
from train.schema import SPLITS, Record, SchemaError

Row = Mapping[str, Any]

_COLUMNS = ("Original Sentence", "BIAS", "Debiased")


@dataclass(frozen=True, slots=True)
class Options:
    """What is taken from the sources besides the obvious."""

    dev_share: float = 0.05
    """Share of a source's training file that is held out as its dev split if it has none."""
    rewrites_as_safe: bool = True
    """Also yield the rewrites of `paradetox` as safe examples."""
    edos_negatives: bool = False
    """Also yield what `edos` calls not sexist as safe. Noisy: it may be hateful otherwise."""


Loader = Callable[[Row, Options], Iterator[Example]]
SOURCES: dict[str, Loader] = {}
"""Every source by name. A loader turns one decoded row into examples."""


def source(loader: Loader) -> Loader:
    """Enter a loader into `SOURCES` under its own name."""
    SOURCES[loader.__name__] = loader
    return loader


@source
def cmd(row: Row, _: Options) -> Iterator[Example]:
    """Records of the CMD schema: every label is exact.

    Spans are all places where the biased words stand. Their category follows the kind of the
    record: a threat is harm, an insult (or unsafe text of no kind) toxicity, all else bias. Unsafe
    records without biased words have unknown spans.
    """
    record = Record.from_dict(row)
    categories = {"threat": "harm", "insult": "toxicity", "none": "toxicity"}
    spans = occurrences(record.text, record.biased_words, categories.get(record.kind, "bias"))
    yield Example(
        record.text,
        () if record.safe is None else (record.safe,),
        labelled(
            unsafe="yes" if record.unsafe else "no",
            **{name: getattr(record, name) for name in LABELS},
        ),
        (spans or None) if record.unsafe else (),
        split=record.split,
        id=record.id,
    )


@source
def paradetox(row: Row, options: Options) -> Iterator[Example]:
    """Toxic comments with one to three civil rewrites.

    How toxic is not said: mild or high. Spans are the words that all rewrites take away. A rewrite
    with the words of its source is no rewrite and is left out. Rewrites were checked by people to
    be civil: not toxic, so safe as far as this set goes.
    """
    text, found = _string(row, "text"), _strings(row, "safe")
    rewrites = tuple(dict.fromkeys(safe for safe in found if not same_words(text, safe)))
    spans = tuple((start, end, "toxicity") for start, end in removed_spans(text, rewrites))
    yield Example(text, rewrites, labelled(unsafe="yes", toxicity="mild high"), spans or None)
    if options.rewrites_as_safe:
        for safe in rewrites:
            if safe.strip():
                yield Example(safe, labels=labelled(unsafe="no", toxicity="none"), spans=())


@source
def paradetox_not_toxic(row: Row, _: Options) -> Iterator[Example]:
    """Comments voted not toxic: safe, not toxic. Votes are noisy, so spans stay unknown."""
    _flag(row, "toxic", allowed=(0,))
    yield Example(_string(row, "text"), labels=labelled(unsafe="no", toxicity="none"))


@source
def toxic_spans(row: Row, _: Options) -> Iterator[Example]:
    """Comments with the characters that make them toxic: unsafe, mild or high, spans of toxicity.

    Rows with `toxic` null had no agreed span; they may be either, so they are left out.
    """
    if row.get("toxic") is None:
        return
    _flag(row, "toxic", allowed=(1,))
    text = _string(row, "text")
    if spans := _spans(row, text, "toxicity"):
        yield Example(text, labels=labelled(unsafe="yes", toxicity="mild high"), spans=spans)


@source
def edos(row: Row, options: Options) -> Iterator[Example]:
    """Sexism: a sexist text is biased, hence unsafe. Toxicity and harm range over all values.

    What is not sexist may be biased against others, insulting or fine, so it supports no label and
    is left out, unless the option `edos_negatives` takes it as safe and unbiased.
    """
    text = _string(row, "text")
    if _flag(row, "sexist"):
        yield Example(text, labels=labelled(unsafe="yes", bias="yes"))
    elif options.edos_negatives:
        yield Example(text, labels=labelled(unsafe="no", bias="no"))


@source
def implicit_hate(row: Row, _: Options) -> Iterator[Example]:
    """Hate against groups: biased, hence unsafe; explicit hate is toxic too (mild or high).

    How toxic implicit hate is, is unknown. What is no hate counts as safe and unbiased; it may be
    rude, so its toxicity stays unknown.
    """
    text = _string(row, "text")
    labels = {
        "not_hate": labelled(unsafe="no", bias="no"),
        "implicit_hate": labelled(unsafe="yes", bias="yes"),
        "explicit_hate": labelled(unsafe="yes", bias="yes", toxicity="mild high"),
    }
    hate = row.get("hate")
    if hate not in labels:
        raise SchemaError(f'field "hate": expected one of {", ".join(labels)}')
    yield Example(text, labels=labels[hate])


@source
def anno_lexical(row: Row, _: Options) -> Iterator[Example]:
    """News sentences: those without loaded wording are safe in every respect, and have no spans.

    "Loaded" is a machine's verdict and often strong wording about facts, so it is left out.
    """
    text = _string(row, "text")
    if not _flag(row, "loaded"):
        labels = labelled(unsafe="no", bias="no", toxicity="none", harm="low")
        yield Example(text, labels=labels, spans=())


@source
def diasafety(row: Row, _: Options) -> Iterator[Example]:
    """Replies of chatbots, judged in context.

    "Biased Opinion" is bias, "Offending User" toxicity (mild or high). The other unsafe categories
    (risk ignorance, unauthorised expertise, agreement with toxic users) are no risks of CMD, so
    those rows are left out. Safe replies are safe and not toxic.
    """
    text, context, category = (_string(row, name) for name in ("text", "context", "category"))
    if not _flag(row, "unsafe"):
        yield Example(text, labels=labelled(unsafe="no", toxicity="none"), context=context)
    elif category == "Biased Opinion":
        yield Example(text, labels=labelled(unsafe="yes", bias="yes"), context=context)
    elif category == "Offending User":
        labels = labelled(unsafe="yes", toxicity="mild high")
        yield Example(text, labels=labels, context=context)


@source
def hatemoji_build(row: Row, _: Options) -> Iterator[Example]:
    """Hate with emoji: unsafe or not. Which of the risks a hateful text carries is unknown."""
    unsafe = "yes" if _flag(row, "hate") else "no"
    yield Example(_string(row, "text"), labels=labelled(unsafe=unsafe))


@source
def hub(row: Row, _: Options) -> Iterator[Example]:
    """Rows of the paper's CMD: `Original Sentence`, `BIAS` (Yes or No) and `Debiased `.

    Column names are compared without case and outer blanks. Biased is unsafe. Not biased is safe
    if the debiased sentence is the original; otherwise something else was repaired, and only the
    bias is known.
    """
    columns = paper_columns(name for name in row if name is not None)
    text, bias, safe = (str(row[name] or "").strip() for name in columns)
    if bias.casefold() not in ("yes", "no"):
        raise SchemaError('column "BIAS": expected Yes or No')
    labels = labelled(bias=bias.casefold())
    if bias.casefold() == "yes":
        labels |= labelled(unsafe="yes")
    elif safe == text:
        labels |= labelled(unsafe="no")
    if text:
        yield Example(text, (safe,) if safe else (), labels)


SOURCES["csv"] = hub


@source
def pairs(row: Row, _: Options) -> Iterator[Example]:
    """Any rows with `text` and `safe` (one or a list).

    Optional: the labels of CMD and `unsafe`, `context`, `spans` ([start, end, category]), `split`,
    `id`. Unless `unsafe` is given, a text is unsafe if a rewrite has other words.
    """
    text, rewrites = _string(row, "text"), tuple(_strings(row, "safe"))
    labels: dict[str, frozenset[str]] = {}
    if rewrites:
        changed = any(not same_words(text, safe) for safe in rewrites)
        labels = labelled(unsafe="yes" if changed else "no")
    for name, allowed in ALLOWED.items():
        if (value := row.get(name)) is not None:
            if value not in allowed:
                raise SchemaError(f'field "{name}": expected one of {", ".join(allowed)}')
            labels[name] = frozenset((value,))
    split = row.get("split") or ""
    if split and split not in SPLITS:
        raise SchemaError(f'field "split": expected one of {", ".join(SPLITS)}')
    yield Example(
        text,
        rewrites,
        labels,
        _spans(row, text) if row.get("spans") is not None else None,
        context=_string(row, "context") if "context" in row else "",
        split=split,
        id=str(row.get("id", "")),
    )


def paper_columns(names: Iterable[str]) -> tuple[str, ...]:
    """The names, as the table spells them, of the columns for text, bias and safe variation.

    Raises:
        SchemaError: one is missing; the message names the columns there are.
    """
    names = list(names)
    cells = {name.strip().casefold(): name for name in names}
    if missing := [name for name in _COLUMNS if name.casefold() not in cells]:
        raise SchemaError(f"no column {_listed(missing)}; the columns are {_listed(names)}")
    return tuple(cells[name.casefold()] for name in _COLUMNS)


def _string(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise SchemaError(f'field "{name}": expected a string, found {type(value).__name__}')
    return value


def _strings(row: Row, name: str) -> list[str]:
    """One string or a list of strings, as a list."""
    value = row.get(name)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise SchemaError(f'field "{name}": expected a string or a list of strings')
    return values


def _flag(row: Row, name: str, allowed: tuple[int, ...] = (0, 1)) -> int:
    value = row.get(name)
    if value not in allowed:
        raise SchemaError(f'field "{name}": expected {" or ".join(map(str, allowed))}')
    return int(value)


def _spans(row: Row, text: str, category: str | None = None) -> tuple[Span, ...]:
    """Spans of a row, [start, end] or [start, end, category]; white space at edges is cut off."""
    found: list[Span] = []
    for entry in row.get("spans") or ():
        match entry:
            case [int(start), int(end)] if category and 0 <= start < end <= len(text):
                kind = category
            case [int(start), int(end), str(kind)] if 0 <= start < end <= len(text):
                pass
            case _:
                raise SchemaError(f'field "spans": {entry} is no span of {len(text)} characters')
        inner = text[start:end]
        start, end = start + len(inner) - len(inner.lstrip()), start + len(inner.rstrip())
        if start < end:
            found.append((start, end, kind))
    return merged(found)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
