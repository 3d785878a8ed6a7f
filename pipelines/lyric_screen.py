"""`LyricScreen`: what lyrics are like, found without reading them out, which takes 6 ms a song; this some microseconds.

Where it finds nothing, nothing is wrong; lyrics that may be too long are read as the engine does.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from acestep.errors import ACEStepError, InvalidRequestError
from acestep.lyrics.scripts import HAN, KANA, SUNG, script_of, unsung_shares
from acestep.lyrics.tags import is_known, normalize_tag, normalized_lines, tag_of

if TYPE_CHECKING:
    from acestep.lyrics import LyricTokenizer

SYLLABLES = (HAN, KANA, "hangul")
"""Scripts in which a letter is a syllable or a word: it counts for three, and is read out in Latin letters."""

_TAG = re.compile(r"\[[^\]\n]*\]")
_NOT_COUNTED = bytes(set(range(256)) - set(b"0123456789&@%#$"))
_READ_ALOUD = ("£".encode(), "°".encode(), "€".encode())
_LINE_ENDS = (b"\n", b"\r")
_LETTERS_OF_A_NUMBER = 11
"""Letters that a digit or symbol is read with beyond its own, at most: seven hundred and seventy-seven thousand ..."""
_LETTERS_OF_A_SYLLABLE = 4
"""Letters of pinyin or romaji beyond the one it is written with: single ones have more, a song on average fewer."""
_SPELLED_OUT = frozenset('"&@%#$£°€[]')
"""Characters that are read out, left out, or belong to tags."""
_CACHED_SONGS = 1024


class LyricScreen:
    """Lyrics in a language (a code, auto, per-line), tags normalised or not, as in a request."""

    def __init__(self, text: str, language: str = "auto", normalize_tags: bool = True):
        self.text = text
        self.language = language
        self.normalize_tags = normalize_tags

    @cached_property
    def codes(self) -> np.ndarray:
        """The characters' code points."""
        return np.frombuffer(self.text.encode("utf-32-le"), np.uint32)

    @property
    def most_sung_letters(self) -> int:
        """A number that `sung_letters` does not exceed."""
        return len(self.text) if self.text.isascii() else 3 * len(self.text)

    @cached_property
    def sung_letters(self) -> int:
        """Letters outside tags; Han, Kana and Hangul count for three."""
        counts = Counter(_TAG.sub("", self.text))
        letters = ((script_of(each), count) for each, count in counts.items() if each.isalpha())
        return sum(count * (3 if script in SYLLABLES else 1) for script, count in letters)

    @property
    def is_read_out(self) -> bool:
        """Whether any letter is a syllable or a word: such lyrics are read with a comma for every mark."""
        return any(map(_is_syllable, self.text))

    @property
    def most_tokens(self) -> int:
        """A number that the tokens of a song do not exceed; each of them has a letter at least."""
        data = self.text.encode()
        syllables = (len(data) - len(self.text)) // 2  # At most: each has three bytes.
        aloud = len(data.translate(None, _NOT_COUNTED)) + sum(map(data.count, _READ_ALOUD))
        lines = 1 + sum(map(data.count, _LINE_ENDS))
        spoken = _LETTERS_OF_A_SYLLABLE * syllables + _LETTERS_OF_A_NUMBER * aloud
        return 2 + 2 * lines + len(self.text) + spoken

    @property
    def fewest_tokens(self) -> int:
        """A number that the tokens hardly fall below, whatever the vocabulary: a token has five letters at most."""
        return len(self.text) // 5

    @cached_property
    def unsung(self) -> dict[str, float]:
        """Share of the letters in each script that none of the model's languages has, largest first."""
        if self.text.isascii() or not _sung.others(self.codes):
            return {}
        return unsung_shares(line for line in map(str.strip, self.text.splitlines()) if not tag_of(line))

    @cached_property
    def strange_tags(self) -> tuple[str, ...]:
        """Tags at the beginning of a line that the model was not taught."""
        if all(_is_taught(tag, self.normalize_tags) for tag in _TAG.findall(self.text)):
            return ()
        lines: Iterable[str] = (line.strip() for line in self.text.splitlines())
        if self.normalize_tags:
            lines = (part for line in lines for part in normalized_lines(line))
        return tuple(dict.fromkeys(tag for line in lines if (tag := tag_of(line)) and not is_known(tag)))


