"""`clean`: a line as the model reads it aloud: lower case, spelled out, romanised where its script asks for it.

Per language: Latin, Cyrillic and Arabic script keep their letters and have numbers, abbreviations and symbols spelled
out; Chinese becomes pinyin, Japanese romaji, Korean is spelled out and romanised; Hindi is only lower-cased.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from acestep.lyrics import chinese, romaji
from acestep.lyrics.numbers import NumberSpeller
from acestep.lyrics.words import READINGS, SYMBOLS

_WHITESPACE = re.compile(r"\s+")
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe0e\ufe0f\ufeff]")
"""Marks without a sound: soft hyphen, zero width, direction, variation. Joiners stay: Hindi needs them."""
_DECOMPOSED = re.compile("\\w[\u0300-\u036f\u3099\u309a]+|[\u1100-\u11ff]+")
_SURROGATES = re.compile("[\ud800-\udfff]")
_TURKISH_CAPITALS = str.maketrans({"İ": "i", "Ö": "ö", "Ü": "ü"})


def clean(text: str, language: str) -> str:
    """The tidy line `text` as words of `language` (one of `acestep.request.LANGUAGES`).

    Raises:
        MissingPackageError: when the language needs an optional package that is not installed.
    """
    return _cleaner(language)(text)


def tidy(text: str) -> str:
    """`text` without invisible marks, with every accent in its letter."""
    text = _SURROGATES.sub("\ufffd", _INVISIBLE.sub("", text))
    # Not the whole text: the vocabulary holds Hindi and Arabic letters that composition would take apart.
    return _DECOMPOSED.sub(lambda letter: unicodedata.normalize("NFC", letter[0]), text)


@cache
def _cleaner(language: str) -> Callable[[str], str]:
    if language == "ja":
        return _clean_japanese
    if language == "hi":
        return _clean_hindi
    if language == "zh":
        return _clean_chinese
    spell_out = SpellOut(language)
    if language == "ko":
        return lambda text: romaji.romanize_hangul(spell_out(text))
    return spell_out


def _clean_japanese(text: str) -> str:
    return romaji.romaji(text).lower()


def _clean_hindi(text: str) -> str:
    return _WHITESPACE.sub(" ", text.lower())


def _clean_chinese(text: str) -> str:
    text = chinese.spell(text.replace('"', "").lower())
    return chinese.pinyin(_WHITESPACE.sub(" ", text))


class SpellOut:
    """Lower case, then numbers, abbreviations and symbols of one language as words."""

    def __init__(self, language: str):
        readings = READINGS[language]
        self._is_turkish = language == "tr"
        self._numbers = NumberSpeller(language)
        self._full_words = readings.abbreviations
        shortened = "|".join(re.escape(name) for name in sorted(readings.abbreviations, key=len, reverse=True))
        self._abbreviation = re.compile(rf"\b({shortened}){readings.abbreviation_end}") if shortened else None
        words = (word.replace("_", " ") for word in readings.symbols.split())
        self._symbols = {ord(symbol): f" {word} " for symbol, word in zip(SYMBOLS, words, strict=True)}

    def __call__(self, text: str) -> str:
        text = text.replace('"', "")
        if self._is_turkish:
            text = text.translate(_TURKISH_CAPITALS)
        text = self._numbers.spell(text.lower())
        if self._abbreviation:
            text = self._abbreviation.sub(lambda match: self._full_words[match[1]], text)
        return _WHITESPACE.sub(" ", text.translate(self._symbols).strip())
