from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import srllm_guard.language as detecting
from srllm_guard.language import Language, language

ENGLISH = [
    "The committee met on Monday and agreed to publish the report before the summer.",
    "lol why would u even say that, ur such a loser smh",
    "i don 't remember shit about it",
    "NOBODY ASKED FOR YOUR OPINION, GO HOME!!!",
    "i love 🔪 and 🏳️‍🌈 people r so funny 😂😂😂",
    "Ths is whatt hapens wen you dont chek yr speling at all",
    "ѕtuріd реорlе аrе еvеrуwhеrе in this town",
    "𝓎ℴ𝓊 𝒶𝓇ℯ 𝒶 𝓉ℯ𝓇𝓇𝒾𝒷𝓁ℯ 𝓅ℯ𝓇𝓈ℴ𝓃",
    "The café owner said naïve tourists ordered a crème brûlée and déjà vu.",
    "| name | price |\n|---|---|\n| apple juice | 3 euros |\n| orange juice | 4 euros |",
]
FOREIGN = {
    "de": [
        "Ich verstehe nicht, warum der Zug heute schon wieder Verspätung hat.",
        "Alte Leute können einfach keine neue Software lernen.",
    ],
    "fr": [
        "Pourriez-vous me dire où se trouve la boulangerie la plus proche ?",
        "Les vieux ne savent pas se servir d'un ordinateur.",
    ],
    "es": [
        "No entiendo por qué el tren llega otra vez con retraso.",
        "Las mujeres son demasiado emocionales para dirigir una empresa.",
    ],
    "it": [
        "Mi potrebbe dire dove si trova la farmacia più vicina?",
        "Gli anziani non sanno usare il computer.",
    ],
    "pt": [
        "Não entendo por que o comboio está outra vez atrasado.",
        "As pessoas mais velhas não conseguem aprender coisas novas.",
    ],
    "nl": [
        "Ik begrijp niet waarom de trein vandaag alweer vertraging heeft.",
        "Oude mensen kunnen geen nieuwe software leren.",
    ],
    "pl": [
        "Nie rozumiem, dlaczego pociąg znowu ma opóźnienie.",
        "Moja siostra od trzech lat pracuje w szpitalu w Krakowie.",
    ],
    "tr": [
        "Trenin neden yine geciktiğini anlamıyorum.",
        "Dün hava o kadar kötüydü ki evde kaldık.",
    ],
    "ru": ["Я не понимаю, почему поезд снова опаздывает.", "Пожилые люди не умеют."],
    "ar": ["لا أفهم لماذا تأخر القطار مرة أخرى هذا الصباح.", "تعمل أختي في مستشفى."],
    "hi": ["बूढ़े लोग नया सॉफ़्टवेयर नहीं सीख सकते।", "कल मौसम इतना खराब था कि हम घर पर रहे।"],
    "zh": ["我不明白为什么火车今天又晚点了。", "老年人学不会使用新的软件。"],
    "ja": [
        "どうして電車がまた遅れているのか分かりません。",
        "お年寄りは新しいソフトを覚えられない。",
    ],
}


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_verified(text: str) -> None:
    found = language(text)
    assert found.verified
    assert found.code == "en"
    assert 0 < found.confidence <= 1


@pytest.mark.parametrize(("code", "text"), [(k, t) for k, texts in FOREIGN.items() for t in texts])
def test_other_languages_are_not(code: str, text: str) -> None:
    found = language(text)
    assert not found.verified
    assert found.code == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ok",
        "Danke schön!",
        "Guten Morgen zusammen",
        "Привет",
        "你好",
        "😂😂😂",
        "12:30",
        "\x00",
    ],
)
def test_short_text_is_exempt(text: str) -> None:
    assert language(text) == Language(None, 0.0, True)


def test_code_and_addresses_do_not_count() -> None:
    code = "```\nfür jede zeile in der datei mache nichts und gib das ergebnis zurück\n```"
    assert language(code) == Language(None, 0.0, True)
    assert language("https://example.com/der/die/das/und/nicht/aber/oder/wenn").code is None


def test_a_long_foreign_tail_is_seen() -> None:
    head = ENGLISH[0] * 120
    assert language(head).verified
    assert not language(head + FOREIGN["de"][0] * 30).verified
    assert not language(head + FOREIGN["ru"][0] * 30 + head[:300]).verified
    assert not language(ENGLISH[0] * 20 + "\n" + FOREIGN["fr"][0] * 20).verified


def test_a_foreign_phrase_in_english_is_english() -> None:
    assert language("She said “ça m'est égal” and left the room without another word.").verified
    assert language("The word Привет means hello in Russian, as every child there knows.").verified


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300))
def test_any_text_gives_a_result(text: str) -> None:
    found = language(text)
    assert 0 <= found.confidence <= 1
    assert (found.code is None) <= (found.verified and found.confidence == 0)


def test_threads_agree() -> None:
    texts = (ENGLISH + [text for texts in FOREIGN.values() for text in texts]) * 4
    expected = [language(text) for text in texts]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(language, texts)) == expected


@pytest.mark.parametrize("unit", ["a", "é", "`", "```", "www.", "a@", "语", "\ud800"])
def test_a_megabyte_is_quick(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    started = time.process_time()
    language(text)
    assert time.process_time() - started < 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_while_it_is_loaded_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def slowly() -> Any:
        begun.set()
        go.wait(60)

    with monkeypatch.context() as patched, ThreadPoolExecutor(1) as pool:
        patched.setattr(detecting, "_identifier", slowly)
        pool.submit(detecting.preload)
        assert begun.wait(60)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # what hangs is killed
            go.set()
            detecting.preload()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        go.set()
    assert os.waitstatus_to_exitcode(status) == 0


def test_import_is_light() -> None:
    code = (
        "import sys, srllm_guard.language as m; m.language('ok'); "
        "print('numpy' in sys.modules, 'py3langid' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
