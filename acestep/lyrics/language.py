"""In which language each line is sung: as told, one decision for the whole song, or line by line.

The script decides first; only Latin script needs a guess, by py3langid among the languages the model sings.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from acestep.lyrics import packages
from acestep.lyrics.common_words import COMMON_WORDS
from acestep.lyrics.scripts import HAN, KANA, LATIN, leading_script, scripts_in
from acestep.lyrics.tags import tag_of

DEFAULT = "en"
_OF_SCRIPT = {"cyrillic": "ru", "arabic": "ar", "devanagari": "hi", HAN: "zh", KANA: "ja", "hangul": "ko"}
_OF_LATIN_SCRIPT = tuple(COMMON_WORDS)
_COMMON_WORDS = {language: frozenset(words.split()) for language, words in COMMON_WORDS.items()}

_VOCABLE = re.compile(r"\b(?:a+h+|o+h+|u+h+|h+u+h|e+h+|wo+a*h*|hey+|yea+h*|(?:la|na|da|doo?|m+|h+m+|bab(?:y|e))+)\b")
"""What is sung alike in every language."""
_WORD = re.compile(r"\w+(?:'\w+)*")
_REPETITION = re.compile(r"\b(\w+)(?:\W+\1\b)+")

_WORD_WEIGHT = 3.0
"""What one common word adds to the logarithm of the probability."""
_FLOOR = 1e-12
"""py3langid is far too sure of itself on short lines."""

_LIKELY = 0.5
"""Below this the guess is no better than English, the language of most songs."""
_CERTAIN = 0.9
"""Below this a few Latin lines among another script are English, as such lines mostly are."""

_identifier_lock = threading.Lock()


def languages_of(lines: Sequence[str], language: str = "auto") -> tuple[list[str], list[str]]:
    """The language of each of `lines`, and warnings.

    Args:
        lines: Stripped lines; an empty line has the empty language, one with a structure tag is English.
        language: A code, `auto` (the song decides) or `per-line`.
    """
    sung = [line for line in lines if line and not tag_of(line)]
    if language == "auto":
        of_line, guessed = _by_song(sung)
    elif language == "per-line":
        of_line, guessed = _by_line(sung)
    else:
        of_line, guessed = dict.fromkeys(sung, language), False
    warnings = []
    if guessed and not packages.is_installed("py3langid"):
        warnings.append(
            f"lyrics in Latin script are taken for English: py3langid is not installed ({packages.INSTALL_HINT})"
        )
    return [of_line.get(line, DEFAULT if line else "") for line in lines], warnings


def latin_language(text: str, likely: float = _LIKELY) -> str:
    """The language of `text` in Latin script; English unless the guess is as `likely`, or py3langid is missing."""
    text = _REPETITION.sub(r"\1", _VOCABLE.sub(" ", text.lower().replace("\u2019", "'")))
    words = set(_WORD.findall(text))
    if not words or not packages.is_installed("py3langid"):
        return DEFAULT
    evidence = {
        language: math.log(max(float(probability), _FLOOR)) + _WORD_WEIGHT * len(words & _COMMON_WORDS[language])
        for language, probability in _identifier().rank(text)
    }
    best = max(evidence, key=lambda language: evidence[language])
    probability = 1 / sum(math.exp(other - evidence[best]) for other in evidence.values())
    return best if probability >= likely else DEFAULT


def _by_line(lines: list[str]) -> tuple[dict[str, str], bool]:
    of_line, guessed = {}, False
    for line in lines:
        script = leading_script(scripts_in(line))
        guessed |= script == LATIN
        of_line[line] = latin_language(line) if script == LATIN else _OF_SCRIPT.get(script, DEFAULT)
    return of_line, guessed


def _by_song(lines: list[str]) -> tuple[dict[str, str], bool]:
    """One language per script; lines without letters follow the song."""
    script_of_line = {line: leading_script(scripts_in(line)) for line in lines}
    counts = Counter(script_of_line[line] for line in lines)
    of_script = dict(_OF_SCRIPT)
    if counts[KANA] >= counts[HAN] > 0:
        of_script[HAN] = "ja"
    if counts[LATIN]:
        text = "\n".join(line for line, script in script_of_line.items() if script == LATIN)
        is_minority = counts[LATIN] < sum(counts[script] for script in _OF_SCRIPT)
        of_script[LATIN] = latin_language(text, _CERTAIN if is_minority else _LIKELY)
    del counts[""]
    of_script[""] = of_script[max(counts, key=lambda script: counts[script])] if counts else DEFAULT
    return {line: of_script[script] for line, script in script_of_line.items()}, bool(counts[LATIN])


def _identifier() -> Any:
    with _identifier_lock:
        return _make_identifier()


@lru_cache(maxsize=1)
def _make_identifier() -> Any:
    langid = packages.load("py3langid.langid", "telling languages apart")
    identifier = langid.LanguageIdentifier.from_pickled_model(langid.MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(_OF_LATIN_SCRIPT))
    return identifier
