"""Finding checkpoints wherever they are, once and whole, and telling them apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub.utils import filter_repo_objects
from moto.server import ThreadedMotoServer

from acestep import cache, download
from acestep.cache import file_sha256, make_once
from acestep.checkpoint import FOLDERS, Checkpoint, wanted_patterns
from acestep.errors import CheckpointError
from acestep.tiny import tiny_checkpoint
from acestep.upload import copy_checkpoint

WEIGHTS = "music_vocoder/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def built() -> Path:
    return tiny_checkpoint()


@pytest.fixture
def folder(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint to be damaged, and a cache of its own."""
    monkeypatch.setenv("ACESTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ACESTEP_LYRIC_VOCAB", raising=False)
    return Path(shutil.copytree(built, tmp_path / "models" / "small"))


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """storage_options of an S3 server."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys).create_bucket(Bucket="models")
    yield {"key": "test", "secret": "test", "endpoint_url": url}
    server.stop()


class FlakyStore(MemoryFileSystem):
    """A store whose transfers can be made to fail."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    fetched: list[str] = []  # noqa: RUF012

    def fault(self, path: str, count: int) -> None:
        """What happens to the file at `path`, the `count`th that was fetched."""

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        self.fetched.append(rpath)
        super().get_file(rpath, lpath, **kwargs)
        self.fault(lpath, len(self.fetched))


@pytest.fixture
def flaky(folder: Path, monkeypatch: pytest.MonkeyPatch) -> type[FlakyStore]:
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    monkeypatch.setattr(FlakyStore, "fetched", [])
    monkeypatch.setattr(FlakyStore, "store", {})
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    FlakyStore().put(str(folder) + "/", "flaky://bucket/small/", recursive=True)
    return FlakyStore


def put(folder: Path, url: str, options: dict[str, Any]) -> None:
    store, root = fsspec.url_to_fs(url, **options)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put_file(str(path), f"{root}/{path.relative_to(folder)}")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, timeout=60
    )


# --- where it is


def test_a_local_folder_is_used_as_it_lies(folder: Path) -> None:
    for source in (str(folder), folder, f"file://{folder}"):
        checkpoint = Checkpoint.open(source)
        assert (checkpoint.name, checkpoint.path) == ("small", folder)
    assert checkpoint.config("transformer")["num_layers"] == 5
    assert checkpoint.lyric_vocab == folder / "vocab.json"
    assert checkpoint.size_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_tiny_is_a_name_and_a_path_called_tiny_is_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "tiny").mkdir()
    monkeypatch.chdir(folder.parent)
    assert Checkpoint.open("tiny").random_weights
    for source in (Path("tiny"), "./tiny"):
        with pytest.raises(CheckpointError, match="holds no part of a checkpoint"):
            Checkpoint.open(source)