@lru_cache(maxsize=_CACHED_SONGS)
def screen_of(text: str, language: str, normalize_tags: bool) -> LyricScreen:
    """The screen of lyrics that several songs may share."""
    return LyricScreen(text, language, normalize_tags)


class _Fine:
    """Which characters are fine: asked once for each, then looked up for a whole text at once."""

    _UNKNOWN, _STRANGE, _FINE = 0, 1, 2

    def __init__(self, is_fine: Callable[[str], bool]):
        self._is_fine = is_fine
        self._states = np.zeros(sys.maxunicode + 1, np.uint8)

    def others(self, codes: np.ndarray) -> str:
        """The characters that are not, as often as they occur in a text given as code points."""
        states = self._states.take(codes)
        seen = states.tobytes()
        if self._UNKNOWN in seen:
            for code in set(codes.tolist()):
                self._states[code] = self._FINE if self._is_fine(chr(code)) else self._STRANGE
            states = self._states.take(codes)
        elif self._STRANGE not in seen:
            return ""
        return "".join(map(chr, codes[states == self._STRANGE].tolist()))


_sung = _Fine(lambda character: script_of(character) in ("", *SUNG))


@lru_cache(maxsize=4096)
def _is_taught(tag: str, normalize_tags: bool) -> bool:
    return is_known(normalize_tag(tag) if normalize_tags else tag)


class LyricVocabulary:
    """What a lyric vocabulary can spell; without its file, all letters of the scripts that the model sings."""

    def __init__(self, path: str | None = None):
        self._path = path
        self._alphabet: frozenset[str] | None = None
        if path is not None:
            names = json.loads(Path(path).read_text(encoding="utf-8"))["model"]["vocab"]
            self._alphabet = frozenset(name for name in names if len(name) == 1)
        self._spelled = _Fine(self._spells)
        self._too_long = lru_cache(maxsize=_CACHED_SONGS)(self._read)

    @classmethod
    @lru_cache(maxsize=4)
    def at(cls, path: str | None) -> LyricVocabulary:
        """The vocabulary of a file, read once a process."""
        return cls(path)

    def unspelled(self, lyrics: LyricScreen) -> str:
        """The characters that neither are in the alphabet nor are read out as others, as often as they occur."""
        return self._spelled.others(lyrics.codes)

    def too_long(self, lyrics: LyricScreen) -> str | None:
        """What is wrong with the length of these lyrics as the engine reads them, or nothing.

        None where that is not known: without the file, or without an optional package that their language needs.
        """
        return self._too_long(lyrics.text, lyrics.language, lyrics.normalize_tags) if self._path else None

    def _read(self, text: str, language: str, normalize_tags: bool) -> str | None:
        assert self._path is not None
        try:
            _tokenizer(self._path).encode(text, language, normalize_tags=normalize_tags)
        except InvalidRequestError as error:
            return error.problems[0].allowed
        except ACEStepError:
            return None
        return ""

    def _spells(self, character: str) -> bool:
        kind = unicodedata.category(character)
        if (
            kind[0] in "ZM"
            or kind in ("Cc", "Cf")
            or character.isdigit()
            or character in _SPELLED_OUT
            or _is_syllable(character)
        ):
            return True
        if self._alphabet is not None:
            return all(each in self._alphabet for each in character.lower())
        return character.isascii() or kind[0] == "P" or script_of(character) in SUNG


@lru_cache(maxsize=4)
def _tokenizer(path: str) -> LyricTokenizer:
    from acestep.lyrics import LyricTokenizer

    return LyricTokenizer(path)


def _is_syllable(character: str) -> bool:
    return character > "\u10ff" and script_of(character) in SYLLABLES
