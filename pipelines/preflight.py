"""Preflight: what is wrong with a song, or odd about it, that can be told from its text, found before anything is made.

Each rule is a function of a song, named as its option in `PreflightSection`; the option says whether what it finds
refuses the row, or is only told. Rules are cheap, for there may be a million rows: each says at a glance that a usual
song is fine, and looks closely at the others only.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from acestep.problems import Problem
from acestep.request import GenerationRequest
from acestep.tokens import MAX_PROMPT_TOKENS
from pipelines import outside
from pipelines.lyric_screen import LyricScreen, LyricVocabulary, screen_of
from pipelines.rejects import Finding
from pipelines.sections import PreflightSection

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_LYRIC_TOKENS = 4096
"""As `acestep.lyrics.MAX_IDS`, without importing it."""

_LETTERS_OF_A_TOKEN = 5


@dataclass(frozen=True, slots=True)
class Song:
    """What rules look at.

    Attributes:
        lyrics: None for an instrumental song.
        settings: a request for all else; its prompt, lyrics, duration and seed may be another song's.
    """

    prompt: str
    lyrics: LyricScreen | None
    duration: float
    settings: GenerationRequest

    @classmethod
    def of(cls, prompt: str, lyrics: str, duration: float, settings: GenerationRequest) -> Song:
        """A song of these texts."""
        sung = screen_of(lyrics, settings.language, settings.normalize_tags) if lyrics.strip() else None
        return cls(prompt, sung, duration, settings)


@dataclass(frozen=True, slots=True)
class Means:
    """What rules work with.

    Attributes:
        prompt_tokenizer: path of the checkpoint's `tokenizer.json`; None: an estimate that errs for the song.
        lyric_vocab: path of its lyric vocabulary; None: the same.
        songs: sources that the catalog has; they need no look.
    """

    section: PreflightSection
    prompt_tokenizer: str | None = None
    lyric_vocab: str | None = None
    songs: frozenset[str] = frozenset()


def prompt_length(song: Song, means: Means) -> Problem | None:
    """A prompt of which the model does not read the end.

    A token has a byte at least (of the text as the tokenizer normalises it, which may be longer), and there is an end
    token: few bytes need no counting. Without the tokenizer a token counts for five bytes.
    """
    size = _most_bytes(song.prompt)
    if size + 2 <= MAX_PROMPT_TOKENS:
        return None
    if means.prompt_tokenizer is None:
        count = size // _LETTERS_OF_A_TOKEN
    else:
        count = len(_prompt_tokenizer(means.prompt_tokenizer).encode(song.prompt).ids)
    if count <= MAX_PROMPT_TOKENS:
        return None
    return Problem("prompt", song.prompt, f"it makes {count:,} tokens, the model reads {MAX_PROMPT_TOKENS}")


def lyrics_length(song: Song, means: Means) -> Problem | None:
    """Lyrics of more tokens than the model was trained on; without the vocabulary a token counts for five letters."""
    lyrics = song.lyrics
    if lyrics is None or lyrics.most_tokens <= MAX_LYRIC_TOKENS:
        return None
    if (reason := LyricVocabulary.at(means.lyric_vocab).too_long(lyrics)) is not None:
        return Problem("lyrics", lyrics.text, reason) if reason else None
    if lyrics.fewest_tokens <= MAX_LYRIC_TOKENS:
        return None
    allowed = f"it makes {lyrics.fewest_tokens:,} tokens or more, the limit is {MAX_LYRIC_TOKENS:,}: shorten it"
    return Problem("lyrics", lyrics.text, f"{allowed} or split the song")


def lyrics_density(song: Song, means: Means) -> Problem | None:
    """More letters than can be sung in the length."""
    limit = means.section.max_characters_per_second * song.duration
    if song.lyrics is None or song.lyrics.most_sung_letters <= limit or song.lyrics.sung_letters <= limit:
        return None
    speed = song.lyrics.sung_letters / song.duration
    return Problem(
        "lyrics",
        song.lyrics.text,
        f"{song.lyrics.sung_letters:,} letters in {song.duration:g} s are {speed:.0f} a second; "
        f"at most {means.section.max_characters_per_second:g} can be sung: shorten the lyrics or lengthen the song",
    )


def language(song: Song, means: Means) -> Problem | None:
    """Letters of a script that none of the model's languages is written in."""
    if song.lyrics is None or not song.lyrics.unsung:
        return None
    shares = (f"{share:.1%} of the letters are {script.title()}" for script, share in song.lyrics.unsung.items())
    return Problem("lyrics", song.lyrics.text, f"{', '.join(shares)}, which the model does not sing")


