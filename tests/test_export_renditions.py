"""Renditions: from lossless files and from kept latents; as loud and as many as asked; the same bytes always."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from huggingface_hub import DatasetCard
from safetensors.numpy import save

from acestep import ACEStepPipeline, GenerationResult
from acestep.audio import encode_audio
from acestep.audio_format import AudioFormat
from acestep.checkpoint import Checkpoint
from acestep.frames import LATENTS_KEY
from acestep.loudness import Loudness, integrated_loudness
from pipelines import layout, schema
from pipelines.catalog import Catalog
from pipelines.export.decoding import Decoder
from pipelines.export.names import key_of
from pipelines.export.options import ExportOptions, Rendition
from pipelines.export.rendering import Renderer
from pipelines.storage import Storage
from tests.conftest import ROOT
from tests.made_catalog import NASTY_IDS, START, make_catalog, tone
from tests.test_export import bytes_of, export, exported, rows_of, without_card

IDS = [*NASTY_IDS[:4], "s0", "s1", "s2", "s3"]
ONE = ("--workers", "1")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("catalog") / "songs"
    make_catalog(Storage(str(folder)), IDS)
    return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, GenerationResult]]:
    """A catalog of mp3 files with latents, and what the model had made."""
    storage = Storage(str(tmp_path_factory.mktemp("latents") / "songs"))
    make_catalog(storage, [])
    pipe = ACEStepPipeline.from_pretrained("tiny", device="cpu", torch_dtype="float32")
    checkpoint = Checkpoint.open("tiny")
    results, rows = {}, []
    for seed, id in enumerate(["first", "second"]):
        result = pipe(prompt=f"song {seed}", duration=2, num_inference_steps=2, seed=seed)
        assert isinstance(result, GenerationResult)
        data = encode_audio(result.waveform, result.sample_rate, AudioFormat(format="mp3"), result.tags())
        keys = layout.audio_key(id, "f", ".mp3"), layout.latents_key(id, "f")
        storage.put(keys[0], data)
        storage.put(keys[1], save({LATENTS_KEY: result.latents.numpy()}))
        row: dict[str, Any] = {"id": id, "fingerprint": "f", "path": keys[0], "latents": keys[1], "format": "mp3"}
        row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "duration": result.duration}
        row |= {"sample_rate": 44_100, "prompt": f"song {seed}", "seed": seed, "task": "text2music"}
        row |= {"resampler": "kaiser", "model": "tiny", "model_fingerprint": checkpoint.fingerprint("float32")}
        row |= {"dtype": "float32", "random_weights": True, "created_at": START}
        rows.append(row)
        results[id] = result
    Catalog(storage).add_songs(0, "run", schema.table_of(rows, schema.SONG))
    run = json.loads(storage.get(layout.RUN))
    run["config"]["model"]["checkpoint"] = "tiny"
    storage.put(layout.RUN, json.dumps(run).encode())
    return storage.url, results


def sound(data: bytes) -> tuple[np.ndarray, int]:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return np.ascontiguousarray(samples.T), rate


def test_several_renditions_lie_side_by_side_in_webdataset(catalog: str, tmp_path: Path) -> None:
    import webdataset

    renditions = ("mp3:bitrate_kbps=128", "mp3:bitrate_kbps=320", "flac:bit_depth=24")
    words = [word for each in renditions for word in ("--rendition", each)]
    exported(catalog, tmp_path / "out", "webdataset", *words, *ONE, "--loudness", "-20")
    url = str(tmp_path / "out/train-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    assert sorted(sample["json"]["id"] for sample in samples) == sorted(IDS)
    for sample in samples:
        names = {"mp3_128.mp3", "mp3_320.mp3", "flac"}
        assert names < sample.keys()
        assert len(sample["mp3_128.mp3"]) < len(sample["mp3_320.mp3"])
        for name in names:
            samples_, rate = sound(sample[name])
            assert rate == 44_100
            assert integrated_loudness(samples_, rate) == pytest.approx(-20, abs=0.6), "an mp3 begins with silence"
        assert sample["json"]["lufs"] == pytest.approx(-20, abs=0.01)
        assert "sha256" not in sample["json"], "true of the catalog's own file only"
        with soundfile.SoundFile(io.BytesIO(sample["flac"])) as file:
            facts = json.loads(file.comment)
            assert (file.subtype, facts["id"], facts["seed"]) == (
                "PCM_24",
                sample["json"]["id"],
                sample["json"]["seed"],
            )
            assert facts["ai_generated"] is True
            assert facts["random_weights"] is True


def test_several_renditions_are_columns_in_parquet(catalog: str, tmp_path: Path) -> None:
    import datasets

    words = ("--rendition", "opus", "--rendition", "wav", "--sample-rate", "16000", *ONE)
    exported(catalog, tmp_path / "out", "parquet", *words)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded.column_names[:3] == ["audio_opus", "audio_wav", "id"]
    plain = loaded.cast_column("audio_opus", datasets.Audio(decode=False))
    for row in plain.cast_column("audio_wav", datasets.Audio(decode=False)):
        assert row["audio_wav"]["path"] == f"{key_of(row['id'])}.wav"
        assert sound(row["audio_wav"]["bytes"])[1] == 16_000
        assert sound(row["audio_opus"]["bytes"])[1] == 48_000
        assert row["sample_rate"] == 16_000
        assert row["duration"] == pytest.approx(0.5)
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert "opus-0.4, wav-16 at 16000 Hz" in card.text


def test_one_rendition_takes_the_place_of_the_catalogs_file(catalog: str, tmp_path: Path) -> None:
    exported(catalog, tmp_path, "audiofolder", "--rendition", "ogg", *ONE)
    table = pq.read_table(tmp_path / "train/00000/metadata.parquet")
    assert table.column_names[:2] == ["file_name", "id"]
    assert set(table.column("file_name").to_pylist()) == {f"{key_of(id)}.ogg" for id in IDS}
    for name in table.column("file_name").to_pylist():
        assert sound((tmp_path / "train/00000" / name).read_bytes())[1] == 44_100


def test_a_lossless_rendition_of_a_lossless_file_loses_nothing(catalog: str, tmp_path: Path) -> None:
    exported(catalog, tmp_path, "audiofolder", "--rendition", "wav", *ONE)
    for number, id in enumerate(IDS):
        samples, _ = sound((tmp_path / "train/00000" / f"{key_of(id)}.wav").read_bytes())
        assert np.abs(samples - tone(number)).max() < 2 / 32_768


def test_workers_make_no_difference(catalog: str, tmp_path: Path) -> None:
    for workers in ("1", "3"):
        words = ("--rendition", "mp3", "--rendition", "ogg", "--loudness", "-14", "--shard-bytes", "50KB")
        exported(catalog, tmp_path / workers, "webdataset", *words, "--workers", workers)
    assert len(list((tmp_path / "1").glob("*.tar"))) > 2
    assert without_card(bytes_of(tmp_path / "1")) == without_card(bytes_of(tmp_path / "3"))


def test_nothing_good_comes_of_a_lossy_file(tmp_path: Path) -> None:
    catalog = Storage(str(tmp_path / "catalog"))
    make_catalog(catalog, ["a", "b", "c", "d"], format="mp3")
    result = export(catalog.url, tmp_path / "out", "parquet", "--rendition", "flac")
    assert result.exit_code == 2
    assert "their files are lossy (mp3) and no latents were kept" in result.output
    assert "'a'" in result.output
    assert not (tmp_path / "out").exists()
    exported(catalog.url, tmp_path / "out", "parquet")


def test_a_song_that_is_not_there_is_named_by_its_encoder(tmp_path: Path) -> None:
    catalog = Storage(str(tmp_path / "catalog"))
    make_catalog(catalog, ["a", "b"])
    catalog.delete([rows_of(catalog.url)["b"]["path"]])
    result = export(catalog.url, tmp_path / "out", "parquet", "--rendition", "wav", *ONE)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.output.count("song 'b' cannot be exported: audio/") == 1


def test_latents_give_what_the_model_made(made: tuple[str, dict[str, GenerationResult]], tmp_path: Path) -> None:
    catalog, results = made
    exported(catalog, tmp_path / "out", "parquet", "--rendition", "wav:bit_depth=32", *ONE)
    for row in pq.read_table(tmp_path / "out/data").to_pylist():
        samples, rate = sound(row["audio"]["bytes"])
        made_then = results[row["id"]].waveform.numpy()
        assert rate == 44_100
        assert samples.shape == made_then.shape
        assert np.abs(samples - made_then.clip(-1, 1)).max() < 1e-4


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder.open("tiny", {(Checkpoint.open("tiny").fingerprint("float32"), "float32")})


def test_latents_have_any_sample_rate_and_the_loudness_of_the_catalog(
    made: tuple[str, dict[str, GenerationResult]], decoder: Decoder
) -> None:
    catalog, results = made
    row = rows_of(catalog)["first"]
    loudness = Loudness(mode="lufs", target_lufs=-30.0)
    wav = (Rendition("wav", AudioFormat(format="wav")),)
    for rate, target, expected in ((None, None, -30), (48_000, None, -30), (16_000, -25.0, -25)):
        options = ExportOptions(kind="parquet", renditions=wav, sample_rate=rate, target_lufs=target)
        renderer = Renderer(Storage(catalog), options, loudness, decoder)
        song = renderer(row)
        assert renderer(row) == song
        samples, file_hz = sound(song.files[0].data)
        assert file_hz == song.facts["sample_rate"] == (rate or 44_100)
        assert samples.shape[1] == -(-results["first"].waveform.shape[1] * file_hz // 44_100)
        assert integrated_loudness(samples, file_hz) == pytest.approx(expected, abs=0.1)
        assert song.facts["lufs"] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--no-latents",), "latents are not to be used"),
        (("--checkpoint", "/nowhere"), "does not exist"),
        (("--device", "cuda:7"), "device: 'cuda:7' is not allowed"),
    ],
)
def test_latents_that_cannot_be_decoded_end_with_2(
    made: tuple[str, dict[str, GenerationResult]], tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    result = export(made[0], tmp_path / "out", "parquet", "--rendition", "wav", *words)
    assert result.exit_code == 2, (result.output, result.exception)
    assert expected in result.output


def test_another_model_does_not_decode_them(made: tuple[str, dict[str, GenerationResult]], tmp_path: Path) -> None:
    catalog = Storage(str(tmp_path / "catalog"))
    for key, data in bytes_of(made[0]).items():
        catalog.put(key, data)
    (key,) = catalog.keys("songs")
    table = catalog.read_table(key)
    position = table.schema.get_field_index("model_fingerprint")
    catalog.write_table(key, table.set_column(position, "model_fingerprint", pa.array(["other"] * len(table))))
    result = export(catalog.url, tmp_path / "out", "parquet", "--rendition", "wav")
    assert result.exit_code == 2, result.output
    assert "the latents are of the model other" in result.output


SLOW = """
import sys, time
from pipelines.export import making
from pipelines.storage import Storage
making.RECORD_SECONDS = 0
put = Storage.put
def slow(self, key, data):
    time.sleep(0.3)
    put(self, key, data)
