"""An export opened by the readers that people use: every song is there, whole, with its row; ended and gone on with."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import types
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner, Result
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st

from jobs.export import command
from pipelines.catalog import Catalog
from pipelines.export.names import LONGEST_KEY, id_of, key_of
from pipelines.storage import Storage
from tests.conftest import ROOT, S3
from tests.made_catalog import NASTY_IDS, make_catalog

IDS = [*NASTY_IDS, *(f"s{number:02d}" for number in range(20))]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("catalog") / "songs"
    make_catalog(Storage(str(folder)), IDS)
    return str(folder)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`datasets` keeps what it read in a cache, and asks the Hub for news."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def export(source: str, destination: str | Path, kind: str, *words: str) -> Result:
    """Run `acestep export` in this process."""
    return CliRunner().invoke(command, [source, str(destination), "--as", kind, *words])


def exported(source: str, destination: str | Path, kind: str, *words: str) -> None:
    result = export(source, destination, kind, *words)
    assert result.exit_code == 0, (result.output, result.exception)


def rows_of(catalog: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in Catalog(Storage(catalog)).songs().to_pylist()}


def bytes_of(folder: str | Path) -> dict[str, bytes]:
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def without_card(files: dict[str, bytes]) -> dict[str, bytes]:
    """The card names the place where it lies."""
    return {key: data for key, data in files.items() if key != "README.md"}


def check_songs(songs: dict[str, bytes], catalog: str, ids: list[str] = IDS) -> None:
    """These are the catalog's files, untouched."""
    sums = {id: hashlib.sha256(data).hexdigest() for id, data in songs.items()}
    rows = rows_of(catalog)
    assert sums == {id: rows[id]["sha256"] for id in ids}


def test_parquet_is_read_by_datasets(catalog: str, tmp_path: Path) -> None:
    import datasets

    exported(catalog, tmp_path / "out", "parquet", "--shard-bytes", "150KB")
    assert len(list((tmp_path / "out/data").iterdir())) > 2
    for loaded in (
        datasets.load_dataset(str(tmp_path / "out"), split="train"),
        datasets.load_dataset("parquet", data_files=str(tmp_path / "out/data/*.parquet"), split="train"),
        datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True),
    ):
        assert loaded.features["audio"] == datasets.Audio(sampling_rate=44_100)
        assert loaded.features["seed"] == datasets.Value("uint64")
        plain = loaded.cast_column("audio", datasets.Audio(decode=False))
        songs = {row["id"]: row for row in plain}
        check_songs({id: row["audio"]["bytes"] for id, row in songs.items()}, catalog)
        rows = rows_of(catalog)
        for id, song in songs.items():
            for name in ("prompt", "lyrics", "seed", "created_at", "label", "oss_steps", "fingerprint", "lufs"):
                assert song[name] == rows[id][name]
            assert song["audio"]["path"] == f"{key_of(id)}.flac"
            assert song["audio_in_manifest"] == 1, "the manifest's own column called audio"


