"""The built-in model's prompt tokenizer: whole words, any text, numbers that are always the same token."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from acestep.lyrics.tokenizer import LyricTokenizer
from acestep.request import GenerationRequest
from acestep.synth import describe, random_piece
from acestep.synth.piece import INSTRUMENTS, TEMPI
from acestep.tiny_text import END, PAD, UNKNOWN, lyric_vocab
from acestep.tokens import MAX_PROMPT_TOKENS, RequestTokenizer
from acestep.training.prompt_tokenizer import train_prompt_tokenizer

CAPTIONS = [describe(random_piece(seed), seed) for seed in range(1500)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_prompt_tokenizer(CAPTIONS)


def test_the_same_captions_make_the_same_file(tokenizer: Tokenizer) -> None:
    again = train_prompt_tokenizer(iter(CAPTIONS))
    assert again.to_str() == tokenizer.to_str()
    assert Tokenizer.from_str(tokenizer.to_str()).encode("Flute in C#").ids == tokenizer.encode("Flute in C#").ids
    assert train_prompt_tokenizer(CAPTIONS[:20]).to_str() != tokenizer.to_str()
    assert tokenizer.get_vocab_size() <= 512
    assert train_prompt_tokenizer(CAPTIONS, vocab_size=300).get_vocab_size() == 300


def test_special_tokens_stand_where_the_encoder_has_them(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in ("<pad>", "</s>", "<unk>")] == [PAD, END, UNKNOWN]
    assert tokenizer.encode("").ids == [END]
    assert tokenizer.encode("piano", "flute").ids.count(END) == 2


@given(st.text())
@example("120bpm, A# minor")
@example("İstanbul ΑΣ ẞ 音楽 ½ ٣")
@example("  two  spaces \n\t")
def test_any_text_comes_back_in_lower_case(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids[-1] == END and ids.count(END) == 1
    assert UNKNOWN not in ids and PAD not in ids
    lower, back = tokenizer.normalizer.normalize_str(text), tokenizer.decode(ids)
    if text.isascii():
        assert lower == text.lower()
    assert back.replace(" ", "") == lower.replace(" ", "")
    if not any(unicodedata.category(letter).startswith("N") for letter in text):  # Numbers stand apart.
        assert back == (lower if lower.startswith(" ") or not lower else f" {lower}")


@given(st.sampled_from(CAPTIONS))
def test_capital_letters_are_as_small_ones(tokenizer: Tokenizer, caption: str) -> None:
    assert tokenizer.encode(caption.upper()).ids == tokenizer.encode(caption).ids


@pytest.mark.parametrize("tempo", TEMPI)
def test_a_tempo_is_one_token_however_it_is_written(tokenizer: Tokenizer, tempo: int) -> None:
    alone = tokenizer.encode(str(tempo)).ids
    assert len(alone) == 2, "one token and the end"
    number = alone[0]
    forms = ("{}bpm", "{} bpm", "{} BPM", "at {} BPM", "piano, {}bpm, A minor", "slow flute at {} bpm", "{},120 x")
    for form in forms:
        ids = tokenizer.encode(form.format(tempo)).ids
        assert number in ids, form
        others = {tokenizer.encode(str(other)).ids[0] for other in TEMPI if other not in (tempo, 120)}
        assert not others & set(ids)
    bpm = tokenizer.encode("bpm").ids[:-1]
    assert len(bpm) == 1
    assert tokenizer.encode(f"{tempo}bpm").ids == tokenizer.encode(f"{tempo} BPM").ids == [number, *bpm, END]


def test_usual_words_are_one_token_and_prompts_are_short(tokenizer: Tokenizer) -> None:
    for word in [*INSTRUMENTS, "minor", "major", "drums", "bass", "slow", "fast"]:
        assert len(tokenizer.encode(word).ids) == 1 + len(word.split()), word
    lengths = [len(tokenizer.encode(caption).ids) for caption in CAPTIONS]
    assert sum(lengths) / len(lengths) < 25 and max(lengths) < 60


def test_roots_and_modes_tell_keys_apart(tokenizer: Tokenizer) -> None:
    keys = [f"{root}{sign} {mode}" for root in "ABCDEFG" for sign in ("", "#", "b") for mode in ("major", "minor")]
    assert len({tuple(tokenizer.encode(key).ids) for key in keys}) == len(keys)


def test_it_serves_where_prompts_are_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.json"
    vocab.write_text(json.dumps(lyric_vocab()))
    read = RequestTokenizer(Tokenizer.from_str(tokenizer.to_str()), LyricTokenizer(vocab))
    tokens = read(GenerationRequest(prompt="Piano, 120bpm"))
    assert list(tokens.prompt_ids) == tokenizer.encode("piano, 120 BPM").ids and not tokens.warnings
    long = read(GenerationRequest(prompt="piano " * 400))
    assert len(long.prompt_ids) == MAX_PROMPT_TOKENS and long.prompt_ids[-1] == END and long.warnings
