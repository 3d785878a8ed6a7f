"""Numbers, ordinals and amounts of money as words, for the languages that spell them with num2words.

Chinese has its own rules (`acestep.lyrics.chinese`); Japanese and Hindi leave digits to their own cleaners.
"""

from __future__ import annotations

import re
import threading
from typing import Any

from acestep.lyrics import packages
from acestep.lyrics.words import READINGS

_CURRENCIES = {"$": "USD", "£": "GBP", "€": "EUR"}
_MAX_DIGITS = 27
"""Longer numbers are read digit by digit, as a person would."""

_MONEY = re.compile(
    r"(?P<before>[$£€])(?P<amount>[0-9.,]*[0-9])|(?<![0-9.,])(?P<amount2>[0-9.,]*[0-9])(?P<after>[$£€])"
)
_DECIMAL = re.compile(r"(?<![0-9])([0-9]+)[.,]([0-9]+)")
_INTEGER = re.compile(r"[0-9]+")

_LANGUAGES_WITHOUT_CURRENCY = ("ar",)
"""num2words reads every currency as riyals there."""

_num2words_lock = threading.Lock()  # num2words keeps the number at hand on shared converters.


def can_spell() -> bool:
    """Whether num2words is here; without it digits stay digits."""
    return packages.is_installed("num2words")


class NumberSpeller:
    """Spells the numbers of one language."""

    def __init__(self, language: str):
        self.language = language
        readings = READINGS[language]
        self._and_cents = readings.and_cents
        thousands = re.escape(readings.thousands)
        decimal = re.escape("." if readings.thousands == "," else ",")
        self._separator = readings.thousands
        self._grouped = re.compile(rf"\b[0-9]{{1,3}}(?:{thousands}[0-9]{{3}})+(?:{decimal}[0-9]+)?\b")
        self._ordinal = re.compile(rf"(?<![0-9])([0-9]+)(?:{readings.ordinal})")

    def spell(self, text: str) -> str:
        """Replace every number in `text`; lower-case text in, lower-case text out."""
        if not _INTEGER.search(text) or not can_spell():
            return text
        text = self._grouped.sub(lambda match: match[0].replace(self._separator, ""), text)
        text = _MONEY.sub(self._money, text)
        text = _DECIMAL.sub(self._decimal, text)
        text = self._ordinal.sub(lambda match: self._words(int_of(match[1]), ordinal=True) or match[0], text)
        return _INTEGER.sub(lambda match: self._cardinal(match[0]), text)

    def _cardinal(self, digits: str) -> str:
        words = self._words(int_of(digits))
        return words or " ".join(self._words(int(digit)) or digit for digit in digits)

    def _decimal(self, match: re.Match[str]) -> str:
        if self.language == "tr":  # num2words would read the fraction with a zero too many.
            return f"{match[1]} virgül {match[2]}"
        return self._words(float_of(f"{match[1]}.{match[2]}")) or match[0]

    def _money(self, match: re.Match[str]) -> str:
        symbol, digits = match["before"] or match["after"], match["amount"] or match["amount2"]
        amount = float_of(digits.replace(",", "."))
        words = None
        if self.language not in _LANGUAGES_WITHOUT_CURRENCY:
            words = self._words(amount, to="currency", currency=_CURRENCIES[symbol])
        if amount is None or words is None:
            return f"{digits} {symbol}"
        if amount.is_integer() and self._and_cents in words:
            words = words[: words.rindex(self._and_cents)]
        return words

    def _words(self, number: int | float | None, **how: Any) -> str | None:
        if number is None:
            return None
        num2words = packages.load("num2words", "spelling out numbers").num2words
        try:
            with _num2words_lock:
                return num2words(number, lang=self.language, **how)
        except Exception:  # What num2words cannot do, it says with a different exception in every language.
            return None


def int_of(digits: str) -> int | None:
    """The number, unless it is too long to be read as one."""
    return int(digits) if len(digits) <= _MAX_DIGITS else None


def float_of(digits: str) -> float | None:
    """The number, unless it is none or too long to be read as one."""
    try:
        return float(digits) if len(digits) <= _MAX_DIGITS else None
    except ValueError:
        return None