def test_parquet_is_made_for_many_readers(catalog: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.export.parquet.ROW_GROUP_BYTES", 60_000)
    exported(catalog, tmp_path / "out", "parquet")
    (path,) = (tmp_path / "out/data").iterdir()
    assert path.name == "train-00000-of-00001.parquet"
    file = pq.ParquetFile(path)
    assert file.num_row_groups > 3
    group = file.metadata.row_group(0)
    columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    assert columns["audio.bytes"].compression == "UNCOMPRESSED"
    assert columns["prompt"].compression == "ZSTD"
    assert not columns["audio.bytes"].is_stats_set
    assert columns["oss_steps.list.element"].total_compressed_size
    query = f"select id, audio.bytes, label from read_parquet('{path}')"
    found = duckdb.sql(query).fetchall()
    check_songs({id: data for id, data, _ in found}, catalog)
    assert all(label == f"label of {id}" for id, _, label in found)


def test_webdataset_is_read_by_webdataset(catalog: str, tmp_path: Path) -> None:
    import webdataset

    exported(catalog, tmp_path / "out", "webdataset", "--shard-bytes", "150KB")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert names == [f"train-{index:06d}.tar" for index in range(len(names))]
    assert len(names) > 2
    urls = f"{tmp_path}/out/train-{{000000..{len(names) - 1:06d}}}.tar"
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    rows = rows_of(catalog)
    check_songs({id_of(sample["__key__"]): sample["flac"] for sample in samples}, catalog)
    for sample in samples:
        row = rows[sample["json"]["id"]]
        assert unquote(sample["__key__"]) == row["id"]
        assert sample["txt"] == row["prompt"]
        assert sample["json"]["seed"] == row["seed"]
        assert sample["json"]["created_at"] == row["created_at"].isoformat()
    with tarfile.open(tmp_path / "out" / names[0]) as tar:
        for member in tar.getmembers():
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def test_datasets_reads_webdataset_too(catalog: str, tmp_path: Path, torchcodec: None) -> None:
    import datasets

    exported(catalog, tmp_path / "out", "webdataset", "--shard-bytes", "150KB")
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert loaded.features["flac"] == datasets.Audio()
    songs = {row["json"]["id"]: row for row in loaded.cast_column("flac", datasets.Audio(decode=False))}
    check_songs({id: row["flac"]["bytes"] for id, row in songs.items()}, catalog)
    assert songs["s00"]["json"]["seed"] == rows_of(catalog)["s00"]["seed"]


@pytest.fixture
def torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` wants torchcodec before it takes even the name of a file, and does not use it for that."""
    try:
        import torchcodec.encoders  # noqa: F401
    except (ImportError, OSError):
        encoders = types.ModuleType("torchcodec.encoders")
        encoders.AudioEncoder = None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
        monkeypatch.setitem(sys.modules, "torchcodec.encoders", encoders)


def test_audiofolder_is_read_by_datasets(catalog: str, tmp_path: Path, torchcodec: None) -> None:
    import datasets

    exported(catalog, tmp_path / "out", "audiofolder", "--shard-bytes", "150KB")
    assert len(list((tmp_path / "out/train").iterdir())) > 2
    for loaded in (
        datasets.load_dataset(str(tmp_path / "out"), split="train"),
        datasets.load_dataset("audiofolder", data_dir=str(tmp_path / "out"), split="train"),
    ):
        assert isinstance(loaded.features["audio"], datasets.Audio)
        songs = {row["id"]: row for row in loaded.cast_column("audio", datasets.Audio(decode=False))}
        check_songs({id: Path(row["audio"]["path"]).read_bytes() for id, row in songs.items()}, catalog)
        assert songs["s01"]["seed"] == rows_of(catalog)["s01"]["seed"]
        assert songs["s01"]["label"] == "label of s01"


def test_jsonl_names_the_catalogs_own_files(catalog: str, tmp_path: Path) -> None:
    exported(catalog, tmp_path / "out", "jsonl")
    lines = (tmp_path / "out/train/metadata.jsonl").read_text(encoding="utf-8").split("\n")
    songs = {row["id"]: row for row in map(json.loads, filter(None, lines))}
    check_songs({id: Path(row["url"]).read_bytes() for id, row in songs.items()}, catalog)
    assert all(Path(catalog, row["path"]).samefile(row["url"]) for row in songs.values())
    found = duckdb.sql(f"select id, url, day from read_json('{tmp_path}/out/train/*.jsonl')").fetchall()
    assert {id: url for id, url, _ in found} == {id: row["url"] for id, row in songs.items()}

    import datasets

    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert sorted(loaded["id"]) == sorted(IDS)


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "audiofolder", "jsonl"])
def test_the_same_songs_make_the_same_bytes(catalog: str, tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        exported(catalog, tmp_path / name, kind, "--shard-bytes", "150KB")
    first, second = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    assert without_card(first) == without_card(second)
    again = export(catalog, tmp_path / "a", kind, "--shard-bytes", "150KB")
    assert again.exit_code == 0
    assert "of them there already" in again.output
    assert bytes_of(tmp_path / "a") == first


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "audiofolder"])
def test_s3_is_as_good_as_a_folder(catalog: str, tmp_path: Path, moto: S3, kind: str) -> None:
    base = f"{moto.url}/{uuid.uuid4().hex}"
    options = ("--storage-options", json.dumps(moto.options))
    for key, data in bytes_of(catalog).items():
        Storage(f"{base}/catalog", moto.options).put(key, data)
    exported(f"{base}/catalog", f"{base}/out", kind, "--shard-bytes", "150KB", *options)
    exported(catalog, tmp_path / "out", kind, "--shard-bytes", "150KB")
    remote = Storage(f"{base}/out", moto.options)
    there = {key: remote.get(key) for key in remote.keys("")}
    assert without_card(there) == without_card(bytes_of(tmp_path / "out"))
    assert f"{base}/out" in there["README.md"].decode() or kind == "parquet"
    remote.delete([next(key for key in there if key.endswith((".parquet", ".tar")))])
    exported(f"{base}/catalog", f"{base}/out", kind, "--shard-bytes", "150KB", *options)
    assert {key: remote.get(key) for key in remote.keys("")} == there


SLOW = """
import sys, time
from pipelines.export import making
from pipelines.storage import Storage
making.RECORD_SECONDS = 0
put = Storage.put
def slow(self, key, data):
    if key.endswith((".parquet", ".tar", ".flac")):
        time.sleep(0.05)
    put(self, key, data)
Storage.put = slow
from jobs.export import command
command(sys.argv[1:])
"""


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "audiofolder"])
def test_a_killed_export_goes_on_and_makes_the_same_bytes(catalog: str, tmp_path: Path, kind: str) -> None:
    words = [catalog, str(tmp_path / "out"), "--as", kind, "--shard-bytes", "40KB"]
    exported(catalog, tmp_path / "whole", *words[3:])
    whole = bytes_of(tmp_path / "whole")
    shards = json.loads(whole["export.json"])["splits"]["train"]["shards"]
    assert len(shards) > 8
    process = subprocess.Popen([sys.executable, "-c", SLOW, *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    record = tmp_path / "out/export.json"
    deadline = time.monotonic() + 60
    while not record.exists() or len(done_in(record)) < 3:
        assert process.poll() is None, "it was to be killed half way"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = done_in(record)
    assert 3 <= len(done) < len(shards)
    assert not (tmp_path / "out/README.md").exists()
    stamps = {key: os.stat(tmp_path / "out" / key).st_mtime_ns for key in done}
    result = export(*words[:2], *words[3:])
    assert result.exit_code == 0, result.output
    assert without_card(bytes_of(tmp_path / "out")) == without_card(whole)
    assert {key: os.stat(tmp_path / "out" / key).st_mtime_ns for key in done} == stamps, "made once only"


def done_in(record: Path) -> dict[str, int]:
    return json.loads(record.read_text())["splits"]["train"]["shards"]


def test_a_truncated_shard_is_made_again(catalog: str, tmp_path: Path) -> None:
    exported(catalog, tmp_path / "out", "webdataset", "--shard-bytes", "150KB")
    before = bytes_of(tmp_path / "out")
    (tmp_path / "out/train-000001.tar").write_bytes(before["train-000001.tar"][:-1024])
    (tmp_path / "out/train-000000.tar").unlink()
    (tmp_path / "out/.0123456789abcdef0123456789abcdef.tmp").write_bytes(b"what a killed export was writing")
    exported(catalog, tmp_path / "out", "webdataset", "--shard-bytes", "150KB")
    assert bytes_of(tmp_path / "out") == before


def test_another_export_is_not_mixed_in(tmp_path: Path) -> None:
    catalog, out = str(tmp_path / "catalog"), tmp_path / "out"
    make_catalog(Storage(catalog), IDS)
    exported(catalog, out, "webdataset", "--shard-bytes", "100KB")
    before = bytes_of(out)
    for words, expected in (
        (("webdataset", "--shard-bytes", "200KB"), "shard-bytes was 100000 and is 200000"),
        (("webdataset", "--shard-bytes", "100KB", "--columns", "prompt"), "columns was None and is ['prompt']"),
        (("parquet",), "it holds an export as webdataset"),
    ):
        result = export(catalog, out, *words)
        assert result.exit_code == 2, result.output
        assert expected in result.output
        assert bytes_of(out) == before
    make_catalog(Storage(catalog), ["s00"], minutes=1)
    result = export(catalog, out, "webdataset", "--shard-bytes", "100KB")
    assert result.exit_code == 2
    assert "the catalog's songs have changed since" in result.output
    exported(catalog, out, "webdataset", "--shard-bytes", "300KB", "--overwrite")
    exported(catalog, tmp_path / "new", "webdataset", "--shard-bytes", "300KB")
    assert without_card(bytes_of(out)) == without_card(bytes_of(tmp_path / "new"))
    exported(catalog, out, "parquet", "--overwrite")
    assert not list(out.glob("*.tar"))


def test_files_of_others_are_left_alone(catalog: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    result = export(catalog, tmp_path, "parquet")
    assert result.exit_code == 2
    assert "README.md is there" in result.output
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    (tmp_path / "export.json").write_text('{"format": 1}')
    assert "is not ours" in export(catalog, tmp_path, "parquet").output
    result = export(catalog, catalog, "parquet")
    assert result.exit_code == 2
    assert "it is the catalog itself" in result.output


def test_splits_share_a_destination_and_a_card(catalog: str, tmp_path: Path) -> None:
    import datasets

    test_ids = [id for id in IDS[::4] if "\n" not in id]
    (tmp_path / "test").write_text("\n".join([*test_ids, "nobody", ""]), encoding="utf-8")
    (tmp_path / "train").write_text("\n".join(id for id in IDS if id not in test_ids and "\n" not in id))
    for split in ("train", "test"):
        words = ("--split", split, "--only-ids", str(tmp_path / split), "--columns", "prompt,label")
        exported(catalog, tmp_path / "out", "parquet", *words)
    loaded = datasets.load_dataset(str(tmp_path / "out"))
    assert sorted(loaded["test"]["id"]) == sorted(test_ids)
    assert len(loaded["train"]) == len(IDS) - len(test_ids) - 1
    assert loaded["test"].column_names == ["audio", "id", "prompt", "label"]


def test_the_newest_song_of_an_id_is_delivered(tmp_path: Path) -> None:
    catalog = Storage(str(tmp_path / "catalog"))
    make_catalog(catalog, ["a", "b", "c"])
    make_catalog(catalog, ["c", "b"], minutes=2)
    exported(catalog.url, tmp_path / "out", "parquet")
    table = pq.read_table(tmp_path / "out/data")
    assert sorted(table.column("id").to_pylist()) == ["a", "b", "c"]
    newest = {row["id"]: row["created_at"].minute for row in table.to_pylist()}
    assert newest == {"a": 0, "b": 2, "c": 2}


def test_seeds_of_64_bits_arrive(tmp_path: Path) -> None:
    import datasets
    import webdataset

    catalog = Storage(str(tmp_path / "catalog"))
    make_catalog(catalog, ["a"], seed=2**64 - 1)
    exported(catalog.url, tmp_path / "out", "parquet")
    assert datasets.load_dataset(str(tmp_path / "out"), split="train")["seed"][0] == 2**64 - 1
    exported(catalog.url, tmp_path / "tar", "webdataset")
    (sample,) = webdataset.WebDataset(f"{tmp_path}/tar/train-000000.tar", shardshuffle=False).decode()
    assert sample["json"]["seed"] == 2**64 - 1


def test_a_damaged_or_missing_song_is_named(tmp_path: Path) -> None:
    catalog = Storage(str(tmp_path / "catalog"))
    make_catalog(catalog, ["a", "b"])
    path = Path(catalog.url, rows_of(catalog.url)["b"]["path"])
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    result = export(catalog.url, tmp_path / "out", "parquet")
    assert result.exit_code == 2
    assert "song 'b' cannot be exported" in result.output
    assert "is damaged: its sha256" in result.output
    path.unlink()
    result = export(catalog.url, tmp_path / "out", "parquet")
    assert "is not there" in result.output
    path.write_bytes(data)
    exported(catalog.url, tmp_path / "out", "parquet")


def test_the_card_is_what_the_hub_reads(catalog: str, tmp_path: Path) -> None:
    exported(catalog, tmp_path, "parquet", "--title", "Songs: of | noise", "--license", "cc-by-4.0")
    card = DatasetCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["pretty_name"], data["language"]) == ("cc-by-4.0", "Songs: of | noise", ["de"])
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["text-to-audio"]
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert data["dataset_info"]["splits"][0]["num_examples"] == len(IDS)
    size = sum(path.stat().st_size for path in (tmp_path / "data").iterdir())
    assert data["dataset_info"]["download_size"] == size
    for expected in (
        "AI-generated",
        "noise, not music",
        "| songs | 29 (14 without lyrics) |",
        "| model | stand-in |",
        "| model fingerprint | 0123456789abcdef |",
        "| `num_inference_steps` | 20 to 24 |",
        "| `max_silence_share` | 0.5 |",
        "flac at 44100 Hz",
        "2026-01-01T00:00:00+00:00",
    ):
        assert expected in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("kind", ["webdataset", "audiofolder", "jsonl"])
def test_what_the_card_says_of_loading_works(catalog: str, tmp_path: Path, kind: str, torchcodec: None) -> None:
    exported(catalog, tmp_path, kind, "--shard-bytes", "150KB")
    card = DatasetCard.load(tmp_path / "README.md")
    code = card.text.split("```python\n")[1].split("```")[0]
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--columns", "promt"), "did you mean 'prompt'?"),
        (("--split", "a-b"), "split: 'a-b' is not allowed"),
        (("--shard-bytes", "lots"), "shard-bytes: 'lots' is not allowed"),
        (("--loudness", "-14"), "without a rendition"),
        (("--rendition", "mp4"), "format: 'mp4' is not allowed"),
        (("--rendition", "mp3:bitrate=3"), "there is no such field"),
        (("--rendition", "mp3:320"), "it must be like mp3:bitrate_kbps=320"),
        (("--rendition", "mp3", "--rendition", "mp3:bitrate_kbps=320"), "two of them are the same"),
        (("--rendition", "flac", "--loudness", "3"), "it must be -70 to 0"),
        (("--rendition", "flac", "--sample-rate", "44101"), "allowed: 8000, 16000"),
        (("--storage-options", "[1]"), "storage-options: it must be like"),
    ],
)
def test_unusable_options_end_with_2(catalog: str, tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    result = export(catalog, tmp_path / "out", "parquet", *words)
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert not (tmp_path / "out").exists()


def test_a_catalog_without_songs_ends_with_2(tmp_path: Path) -> None:
    result = export(str(tmp_path / "nothing"), tmp_path / "out", "parquet")
    assert result.exit_code == 2
    assert "there are no songs in it" in result.output


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=512))
def test_a_key_is_safe_and_leads_back_to_its_id(id: str) -> None:
    key = key_of(id)
    assert key
    assert len(key) <= LONGEST_KEY
    assert key[0] != "_"
    assert set(key) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-%~")
    if "~" in key:
        with pytest.raises(ValueError, match="was cut"):
            id_of(key)
        assert key_of(id + "x") != key
    else:
        assert id_of(key) == id


def test_copying_needs_neither_torch_nor_ray(catalog: str, tmp_path: Path) -> None:
    code = (
        "import sys; from jobs.export import command\n"
        "command(sys.argv[1:], standalone_mode=False)\n"
        "print({'torch', 'ray'} & set(sys.modules))"
    )
    words = [catalog, str(tmp_path / "out"), "--as", "parquet"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_sound_is_as_it_was(catalog: str, tmp_path: Path) -> None:
    exported(catalog, tmp_path, "audiofolder")
    samples, rate = soundfile.read(io.BytesIO((tmp_path / "train/00000/s00.flac").read_bytes()))
    assert (rate, samples.shape) == (44_100, (22_050, 2))
