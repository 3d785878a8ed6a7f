"""Japanese and Korean lyrics in Latin letters."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

from acestep.lyrics import packages

_cutlet_lock = threading.Lock()  # MeCab, below it, is not made for threads.


def romaji(text: str) -> str:
    """Japanese in Hepburn romaji.

    Raises:
        MissingPackageError: without cutlet, fugashi and unidic-lite.
    """
    with _cutlet_lock:
        return _cutlet().romaji(text)


def romanize_hangul(text: str) -> str:
    """Korean letter by letter (academic romanisation): `salanghae`.

    Raises:
        MissingPackageError: without hangul-romanize.
    """
    return _transliter().translit(text)


@lru_cache(maxsize=1)
def _cutlet() -> Any:
    cutlet = packages.load("cutlet", "Japanese lyrics")
    packages.load("unidic_lite", "Japanese lyrics")
    return cutlet.Cutlet()


@lru_cache(maxsize=1)
def _transliter() -> Any:
    hangul_romanize = packages.load("hangul_romanize", "Korean lyrics")
    rule = packages.load("hangul_romanize.rule", "Korean lyrics")
    return hangul_romanize.Transliter(rule.academic)