Storage.put = slow
from jobs.export import command
if __name__ == "__main__":
    command(sys.argv[1:])
"""


def half_way(words: list[str]) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """An export with some shards done, and its encoders."""
    before = len(list(Path(words[1]).glob("*.tar")))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # A shell's "&" has it ignored.
    )
    deadline = time.monotonic() + 120
    while len(list(Path(words[1]).glob("*.tar"))) == before:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    spawned = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    return process, spawned


def test_encoders_and_exports_that_are_killed(catalog: str, tmp_path: Path) -> None:
    options = ["webdataset", "--rendition", "mp3", "--shard-bytes", "20KB", *ONE]
    words = [catalog, str(tmp_path / "out"), "--as", *options]
    process, (encoder,) = half_way(words)
    encoder.kill()
    _, said = process.communicate(timeout=180)
    assert process.returncode == 4, said
    assert "a process that encodes was killed" in said
    assert "Traceback" not in said

    process, encoders = half_way(words)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=180)
    assert (process.returncode, said.count("Traceback")) == (130, 0), said
    assert "acestep export: interrupted" in said

    process, encoders = half_way(words)
    assert len(encoders) == 1
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(encoders, timeout=120)
    assert not alive, "they end with the one who started them"
    exported(catalog, tmp_path / "out", *options)
    exported(catalog, tmp_path / "whole", *options)
    assert without_card(bytes_of(tmp_path / "out")) == without_card(bytes_of(tmp_path / "whole"))
