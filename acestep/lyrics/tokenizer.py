"""`LyricTokenizer`: lyrics in, the token ids that the lyric encoder reads out.

The vocabulary is a `tokenizers` file that comes with the checkpoint. Tokens are looked up by name, so that a small
vocabulary works too. What is said in each language is decided in `language`, how it is spelled in `clean`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from acestep.errors import CheckpointError, InvalidRequestError
from acestep.lyrics import numbers, packages
from acestep.lyrics.clean import clean, tidy
from acestep.lyrics.language import languages_of
from acestep.lyrics.scripts import is_beyond_latin, unsung_shares
from acestep.lyrics.tags import TAGS, is_known, normalized_lines, tag_of
from acestep.lyrics.words import READINGS
from acestep.problems import Problem, nearest
from acestep.request import LANGUAGES

MAX_IDS = 4096
"""Longest lyrics that the model was trained on."""

_LINE_END = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")
_DIGIT = re.compile("[0-9]")
_CACHED_LINES = 8192
_SHOWN_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class EncodedLyrics:
    """Token ids of one song's lyrics, and how they came about."""

    ids: tuple[int, ...]
    languages: tuple[str, ...] = ()
    """The language of each line; empty for an empty line."""
    unknown_share: float = 0.0
    """Share of the tokens that stand for something the vocabulary does not have."""
    warnings: tuple[str, ...] = ()
    is_instrumental: bool = False
    """No lyrics: the one id is masked out."""

    @property
    def mask(self) -> tuple[int, ...]:
        """1 for every id that the model may look at."""
        return (0 if self.is_instrumental else 1,) * len(self.ids)


@dataclass(frozen=True, slots=True)
class EncodedLine:
    """Token ids of one line, without the newline's."""

    ids: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()
    """Each character that the vocabulary does not have; the brackets of a structure tag do not count."""


