"""Training data from music: a folder, a manifest, the synthesiser; what is bad in it; restarts; a real Ray."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.checkpoint import Checkpoint
from acestep.evaluation.prompts import RESERVED_SEEDS, held_out, is_held_out
from acestep.frames import SAMPLE_RATE, SAMPLES_PER_FRAME
from acestep.synth import describe, random_piece, render
from acestep.training.dataset import ROW_GROUP, SCHEMA, LatentDataset
from acestep.training.preparation import SongEncoder
from jobs.cli import main
from pipelines.errors import ConfigError, OutputError, UnusableInputError
from pipelines.training_data import shards, songs
from pipelines.training_data.config import PrepareConfig, SynthSection
from pipelines.training_data.job import prepare_data
from pipelines.training_data.songs import SongReader, synth_song
from tests.conftest import S3, nested


def config_of(**changes: Any) -> PrepareConfig:
    """Short pieces, small shards; in the names two underscores are a dot."""
    values = {"synth.durations": [2.0, 3.0], "synth.weights": [1.0, 1.0], "synth.captions": 2, "shard_songs": 3}
    return PrepareConfig.parse(nested(values, changes))


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((output / "songs").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def rejects_of(output: Path) -> dict[str | None, str]:
    paths = sorted((output / "rejects").glob("*.parquet"))
    return {row["id"]: row["message"] for path in paths for row in pq.read_table(path).to_pylist()}


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as people have it: good songs of several kinds, and what goes wrong."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "album").mkdir()
    wave = render(random_piece(1), 2.5).T
    soundfile.write(folder / "a.wav", wave, SAMPLE_RATE, subtype="FLOAT")
    (folder / "a.txt").write_text("piano, slow\n\nsoft piano\n")
    soundfile.write(folder / "album" / "b.flac", wave[:24_000, 0], 24_000)
    (folder / "album" / "b_prompt.txt").write_text("flute")
    (folder / "album" / "b_lyrics.txt").write_text("[verse]\nla la la\n")
    (folder / "broken.mp3").write_bytes(b"no audio at all")
    (folder / "broken.txt").write_text("organ")
    soundfile.write(folder / "nameless.wav", wave, SAMPLE_RATE)
    soundfile.write(folder / "short.wav", wave[:1000], SAMPLE_RATE)
    (folder / "short.txt").write_text("drums")
    soundfile.write(folder / "nan.wav", np.full((50_000, 2), np.nan, np.float32), SAMPLE_RATE, subtype="FLOAT")
    (folder / "nan.txt").write_text("noise")
    return folder


def test_a_folder_becomes_rows_and_what_is_bad_becomes_rejects(music: Path, tmp_path: Path) -> None:
    summary = prepare_data(config_of(), str(tmp_path), str(music), local=True)
    assert (summary.exit_code, summary.rows, summary.rejected) == (3, 2, 4)
    first, second = rows_of(tmp_path)
    assert (first["id"], first["prompts"], first["lyric_ids"]) == ("a", ["piano, slow", "soft piano"], [])
    assert (second["id"], second["prompts"]) == ("album/b", ["flute"])
    assert len(second["lyric_ids"]) > 5
    assert second["num_frames"] == -(-SAMPLE_RATE // SAMPLES_PER_FRAME)  # One second, resampled.
    samples, _ = soundfile.read(music / "a.wav", dtype="float32")
    expected = SongEncoder.from_checkpoint(Checkpoint.open("tiny"))("a", samples.T.copy(), first["prompts"])
    assert first["latents"] == expected["latents"]
    assert first["prompt_ids"] == expected["prompt_ids"]
    rejects = rejects_of(tmp_path)
    assert sorted(map(str, rejects)) == ["broken", "nameless", "nan", "short"]
    assert "cannot be read as audio" in rejects["broken"]
    assert "neither nameless.txt nor nameless_prompt.txt" in rejects["nameless"]
    assert "0.02 s; the shortest is 1 s" in rejects["short"]
    assert "finite" in rejects["nan"]


def test_the_rows_are_what_training_reads(tmp_path: Path) -> None:
    prepare_data(config_of(synth__pieces=5), str(tmp_path), local=True)
    dataset = LatentDataset([str(path) for path in (tmp_path / "songs").glob("*.parquet")], 5)
    batch = dataset(0)
    assert len(dataset) == 5
    assert batch.latents.shape[:3] == (5, 8, 16)
    for path in (tmp_path / "songs").glob("*.parquet"):
        assert pq.read_schema(path).names == SCHEMA.names
        assert pq.ParquetFile(path).metadata.row_group(0).num_rows <= ROW_GROUP


def test_a_manifest_names_songs_and_bad_rows_are_told(music: Path, tmp_path: Path) -> None:
    rows = [
        {"audio": "a.wav", "prompt": ["one", "two"], "lyrics": "[verse]\nhello", "language": "en"},
        {"id": "own", "audio": str(music / "album" / "b.flac"), "prompt": "flute"},
        {"id": "own", "audio": "a.wav", "prompt": "again"},
        {"id": "no prompt", "audio": "a.wav", "prompt": ""},
        {"id": "gone", "audio": "gone.wav", "prompt": "x"},
        {"id": "greek", "audio": "a.wav", "prompt": "x", "lyrics": "la", "language": "klingon"},
    ]
    manifest = music / "songs.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\nbroken\n")
    try:
        summary = prepare_data(config_of(), str(tmp_path), str(manifest), local=True)
    finally:
        manifest.unlink()
    assert (summary.rows, summary.rejected) == (2, 5)
    found = {row["id"]: row for row in rows_of(tmp_path)}
    assert found["a"]["prompts"] == ["one", "two"]
    assert found["a"]["lyric_ids"]
    assert found["own"]["prompts"] == ["flute"]
    rejects = rejects_of(tmp_path)
    assert "an earlier song has it" in rejects["own"]
    assert "it must be text, or a list of texts" in rejects["no prompt"]
    assert "language" in rejects["greek"]
    assert "gone" in rejects
    assert "not JSON" in rejects[None]


def test_a_restarted_preparation_makes_only_what_is_missing_and_the_same_bytes(tmp_path: Path) -> None:
    config = config_of(synth__pieces=7)
    assert prepare_data(config, str(tmp_path), local=True).exit_code == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "songs").iterdir()}
    assert sorted(files) == ["000000.parquet", "000001.parquet", "000002.parquet"]
    (tmp_path / "songs" / "000001.parquet").unlink()
    again = prepare_data(config, str(tmp_path), local=True)
    assert (again.shards_before, again.songs) == (2, 3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "songs").iterdir()} == files
    assert prepare_data(config, str(tmp_path), local=True).songs == 0


def test_other_data_does_not_go_into_the_same_output(tmp_path: Path) -> None:
    prepare_data(config_of(synth__pieces=1), str(tmp_path), local=True)
    with pytest.raises(OutputError, match="another settings"):
        prepare_data(config_of(synth__pieces=2), str(tmp_path), local=True)


@pytest.mark.parametrize(
    ("config", "source", "message"),
    [
        (config_of(), None, "nothing to prepare"),
        (config_of(synth__pieces=2), "songs.csv", "goes without synth.pieces"),
        (config_of(synth__pieces=2, synth__first_seed=RESERVED_SEEDS.start - 1), None, "evaluation"),
        (config_of(), "/nowhere/at/all.csv", "there is no such file"),
    ],
)
def test_what_cannot_be_prepared_is_said_at_once(
    config: PrepareConfig, source: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnusableInputError, match=message):
        prepare_data(config, str(tmp_path / "out"), source, local=True)


def test_weights_must_fit_the_lengths() -> None:
    with pytest.raises(ConfigError, match=r"synth\.weights"):
        PrepareConfig.load(None, ["synth.durations=[2, 3]"])


def test_no_caption_is_one_that_the_evaluation_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    section = SynthSection(durations=[2.0], weights=[1.0], captions=3)
    captions = [describe(random_piece(5), 15 + index) for index in range(3)]
    assert synth_song("x", 5, section)[0].prompts == captions
    taken = held_out()[0].prompt
    monkeypatch.setattr(songs, "describe", lambda piece, seed: taken.upper() if seed == 15 else captions[1])
    assert is_held_out(taken.upper())
    assert synth_song("x", 5, section)[0].prompts == [captions[1]]
    monkeypatch.setattr(songs, "describe", lambda piece, seed: taken)
    assert synth_song("x", 5, section) == []


def test_pieces_are_a_function_of_their_seed_and_whole_frames_long() -> None:
    section = SynthSection(durations=[1.0, 2.0, 3.0], weights=[1.0, 1.0, 1.0])
    songs = {seed: synth_song(str(seed), seed, section)[0] for seed in range(12)}
    for seed, song in songs.items():
        assert song.waveform.shape[1] % SAMPLES_PER_FRAME == 0
        assert np.array_equal(song.waveform, synth_song("", seed, section)[0].waveform)
    assert len({song.waveform.shape[1] for song in songs.values()}) == 3


@settings(max_examples=25)
@given(samples=st.integers(44_100, 400_000), longest=st.floats(1, 5), first=st.booleans())
def test_parts_are_the_song_again(samples: int, longest: float, first: bool) -> None:
    reader = SongReader(config_of(max_seconds=longest))
    waveform = np.arange(2 * samples, dtype=np.float32).reshape(2, -1)
    parts = reader._parts(waveform, only_first=first)
    joined = np.concatenate(parts, axis=1)
    assert np.array_equal(joined, waveform[:, : joined.shape[1]])
    assert all(part.shape[1] <= longest * SAMPLE_RATE for part in parts)
    assert all(part.shape[1] % SAMPLES_PER_FRAME == 0 for part in parts[:-1])
    if first:
        assert len(parts) == 1
    else:
        assert samples - joined.shape[1] < SAMPLE_RATE  # Only a last part below min_seconds is left out.


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_ray_makes_the_same_files(music: Path, tmp_path: Path, moto: S3) -> None:
    prepare_data(config_of(), str(tmp_path / "here"), str(music), local=True)
    url = f"{moto.url}/{uuid.uuid4().hex}"
    config = config_of(storage__storage_options=moto.options, resources__num_actors=2)
    summary = prepare_data(config, url, str(music))
    assert (summary.exit_code, summary.rows, summary.rejected, summary.failures) == (3, 2, 4, {})
    import s3fs

    there = s3fs.S3FileSystem(**moto.options, use_listings_cache=False)
    for path in (tmp_path / "here" / "songs").iterdir():
        key = f"{url.removeprefix('s3://')}/songs/{path.name}"
        assert there.cat_file(key) == path.read_bytes(), key
    assert len(there.ls(f"{url}/rejects")) == len(list((tmp_path / "here" / "rejects").iterdir()))


class DyingReader(SongReader):
    """Ends its process at the second song."""

    def __call__(self, item: Any) -> Any:
        if item["seed"] == 1:
            import os

            os._exit(1)
        return super().__call__(item)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_process_that_dies_costs_a_shard_not_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class DyingMaker(shards.ShardMaker):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options)
            self._read = DyingReader(self._read.config)

    monkeypatch.setattr(shards, "ShardMaker", DyingMaker)
    config = config_of(synth__pieces=4, shard_songs=2)
    summary = prepare_data(config, str(tmp_path))
    assert summary.exit_code == 4
    assert summary.failures == {0: "the process that made it died"}
    monkeypatch.undo()
    again = prepare_data(config, str(tmp_path), local=True)
    assert (again.exit_code, again.songs, len(rows_of(tmp_path))) == (0, 2, 4)


def test_the_command(tmp_path: Path) -> None:
    options = ["--synth", "2", "--local", "--set", "synth.durations=[2]", "--set", "synth.weights=[1]"]
    result = CliRunner().invoke(main, ["prepare", "--output", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    assert "1 of 1 shards" in result.output
    table = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "songs").iterdir()])
    assert table["id"].to_pylist() == ["synth-0", "synth-1"]
