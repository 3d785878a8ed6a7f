"""Golden lyrics: the ids that the original makes, line by line and song by song."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from acestep.lyrics.tokenizer import LyricTokenizer
from acestep.request import LANGUAGES

Comparison = tuple[str, tuple[int, ...], tuple[int, ...]]
"""What was compared, the ids of this tokenizer, the golden ids."""
Report = tuple[int, int, list[str]]
"""How many are equal, of how many, and those that are not."""


def check_lyrics(path: Path, vocab_path: Path) -> Report:
    """Hold each golden line, in its golden language, against this tokenizer."""
    tokenizer = LyricTokenizer(vocab_path)
    lines = json.loads(Path(path).read_text(encoding="utf-8"))["lines"]
    return _report(
        (line["text"], tokenizer.encode_line(line["text"].strip(), line["language"]).ids, tuple(line["ids"]))
        for line in lines
    )


def check_songs(path: Path, vocab_path: Path) -> Report:
    """Hold each line of the golden songs, in the language that its ids say, against this tokenizer."""
    tokenizer = LyricTokenizer(vocab_path)
    languages = _language_ids(vocab_path)
    songs = json.loads(Path(path).read_text(encoding="utf-8"))["songs"]
    return _report(result for song in songs for result in _song_lines(song, tokenizer, languages))


def _song_lines(song: dict, tokenizer: LyricTokenizer, languages: dict[int, str]) -> Iterator[Comparison]:
    texts = [text for line in song["lyrics"].split("\n") if (text := line.strip())]
    starts = [position for position, id_ in enumerate(song["ids"]) if id_ in languages]
    yield f"{song['file']}: number of lines", (len(texts),), (len(starts),)
    for text, start, end in zip(texts, starts, [*starts[1:], len(song["ids"])], strict=False):
        ids = tokenizer.encode_line(text, languages[song["ids"][start]]).ids
        want = tuple(song["ids"][start:end])
        num_newlines = max(1, len(want) - len(ids))  # its own, and those of the empty lines behind it
        yield f"{song['file']}: {text}", ids + (tokenizer.newline,) * num_newlines, want


def _language_ids(vocab_path: Path) -> dict[int, str]:
    vocabulary = Tokenizer.from_file(str(vocab_path))
    names = {code: "[zh-cn]" if code == "zh" else f"[{code}]" for code in LANGUAGES}
    return {vocabulary.token_to_id(name): code for code, name in names.items()}


def _report(results: Iterator[Comparison]) -> Report:
    num_equal, different = 0, []
    for text, got, want in results:
        if got == want:
            num_equal += 1
        else:
            different.append(f"{text!r}: {list(got)} is not {list(want)}")
    return num_equal, num_equal + len(different), different