@pytest.mark.parametrize("source", ["nowhere", "./nowhere/at all", "/nowhere", "a/b/c", Path("some/where"), "Tiny"])
def test_a_path_that_does_not_exist(source: str | Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; a checkpoint is `tiny`, a folder, a hub id") as caught:
        Checkpoint.open(source)
    assert str(source) in str(caught.value)
    assert ("did you mean 'tiny'?" in str(caught.value)) == (source == "Tiny")


def test_a_file_is_not_a_checkpoint(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint.open(folder / "vocab.json")


def test_a_folder_that_lacks_parts_names_all_of_them(folder: Path) -> None:
    shutil.rmtree(folder / "music_vocoder")
    (folder / "umt5-base/tokenizer.json").unlink()
    (folder / "music_dcae_f8c8/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert str(folder) in str(caught.value)
    for lack in (
        "music_vocoder/ (the vocoder)",
        "umt5-base/tokenizer.json",
        "music_dcae_f8c8/diffusion_pytorch_model.safetensors",
    ):
        assert lack in str(caught.value)


# --- whether it is whole


@pytest.mark.parametrize("size", [0, 5, 100, -1000])
def test_a_file_cut_short_is_named_with_both_sizes(folder: Path, size: int) -> None:
    whole = (folder / WEIGHTS).stat().st_size
    os.truncate(folder / WEIGHTS, size % whole)
    with pytest.raises(CheckpointError, match=r"is cut short: it has [\d,]+ bytes, .*fetch it again") as caught:
        Checkpoint.open(folder)
    assert str(folder / WEIGHTS) in str(caught.value)
    assert f"{size % whole:,} bytes" in str(caught.value)
    assert size != -1000 or f"{whole:,}" in str(caught.value)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>" * 10, b"\x08" + b"\0" * 7 + b"[1,2,3] "])
def test_a_file_of_another_kind_is_named(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors \(\d+ bytes\) is not a safetensors file"):
        Checkpoint.open(folder)


def test_a_pointer_of_git_lfs_is_not_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        Checkpoint.open(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    part = folder / "music_vocoder"
    shard = part / "diffusion_pytorch_model-00001-of-00002.safetensors"
    (folder / WEIGHTS).rename(shard)
    with pytest.raises(CheckpointError, match=r"no weights in .*music_vocoder.*the folder holds"):
        Checkpoint.open(folder)  # a shard without an index
    index = part / "diffusion_pytorch_model.safetensors.index.json"
    other = "diffusion_pytorch_model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": {"a": shard.name, "b": other}}))
    with pytest.raises(CheckpointError, match=f"lacks 1 of the 2 files that {index.name} names: {other}"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_config_that_is_not_json_is_named(folder: Path, content: str) -> None:
    (folder / "umt5-base/config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"umt5-base/config\.json"):
        Checkpoint.open(folder)


# --- from a store


def test_s3_is_fetched_once_and_again_when_it_changes(
    folder: Path, s3: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "acestep")
    (folder / "music_vocoder/notes.txt").write_text("not needed")
    put(folder, "s3://models/v1/small", s3)
    first = Checkpoint.open("s3://models/v1/small", storage_options=s3)
    assert first.name == "small"
    assert caplog.text.count("fetching") == 1
    assert not (first.path / "music_vocoder/notes.txt").exists()
    caplog.clear()
    assert Checkpoint.open("s3://models/v1/small/", storage_options=s3).path == first.path
    assert "fetching" not in caplog.text
    config = first.config("transformer") | {"note": "fine-tuned"}
    (folder / "ace_step_transformer/config.json").write_text(json.dumps(config))
    put(folder, "s3://models/v1/small", s3)
    second = Checkpoint.open("s3://models/v1/small", storage_options=s3)
    assert second.config("transformer")["note"] == "fine-tuned"
    assert "note" not in first.config("transformer")
    assert second.fingerprint("float32") != first.fingerprint("float32")


def test_two_processes_fetch_once(folder: Path, s3: dict[str, Any]) -> None:
    put(folder, "s3://models/shared", s3)
    code = (
        "import logging; logging.basicConfig(level='INFO'); from acestep.checkpoint import Checkpoint;"
        "print(Checkpoint.open('s3://models/shared').path)"
    )
    names = {"AWS_ENDPOINT_URL": "endpoint_url", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    environment = os.environ | {name: s3[option] for name, option in names.items()}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert len({path for path, _ in outputs}) == 1
    assert sum(log.count("INFO:acestep.download:fetching") for _, log in outputs) == 1


def test_what_a_store_lacks_is_said_before_anything_is_fetched(
    folder: Path, s3: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "acestep")
    shutil.rmtree(folder / "music_vocoder")
    put(folder, "s3://models/partial", s3)
    with pytest.raises(CheckpointError, match=r"s3://models/partial.*lacks music_vocoder/"):
        Checkpoint.open("s3://models/partial", storage_options=s3)
    for source in ("s3://models/none", "s3://no-bucket/none"):
        with pytest.raises(CheckpointError, match=f"{source}' holds no part of a checkpoint"):
            Checkpoint.open(source, storage_options=s3)
    assert "fetching" not in caplog.text


@pytest.mark.parametrize("url", ["nostore://bucket/x", "s3://bucket/x", "http://user:secret@127.0.0.1:9/x"])
def test_a_store_that_cannot_be_reached(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"key": "a", "secret": "secret", "endpoint_url": "http://127.0.0.1:9"} if url.startswith("s3") else {}
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(CheckpointError, match=r"(cannot be listed|holds no part)") as caught:
        Checkpoint.open(url, storage_options=options)
    assert "bucket/x" in str(caught.value) or "127.0.0.1:9/x" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_transfer_that_fails_is_tried_again(flaky: type[FlakyStore], monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(self: FlakyStore, path: str, count: int) -> None:
        if count == 2:
            os.truncate(path, 3)
        if count == 3:
            raise OSError("connection reset")

    monkeypatch.setattr(flaky, "fault", fault)
    checkpoint = Checkpoint.open("flaky://bucket/small")
    assert len(flaky.fetched) == 10 + 2
    assert not list(checkpoint.path.rglob("*.part"))


def test_a_transfer_that_keeps_failing_says_which_and_is_resumed(
    flaky: type[FlakyStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flaky, "fault", lambda self, path, count: os.truncate(path, 3) if count > 4 else None)
    with pytest.raises(CheckpointError, match=r"cannot be fetched from flaky://bucket/small: OSError: 3 bytes arrived"):
        Checkpoint.open("flaky://bucket/small")
    assert not [
        path for path in (cache.cache_folder() / "checkpoints").iterdir() if path.suffix not in (".partial", ".lock")
    ]
    monkeypatch.setattr(flaky, "fault", lambda self, path, count: None)
    flaky.fetched.clear()
    Checkpoint.open("flaky://bucket/small")
    assert len(flaky.fetched) == 10 - 4


def test_checksums_are_compared(flaky: type[FlakyStore], folder: Path) -> None:
    copy_checkpoint(Checkpoint.open(folder), "flaky://bucket/small")
    Checkpoint.open("flaky://bucket/small")
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    flaky().pipe_file(f"flaky://bucket/small/{WEIGHTS}", bytes(data))
    with pytest.raises(CheckpointError, match=f"flaky://bucket/small: .*SHA256SUMS says: {WEIGHTS}"):
        Checkpoint.open("flaky://bucket/small")


def test_a_disk_that_is_too_small_is_known_before(flaky: type[FlakyStore], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"[\d,]+ bytes are to be written to .*, where 1,000 are free"):
        Checkpoint.open("flaky://bucket/small")


# --- from the hub


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub at http://127.0.0.1:9 cannot be reached"),
    ],
)
@pytest.mark.parametrize("source", ["ACE-Step/ACE-Step-v1-3.5B", "ACE-Step/ACE-Step-v1-3.5B@v1.0", "vocabulary"])
def test_a_hub_that_cannot_be_reached(environment: dict[str, str], reason: str, source: str, folder: Path) -> None:
    if source == "vocabulary":
        (folder / "vocab.json").unlink()
        code = f"from acestep.checkpoint import Checkpoint; Checkpoint.open({str(folder)!r}).lyric_vocab"
    else:
        code = f"from acestep.checkpoint import Checkpoint; Checkpoint.open({source!r})"
    started = time.perf_counter()
    done = run_python(code, **environment, HF_HOME=str(folder.parent / "hub"))
    assert time.perf_counter() - started < 15
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("acestep.errors.CheckpointError")
    assert reason in last
    assert (source in last) or source == "vocabulary"
    if source == "vocabulary":
        assert all(place in last for place in ("ACESTEP_LYRIC_VOCAB", str(folder / "vocab.json"), "ACE-Step/ACE-Step"))


def test_a_snapshot_in_the_hubs_cache_needs_no_network(folder: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    home = folder.parent / "hub"
    repository = home / "hub/models--some--model"
    shutil.copytree(folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    code = "from acestep.checkpoint import Checkpoint; c = Checkpoint.open('some/model'); print(c.name, c.path)"
    done = run_python(code, HF_HUB_OFFLINE="1", HF_HOME=str(home))
    assert done.stdout.split() == ["some/model", str(repository / "snapshots" / revision)], done.stderr


def test_only_what_is_needed_is_fetched() -> None:
    needed = [
        "ace_step_transformer/config.json",
        "ace_step_transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "ace_step_transformer/diffusion_pytorch_model.safetensors.index.json",
        "umt5-base/model.safetensors",
        "umt5-base/tokenizer.json",
        "vocab.json",
    ]
    others = ["README.md", "umt5-base/pytorch_model.bin", "umt5-base/spiece.model", "assets/demo.wav", "x/config.json"]
    assert list(filter_repo_objects([*needed, *others], allow_patterns=wanted_patterns())) == needed


# --- the lyric vocabulary


def test_the_vocabulary_is_taken_from_the_first_place_that_has_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, s3: dict[str, Any]
) -> None:
    def found(**options: Any) -> tuple[Path, str]:
        checkpoint = Checkpoint.open(folder, **options)
        return checkpoint.lyric_vocab, checkpoint.lyric_vocab_origin

    elsewhere = [Path(shutil.copy(folder / "vocab.json", folder.parent / name)) for name in ("a.json", "b.json")]
    monkeypatch.setenv("ACESTEP_LYRIC_VOCAB", str(elsewhere[1]))
    assert found(lyric_vocab=str(elsewhere[0])) == (elsewhere[0], "given")
    assert found() == (elsewhere[1], "from ACESTEP_LYRIC_VOCAB")
    monkeypatch.delenv("ACESTEP_LYRIC_VOCAB")
    assert found() == (folder / "vocab.json", "in the checkpoint")
    for place in ("lyric_vocab.json", "ace_step_transformer/vocab.json"):
        next(path for path in folder.rglob("*vocab.json")).rename(folder / place)
        assert found() == (folder / place, "in the checkpoint")
    put(folder / "ace_step_transformer", "s3://models/vocabularies", s3)
    path, origin = found(lyric_vocab="s3://models/vocabularies/vocab.json", storage_options=s3)
    assert (path.read_bytes(), origin) == (elsewhere[0].read_bytes(), "given")


def test_a_wrong_vocabulary_is_refused(folder: Path) -> None:
    wrong = folder.parent / "wrong.json"
    with pytest.raises(CheckpointError, match=r"lyric vocabulary given, .*wrong\.json, is not a file"):
        _ = Checkpoint.open(folder, lyric_vocab=str(wrong)).lyric_vocab
    wrong.write_text('{"model": {"vocab": {"a": 0}}}')
    with pytest.raises(CheckpointError, match=r"not a lyric vocabulary: .*lacks \[STOP\], \[UNK\]"):
        _ = Checkpoint.open(folder, lyric_vocab=str(wrong)).lyric_vocab
    larger = json.loads((folder / "vocab.json").read_text())
    larger["model"]["vocab"]["big"] = 6692
    wrong.write_text(json.dumps(larger))
    with pytest.raises(CheckpointError, match=r"its ids go up to 6,692, the checkpoint's lyric table has 448 rows"):
        _ = Checkpoint.open(folder, lyric_vocab=str(wrong)).lyric_vocab


# --- which it is


def test_the_fingerprint_is_of_the_content(folder: Path, s3: dict[str, Any]) -> None:
    put(folder, "s3://models/elsewhere", s3)
    local = Checkpoint.open(folder)
    fingerprint = local.fingerprint("float32")
    assert len(fingerprint) == 16
    assert int(fingerprint, 16) >= 0
    assert Checkpoint.open("s3://models/elsewhere", storage_options=s3).fingerprint("float32") == fingerprint
    assert local.fingerprint("torch.float32") == fingerprint
    assert local.fingerprint("bfloat16") != fingerprint
    (folder / "README.md").write_text("does not matter")
    (folder / "music_vocoder/model.bin").write_text("does not matter")
    (folder / "vocab.json").rename(folder / "lyric_vocab.json")
    assert Checkpoint.open(folder).fingerprint("float32") == fingerprint


@pytest.mark.parametrize("name", [WEIGHTS, "umt5-base/config.json", "umt5-base/tokenizer.json", "vocab.json"])
def test_any_byte_that_matters_changes_the_fingerprint(folder: Path, name: str) -> None:
    before = Checkpoint.open(folder).fingerprint("float32")
    data = (folder / name).read_bytes()
    changed = data[:-1] + bytes([data[-1] ^ 1]) if name == WEIGHTS else data + b"\n"
    (folder / name).write_bytes(changed)
    assert Checkpoint.open(folder).fingerprint("float32") != before


def test_a_file_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / WEIGHTS
    digest = file_sha256(path)
    (folder.parent / "link").symlink_to(path)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_hash", lambda path: pytest.fail("hashed again"))
        assert file_sha256(path) == file_sha256(folder.parent / "link") == digest
    os.utime(path, ns=(1, 1))
    assert file_sha256(path) == digest


def test_a_cache_that_cannot_be_written_costs_time_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = file_sha256(folder / WEIGHTS)
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("ACESTEP_CACHE", str(folder.parent / "file"))
    assert file_sha256(folder / WEIGHTS) == expected
    with pytest.raises(CheckpointError, match=r"cannot be written .*; set ACESTEP_CACHE"):
        Checkpoint.open("tiny")


def test_finding_and_fingerprinting_need_no_torch(folder: Path) -> None:
    code = (
        "import sys; from acestep.checkpoint import Checkpoint;"
        f"Checkpoint.open({str(folder)!r}).fingerprint('bfloat16');"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert run_python(code).stdout.split() == ["False", "False"]


# --- the cache


def test_something_made_halfway_does_not_count(folder: Path) -> None:
    def make(place: Path) -> None:
        (place / "first").write_text("1")
        raise RuntimeError("interrupted")

    place = folder.parent / "made"
    with pytest.raises(RuntimeError, match="interrupted"):
        make_once(place, make)
    assert not place.exists()
    assert make_once(place, lambda unfinished: (unfinished / "second").touch() or None) == place
    assert sorted(path.name for path in place.iterdir()) == ["first", "second"]


def test_credentials_in_a_url_are_not_shown() -> None:
    assert download.without_credentials("s3://key:secret@bucket/a@b") == "s3://bucket/a@b"


def test_all_parts_have_a_folder() -> None:
    assert list(FOLDERS.values()) == ["ace_step_transformer", "music_dcae_f8c8", "music_vocoder", "umt5-base"]
