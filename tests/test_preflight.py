"""Preflight: every rule finds what it is for, screens are right where they say a song is fine, and all is counted."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from tokenizers import Tokenizer

from acestep.checkpoint import Checkpoint
from acestep.errors import InvalidRequestError
from acestep.lyrics import LyricTokenizer
from acestep.problems import Problem
from acestep.sentencepiece_model import SentencePieceModel
from acestep.tiny_text import prompt_tokenizer
from acestep.tokens import MAX_PROMPT_TOKENS
from pipelines import outside
from pipelines.judging import Judged, plan_rows
from pipelines.lyric_screen import LyricScreen
from pipelines.manifest import ManifestBatch
from pipelines.preflight import MAX_LYRIC_TOKENS, RULES, _most_bytes
from pipelines.rejects import Tally, preflight_table
from pipelines.resolution import Resolution
from pipelines.sections import PreflightSection
from tests.conftest import ROOT, S3
from tests.test_single_file import sentencepiece

GOOD = {"id": "a", "prompt": "pop", "lyrics": "[verse]\nla la", "duration": 30.0}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, str]:
    model = Checkpoint.open("tiny")
    path = model.folder("text_encoder") / "tokenizer.json"
    return {"prompt_tokenizer": str(path), "lyric_vocab": str(model.lyric_vocab)}


def judged(rows: list[dict[str, Any]], preflight: dict[str, Any] | None = None, **options: Any) -> Judged:
    table = pa.table(
        {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    )
    resolution = Resolution({}, 0, "m", "r", preflight=PreflightSection(**(preflight or {})), **options)
    outside.forget()
    return plan_rows(ManifestBatch("m", list(range(1, table.num_rows + 1)), table), resolution)


CASES = {
    "prompt_length": ({"prompt": "rock and roll, " * 30}, "it makes 451 tokens, the model reads 256"),
    "lyrics_length": ({"lyrics": "la la la la\n" * 500, "duration": 240.0}, "tokens, the limit is 4,096"),
    "lyrics_density": ({"lyrics": "la" * 1000, "duration": 10.0}, "2,000 letters in 10 s are 200 a second; at most 30"),
    "language": ({"lyrics": "[verse]\nΤο τραγούδι"}, "100.0% of the letters are Greek, which the model does not sing"),
    "unknown_tokens": ({"lyrics": "la la ☃☃"}, "25.0% cannot be spelled: ☃; at most 5.0%"),
    "structure_tags": ({"lyrics": "[verse]\nla\n[drop]\nla"}, "was not taught these tags and may sing them: [drop]"),
    "lora": ({"lora": "/no/such/adapter.safetensors"}, "/no/such/adapter.safetensors does not exist"),
    "source": ({"task": "audio2audio", "source": "/no/such/song.flac"}, "there is no such file"),
}


@pytest.mark.parametrize("rule", CASES)
def test_every_rule_finds_what_it_is_for_and_can_be_switched(rule: str, tokenizers: dict[str, str]) -> None:
    change, expected = CASES[rule]
    rest = dict.fromkeys(RULES, "off")
    rows = [GOOD, GOOD | change | {"id": "b"}]

    refused = judged(rows, rest | {rule: "error"}, **tokenizers)
    (row,) = refused.rejects.to_pylist()
    assert expected in row["message"]
    assert [reason["rule"] for reason in row["reasons"]] == [rule]
    assert (refused.planned.num_rows, refused.warnings.num_rows) == (1, 0)
    assert refused.tally.rules == {rule: {"error": 1}}

    told = judged(rows, rest | {rule: "warning"}, **tokenizers)
    (row,) = told.warnings.to_pylist()
    assert expected in row["message"]
    assert (row["file"], row["row"], row["id"], row["rule"]) == ("m", 2, "b", rule)
    assert (told.planned.num_rows, told.rejects.num_rows) == (2, 0)

    silent = judged(rows, rest, **tokenizers)
    assert (silent.planned.num_rows, silent.warnings.num_rows, silent.tally) == (2, 0, Tally())


def test_every_rule_has_an_option_and_the_other_way_round() -> None:
    options = {name for name, info in PreflightSection.model_fields.items() if info.annotation is not float}
    assert {*RULES, "duplicate_id"} == options
    assert set(CASES) == set(RULES)


def test_off_may_be_written_without_quotes() -> None:
    from pipelines.config import RunConfig

    assert RunConfig.load(None, ["preflight.language=off"]).preflight.language == "off"


def test_all_reasons_of_a_row_are_told_at_once(tokenizers: dict[str, str]) -> None:
    everything = (
        GOOD | CASES["lora"][0] | {"guidance_scale": 1000.0, "num_songs": 0, "lyrics": "[drop]\n" + "la" * 9000}
    )
    found = judged([everything], {"structure_tags": "error"}, **tokenizers)
    (row,) = found.rejects.to_pylist()
    assert [reason["rule"] for reason in row["reasons"]] == [
        *("settings", "settings", "lyrics_length", "structure_tags", "lora"),
    ]
    assert found.warnings.column("rule").to_pylist() == ["lyrics_density"]
    assert found.tally.rules["settings"] == {"error": 1}


def test_the_shipped_manifests_pass_without_a_word(tokenizers: dict[str, str]) -> None:
    for path in sorted((ROOT / "examples").glob("*.parquet")):
        found = judged(pq.read_table(path).to_pylist(), **tokenizers)
        assert not found.rejects.num_rows, path
        assert set(found.warnings.column("rule").to_pylist()) <= {"structure_tags"}, found.warnings.to_pylist()


def test_without_tokenizers_doubt_is_for_the_song() -> None:
    rows = [GOOD | {"prompt": "x" * 1000, "lyrics": "la " * 5000, "duration": 240.0}]
    assert judged(rows, {"lyrics_density": "off"}).tally == Tally()
    rows = [GOOD | {"prompt": "x" * 2000, "lyrics": "la " * 7000, "duration": 240.0}]
    assert judged(rows).tally.rules.keys() == {"prompt_length", "lyrics_length", "lyrics_density"}


TEXT = st.text(st.characters(codec="utf-8"), max_size=400)
BYTES = Tokenizer.from_str(json.dumps(prompt_tokenizer()))
PIECES = Tokenizer.from_str(json.dumps(SentencePieceModel.parse(sentencepiece()).tokenizers_file()))


@given(text=TEXT)
def test_a_prompt_of_few_bytes_has_few_tokens(text: str) -> None:
    if _most_bytes(text) + 2 <= MAX_PROMPT_TOKENS:
        for tokenizer in (BYTES, PIECES):
            assert len(tokenizer.encode(text).ids) <= MAX_PROMPT_TOKENS


SONG = st.lists(
    st.one_of(
        st.sampled_from(
            ["[verse]", "[Chorus x2]", "Hello, 42 of you", "über 100 €", "Я тебя люблю", "我爱你一万年", "もう少しだけ"]
        ),
        st.text(st.characters(codec="utf-8", min_codepoint=32, max_codepoint=0x2FFF), max_size=60),
        st.text(st.sampled_from("0123456789,.$%& "), max_size=12),
    ),
    max_size=12,
).map("\n".join)


@settings(max_examples=60, deadline=None)
@given(lyrics=SONG)
def test_lyrics_have_no_more_tokens_than_the_screen_says(lyrics: str, tokenizers: dict[str, str]) -> None:
    screen = LyricScreen(lyrics)
    encoded = LyricTokenizer(tokenizers["lyric_vocab"]).encode(lyrics, normalize_tags=True)
    if screen.most_tokens <= MAX_LYRIC_TOKENS:
        assert len(encoded.ids) <= MAX_LYRIC_TOKENS
    assert screen.sung_letters <= screen.most_sung_letters
    assert len(encoded.ids) <= screen.most_tokens + 40 * len(lyrics.splitlines())
    told = any("was not taught" in each or "not taught these tags" in each for each in encoded.warnings)
    assert bool(screen.strange_tags) == told
    assert bool(screen.unsung) == any("does not sing" in each for each in encoded.warnings)


@pytest.mark.parametrize("line", ["[Verse 2] x", "(Bridge)", "a [drop] b", "[verse", "[]", "[inst]\t[x]", "[ verse ]"])
@pytest.mark.parametrize("normalize", [True, False])
def test_tags_are_strange_where_the_engine_says_so(line: str, normalize: bool, tokenizers: dict[str, str]) -> None:
    encoded = LyricTokenizer(tokenizers["lyric_vocab"]).encode(line, normalize_tags=normalize)
    told = [each for each in encoded.warnings if "not taught" in each]
    strange = LyricScreen(line, "auto", normalize).strange_tags
    assert bool(strange) == bool(told)
    assert all(tag in told[0] for tag in strange)


def test_exact_tokens_are_counted_where_there_may_be_too_many(tokenizers: dict[str, str]) -> None:
    tokenizer = LyricTokenizer(tokenizers["lyric_vocab"])
    for count in (4085, 4090, 4095, 4100):
        lyrics = "a" * count
        try:
            tokenizer.encode(lyrics)
            too_long = False
        except InvalidRequestError:
            too_long = True
        found = judged([GOOD | {"lyrics": lyrics, "duration": 240.0}], **tokenizers)
        assert bool(found.rejects.num_rows) == too_long, count


def audio(seconds: float, channels: int = 2, format: str = "FLAC") -> bytes:
    buffer = io.BytesIO()
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, (int(seconds * 8000), channels))
    soundfile.write(buffer, samples, 8000, format=format)
    return buffer.getvalue()


SOURCES: dict[str, tuple[bytes, str]] = {
    "good.flac": (audio(2), ""),
    "good.mp3": (audio(2, format="MP3"), ""),
    "good.safetensors": (save({"latents": np.zeros((8, 16, 20), np.float32)}), ""),
    "long.wav": (audio(241, 1, "WAV"), "it has 241.0 s; the longest source is 240 s"),
    "many.wav": (audio(1, 4, "WAV"), "it has 4 channels"),
    "empty.wav": (audio(0, 2, "WAV"), "there are no samples"),
    "text.flac": (b"not audio", "it cannot be read"),
    "none.safetensors": (b"", "it is not a safetensors file"),
    "other.safetensors": (save({"x": np.zeros(3, np.float32)}), "holds no tensor 'latents'"),
    "shape.safetensors": (save({"latents": np.zeros((3, 16, 20), np.float32)}), "its latents are [3, 16, 20]"),
    "short.safetensors": (save({"latents": np.zeros((8, 16, 20), np.float32)})[:-4], "it is cut short"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_judged_by_their_headers(tmp_path: Path, name: str) -> None:
    data, expected = SOURCES[name]
    (tmp_path / name).write_bytes(data)
    outside.forget()
    problem = outside.source_problem(str(tmp_path / name))
    assert problem == "" if not expected else expected in problem


def test_of_a_source_in_a_store_only_the_header_is_fetched(moto: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("key", "ACCESS_KEY_ID"), ("secret", "SECRET_ACCESS_KEY")):
        monkeypatch.setenv(f"AWS_{value}", moto.options[name])
    store = fsspec.filesystem("s3", **moto.options)
    store.pipe_file(f"{moto.bucket}/long.flac", audio(200))
    store.pipe_file(f"{moto.bucket}/text.wav", b"text")
    fetched = 0
    fetch = s3fs.core._fetch_range

    def counted(*arguments: Any, **options: Any) -> bytes:
        nonlocal fetched
        data = fetch(*arguments, **options)
        fetched += len(data)
        return data

    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)
    monkeypatch.setattr(s3fs.core, "_fetch_range", counted)
    outside.forget()
    addresses = [f"s3://{moto.bucket}/{name}" for name in ("long.flac", "text.wav", "none.wav")]
    outside.check_sources(addresses)
    good, text, none = map(outside.source_problem, addresses)
    assert (good, none) == ("", "there is no such file")
    assert "cannot be read" in text
    assert 0 < fetched < len(audio(200)) / 4


def test_a_song_of_the_catalog_is_taken_from_there(tokenizers: dict[str, str]) -> None:
    rows = [
        GOOD | {"id": id, "task": "repaint", "source": source, "repaint_end": 9.0}
        for id, source in (("a", "song:x"), ("b", "song:y"))
    ]
    table = pa.Table.from_pylist(rows)
    songs: dict[str, str | Problem] = {
        "song:x": "/out/latents/x.safetensors",
        "song:y": Problem("source", "song:y", "no such song"),
    }
    found = plan_rows(ManifestBatch("m", [1, 2], table), Resolution({}, 0, "m", "r"), songs)
    assert found.planned.column("source").to_pylist() == ["/out/latents/x.safetensors"]
    (row,) = found.rejects.to_pylist()
    assert row["message"] == "source: 'song:y' is not allowed; no such song"
    assert found.tally.rules == {"source": {"error": 1}}


def test_counts_and_examples_make_a_table() -> None:
    rows = [GOOD | {"id": str(n), "lyrics": f"[drop {n}]"} for n in range(1500)]
    rows += [GOOD | {"id": None}]
    found = judged(rows)
    first, second = Tally(), judged(rows).tally
    first.merge(found.tally)
    first.merge(second)
    assert first.rules == {"structure_tags": {"warning": 3000}, "settings": {"error": 2}}
    lines = preflight_table(first.rules, first.examples).splitlines()
    assert lines[0].split() == ["error", "settings", "2", "rows"]
    assert "m row 1,501: id None: it is required" in lines[1]
    assert lines[3].split() == ["warning", "structure_tags", "3,000", "rows"]
    assert "m row 1 (id '0'): lyrics '[drop 0]': the model was not taught" in lines[4]
    assert len(lines) == 6
    assert preflight_table({}, []) == ""
