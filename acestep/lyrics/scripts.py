"""Which script a letter, a line, a song is written in; the names of scripts are Unicode's, in lower case."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

LATIN = "latin"
HAN = "han"
KANA = "kana"

_NAMES = {  # The first word of a letter's Unicode name, where it does not name the script.
    **{"CJK": HAN, "IDEOGRAPHIC": HAN, "HIRAGANA": KANA, "KATAKANA": KANA, "HALFWIDTH": KANA},
    **{"FULLWIDTH": LATIN, "FEMININE": LATIN, "MASCULINE": LATIN, "MICRO": LATIN},
}

SUNG = (LATIN, "cyrillic", "arabic", "devanagari", HAN, KANA, "hangul")
"""The scripts of the languages that the model sings."""


@lru_cache(maxsize=16_384)
def script_of(character: str) -> str:
    """The script of a letter; empty for what is no letter."""
    if not character.isalpha():
        return ""
    word = unicodedata.name(character, "UNNAMED").replace("-", " ").split()[0]
    return _NAMES.get(word, word.lower())


def scripts_in(text: str) -> Counter[str]:
    """How many letters of each script `text` has."""
    scripts = Counter(map(script_of, text))
    scripts.pop("", None)
    return scripts


def leading_script(scripts: Counter[str]) -> str:
    """The script that decides how a line is read; empty without letters of a script that the model sings.

    Latin letters can be read in every language, so any other script goes before them; kana make the Han
    characters beside them Japanese.
    """
    others = {script: count for script, count in scripts.items() if script in SUNG and script != LATIN}
    if not others:
        return LATIN if LATIN in scripts else ""
    leader = max(others, key=lambda script: others[script])
    return KANA if leader == HAN and KANA in others else leader


def is_beyond_latin(text: str) -> bool:
    """Whether any letter of `text` is not Latin."""
    return any(script != LATIN for script in scripts_in(text))


def unsung_shares(lines: Iterable[str]) -> dict[str, float]:
    """Share of the letters in each script that the model does not sing, largest first."""
    scripts: Counter[str] = Counter()
    for line in lines:
        scripts.update(scripts_in(line))
    total = sum(scripts.values())
    return {script: count / total for script, count in scripts.most_common() if script not in SUNG}
