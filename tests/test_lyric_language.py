"""Telling languages apart, on verses written for this test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acestep.lyrics.language import languages_of, latin_language
from acestep.lyrics.scripts import leading_script, script_of, scripts_in, unsung_shares
from acestep.request import LANGUAGES

VERSES = json.loads((Path(__file__).parent / "golden_data" / "lyric_verses.json").read_text(encoding="utf-8"))


def auto(*lines: str) -> list[str]:
    return languages_of(lines)[0]


def test_there_are_verses_in_every_language():
    assert set(VERSES) == set(LANGUAGES)


@pytest.mark.parametrize(("mode", "share"), [("auto", 0.98), ("per-line", 0.95)])
def test_verses_are_told_apart(mode, share):
    told = [
        code == language
        for language, verses in VERSES.items()
        for verse in verses
        for code in languages_of(verse, mode)[0]
    ]
    assert sum(told) >= share * len(told)


@pytest.mark.parametrize("language", sorted(set(LANGUAGES) - {"ar", "ja", "zh", "ko", "hi", "ru"}))
def test_a_tag_or_a_vocable_does_not_change_the_song(language):
    verse = VERSES[language][0]
    lines = ["[Chorus]", "Oh oh oh", "", *verse, "La la la", "Hey, hey, yeah"]
    assert languages_of(lines)[0] == ["en", language, "", *[language] * 6]


def test_capitals_are_read_like_small_letters():
    assert {*auto(*(line.upper() for line in VERSES["es"][0]))} == {"es"}


def test_lines_in_another_script_are_followed():
    assert auto("사랑해 너를", "Hold me tonight", "너만을 원해") == ["ko", "en", "ko"]
    assert auto(*VERSES["en"][0], "我爱你")[-1] == "zh"
    assert auto("사랑해 baby 너를", "I love you 我爱你 forever") == ["ko", "zh"]


def test_han_lines_of_a_japanese_song_are_japanese():
    assert auto("君の名は", "永遠", "夜の街を歩く") == ["ja", "ja", "ja"]
    assert auto("我走过深夜的街道", "你是我的爱", "さくら") == ["zh", "zh", "ja"]


def test_lines_without_letters_follow_the_song():
    assert auto("Привет", "100", "...") == ["ru", "ru", "ru"]
    assert auto("...", "1, 2, 3") == ["en", "en"]


def test_an_explicit_language_wins():
    assert languages_of(["[verse]", "Привет", "", "hello"], "fr")[0] == ["en", "fr", "", "fr"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("I love you", "en"),
        ("Oh baby baby", "en"),
        ("Je t’aime", "fr"),
        ("Te quiero", "es"),
        ("Ti amo da morire", "it"),
        ("Eu te amo", "pt"),
        ("Ich liebe dich", "de"),
        ("Kocham cię", "pl"),
        ("Miluji tě navždy", "cs"),
        ("Ik hou van jou", "nl"),
        ("Seni seviyorum", "tr"),
        ("Szeretlek", "hu"),
        ("", "en"),
        ("123 !", "en"),
    ],
)
def test_short_lines(text, language):
    assert latin_language(text) == language


def test_scripts():
    assert [script_of(letter) for letter in "aéºΩяعहか々カー愛한9 "] == [
        *("latin", "latin", "latin", "greek", "cyrillic", "arabic", "devanagari"),
        *("kana", "han", "kana", "kana", "han", "hangul", "", ""),
    ]
    assert leading_script(scripts_in("baby 愛の")) == "kana"
    assert leading_script(scripts_in("Ω")) == ""
    assert unsung_shares(["abc", "Ω 1"]) == {"greek": 0.25}