def unknown_tokens(song: Song, means: Means) -> Problem | None:
    """Lyrics with a large share of characters that the vocabulary has no token for, and that are not read out."""
    if song.lyrics is None:
        return None
    unspelled = LyricVocabulary.at(means.lyric_vocab).unspelled(song.lyrics)
    limit = means.section.max_unknown_share
    if len(unspelled) > limit * len(song.lyrics.text) and song.lyrics.is_read_out:
        unspelled = "".join(each for each in unspelled if unicodedata.category(each)[0] != "P")
    share = len(unspelled) / len(song.lyrics.text)
    if share <= limit:
        return None
    letters = " ".join(each for each, _ in Counter(unspelled).most_common(10))
    return Problem("lyrics", song.lyrics.text, f"{share:.1%} cannot be spelled: {letters}; at most {limit:.1%}")


def structure_tags(song: Song, means: Means) -> Problem | None:
    """A `[tag]` that the model was not taught, and may sing."""
    if song.lyrics is None or not song.lyrics.strange_tags:
        return None
    tags = ", ".join(song.lyrics.strange_tags[:10])
    return Problem("lyrics", song.lyrics.text, f"the model was not taught these tags and may sing them: {tags}")


def lora(song: Song, means: Means) -> Problem | None:
    """An adapter that is not there, cannot be reached, or is damaged."""
    name = song.settings.lora
    if name is None or not (reason := outside.adapter(name)[1]):
        return None
    return Problem("lora", name, reason)


def source(song: Song, means: Means) -> Problem | None:
    """A source that is not there or cannot be read: its header is looked at."""
    address = song.settings.source
    if address is None or address in means.songs or not (reason := outside.source_problem(address)):
        return None
    return Problem("source", address, reason)


Rule = Callable[[Song, Means], Problem | None]

RULES: dict[str, tuple[Rule, tuple[str, ...]]] = {
    "prompt_length": (prompt_length, ("prompt",)),
    "lyrics_length": (lyrics_length, ("lyrics", "language")),
    "lyrics_density": (lyrics_density, ("lyrics", "duration")),
    "language": (language, ("lyrics",)),
    "unknown_tokens": (unknown_tokens, ("lyrics", "language")),
    "structure_tags": (structure_tags, ("lyrics",)),
    "lora": (lora, ("lora",)),
    "source": (source, ("source",)),
}
"""Each rule, and the fields that it can say nothing without."""


class Preflight:
    """The rules that are switched on."""

    def __init__(self, means: Means):
        self._means = means
        severities = means.section.model_dump()
        self._rules = [(name, severities[name], *rule) for name, rule in RULES.items() if severities[name] != "off"]

    def findings(self, song: Song, wrong: Collection[str] = ()) -> list[Finding]:
        """Everything that the rules find; `wrong` are fields whose values are none of this song's."""
        return [
            Finding(name, severity, problem)
            for name, severity, rule, fields in self._rules
            if (problem := rule(song, self._means)) is not None and not set(fields) & set(wrong)
        ]


def _most_bytes(text: str) -> int:
    """Bytes of a text as any tokenizer may normalise it."""
    if text.isascii():
        return len(text)
    return max(len(text.encode()), len(unicodedata.normalize("NFKC", text).encode()))


@lru_cache(maxsize=4)
def _prompt_tokenizer(path: str) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