class LyricTokenizer:
    """Encodes lyrics with the vocabulary at `vocab_path`; safe to share between threads.

    Raises:
        CheckpointError: when the file is no such vocabulary.
    """

    def __init__(self, vocab_path: str | os.PathLike[str]):
        self.vocab_path = Path(vocab_path)
        try:
            self._tokenizer = Tokenizer.from_file(str(self.vocab_path))
        except Exception as error:  # tokenizers raises bare Exception.
            raise CheckpointError(f"{self.vocab_path} is not a lyric vocabulary: {error}") from error
        self._start, self.newline, self._unknown = map(self._required_id, ("[START]", "[SPACE]", "[UNK]"))
        self._required_id(_language_token("en"))
        stop = self._tokenizer.token_to_id("[STOP]")
        self._instrumental = EncodedLyrics(ids=(stop or 0,), is_instrumental=True)  # what the model was trained on
        special = (token.content for token in self._tokenizer.get_added_tokens_decoder().values())
        guarded = "|".join(re.escape(name[1:]) for name in special if name[:1] == "[" and name not in TAGS)
        self._forged = re.compile(rf"\[(?=(?:{guarded or '(?!)'}))")
        known = self._tokenizer.get_vocab()
        self.languages = tuple(code for code in LANGUAGES if _language_token(code) in known)
        """The languages that the vocabulary has a token for."""
        self._encode_line = lru_cache(maxsize=_CACHED_LINES)(self._encode_line_anew)

    def __reduce__(self) -> tuple[type, tuple]:  # Ray sends it by path; each process has its own cache.
        return type(self), (self.vocab_path,)

    def encode(self, lyrics: str | None, language: str = "auto", *, normalize_tags: bool = False) -> EncodedLyrics:
        """Encode whole lyrics; not one line is dropped.

        Args:
            lyrics: Lines with structure tags such as `[verse]` on lines of their own; blank is instrumental.
            language: A code, `auto` (the song decides) or `per-line`.
            normalize_tags: Put tags as the model knows them, each on a line of its own: `[Verse 2] Hello` becomes
                `[verse]` and `Hello`.

        Raises:
            InvalidRequestError: for an unknown language, or lyrics of more than `MAX_IDS` tokens.
            MissingPackageError: when the language needs an optional package that is not installed.
        """
        _check_language(language)
        lines = [line.strip() for line in _LINE_END.split(tidy(lyrics or ""))]
        if not any(lines):
            return self._instrumental
        if normalize_tags:
            lines = [part for line in lines for part in normalized_lines(line)]
        languages, warnings = languages_of(lines, language)
        encoded = [self.encode_line(line, code) for line, code in zip(lines, languages, strict=True)]
        ids = [self._start]
        for line in encoded:
            ids += [*line.ids, self.newline]
        if len(ids) > MAX_IDS:
            too_long = f"it makes {len(ids):,} tokens, the limit is {MAX_IDS:,}: shorten it or split the song"
            raise InvalidRequestError([Problem("lyrics", lyrics, too_long)])
        unknown = [character for line in encoded for character in line.unknown]
        share = len(unknown) / max(sum(len(line.ids) - 1 for line in encoded if line.ids), 1)
        warnings += self._warnings(lines, languages)
        if unknown:
            warnings.append(f"{share:.1%} of the tokens are not in the lyric vocabulary: {_listed(unknown)}")
        return EncodedLyrics(tuple(ids), tuple(languages), share, tuple(warnings))

    def encode_line(self, line: str, language: str) -> EncodedLine:
        """One tidy, stripped line in one language."""
        return self._encode_line(line, language) if line else EncodedLine()

    def _encode_line_anew(self, line: str, language: str) -> EncodedLine:
        token = _language_token(language if language in self.languages else "en")
        # The line end, which means nothing, keeps a `[ja]` that someone wrote from being read as the token.
        words = self._forged.sub("[\n", clean(line, language))
        text = token + words.replace(" ", "[SPACE]")
        encoding = self._tokenizer.encode(text)
        unknown = [
            text[first:end]
            for id_, (first, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if id_ == self._unknown
        ]
        if tag_of(line):
            unknown = [character for character in unknown if character not in "[]"]
        return EncodedLine(tuple(encoding.ids), tuple(unknown))

    def _warnings(self, lines: list[str], languages: list[str]) -> list[str]:
        warnings = []
        strange = dict.fromkeys(tag for line in lines if (tag := tag_of(line)) and not is_known(tag))
        if strange:
            warnings.append(f"the model was not taught these tags and may sing them: {', '.join(strange)}")
        if any((tag := tag_of(line)) and is_beyond_latin(line.removeprefix(tag)) for line in lines):
            warnings.append("what stands behind a tag is read as English: put each tag on a line of its own")
        missing = [code for code in dict.fromkeys(languages) if code and code not in self.languages]
        if missing:
            warnings.append(f"the lyric vocabulary has no token for {', '.join(missing)}: marked as English")
        spelled = (line for line, code in zip(lines, languages, strict=True) if code in READINGS)
        if not numbers.can_spell() and any(map(_DIGIT.search, spelled)):
            warnings.append(f"numbers are left as digits: num2words is not installed ({packages.INSTALL_HINT})")
        shares = unsung_shares(line for line in lines if not tag_of(line))
        warnings += [
            f"{share:.1%} of the letters are {script.title()}, which the model does not sing"
            for script, share in shares.items()
        ]
        return warnings

    def _required_id(self, name: str) -> int:
        if (token := self._tokenizer.token_to_id(name)) is None:
            raise CheckpointError(f"{self.vocab_path} is not a lyric vocabulary: it has no token {name}")
        return token


def _language_token(language: str) -> str:
    return "[zh-cn]" if language == "zh" else f"[{language}]"


def _check_language(language: str) -> None:
    allowed = ("auto", "per-line", *LANGUAGES)
    if language not in allowed:
        hint = nearest(str(language), allowed)
        problem = f"allowed: {', '.join(allowed)}" + (f"; {hint}" if hint else "")
        raise InvalidRequestError([Problem("language", language, problem)])


def _listed(characters: Iterable[str]) -> str:
    different = sorted(set(characters))
    shown = " ".join(
        character if character.isprintable() else f"U+{ord(character):04X}"
        for character in different[:_SHOWN_CHARACTERS]
    )
    return shown + (f" and {len(different) - _SHOWN_CHARACTERS} more" if len(different) > _SHOWN_CHARACTERS else "")
