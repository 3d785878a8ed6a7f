"""`EngineActor` and the stages around it, without Ray: what they hand on, and what becomes of every failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from acestep.audio_format import AudioFormat
from acestep.errors import CheckpointError
from acestep.loudness import Loudness
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult
from pipelines import schema
from pipelines.actors import EngineActor
from pipelines.cutting import Cutting, batches_of, cut_bucket
from pipelines.encoding import encode_songs
from pipelines.errors import ConfigError, Stop
from pipelines.generating import GenerateStage
from pipelines.layout import plan_key
from pipelines.manifest import ManifestBatch
from pipelines.resolution import Resolution, plan_rows
from pipelines.schema import pack, unpack
from pipelines.storage import Storage
from tests.conftest import ROOT

ARGUMENTS: dict[str, Any] = {"engine": "tests.stand_in:Engine", "checkpoint": "stand-in", "dtype": "float32"}


def plan_of(prompts: list[str], duration: float = 2.0) -> pa.Table:
    """A plan of songs `a`, `b`, ..., with a column of the manifest's own."""
    ids = [chr(97 + number) for number in range(len(prompts))]
    table = pa.table({"id": ids, "prompt": prompts, "label": list(range(len(prompts)))})
    batch = ManifestBatch("m", list(range(len(ids))), table)
    planned, rejects = plan_rows(batch, Resolution({"duration": duration}, 0, "model", "flac-16"))
    assert not rejects.num_rows
    return planned


def batch_of(plan: pa.Table) -> pa.Table:
    return pa.table({"batch": ["x"], "bucket": [0], "requests": [pack(plan)], "stop": pa.nulls(1, pa.string())})


def test_an_actor_makes_songs_and_tells_failures() -> None:
    actor = EngineActor(**ARGUMENTS)
    requests = [GenerationRequest(id=id, prompt=id, seed=1, duration=1) for id in ("good", "refuse")]
    song, failure = actor.generate(requests)
    assert isinstance(song, GenerationResult)
    assert isinstance(failure, GenerationFailure)
    assert (song.request.id, failure.error_class) == ("good", "out_of_memory")
    outcomes = actor.generate([GenerationRequest(prompt="raise", seed=1), requests[0]])
    assert [type(outcome) for outcome in outcomes] == [GenerationFailure, GenerationFailure]
    assert outcomes[0].message == "RuntimeError: told to raise"  # type: ignore[union-attr]


def test_other_weights_than_the_plan_s_are_refused() -> None:
    with pytest.raises(CheckpointError, match="is another one here"):
        EngineActor(**ARGUMENTS, fingerprint="0123")


@pytest.mark.parametrize("engine", ["no.such.module:Engine", "tests.stand_in:NoSuchEngine"])
def test_an_engine_that_cannot_be_imported_is_said(engine: str) -> None:
    with pytest.raises(ConfigError, match="cannot be imported"):
        EngineActor(**ARGUMENTS | {"engine": engine})


def test_a_broken_device_ends_the_process_hard() -> None:
    code = (
        "from pipelines.actors import EngineActor; from acestep.request import GenerationRequest\n"
        f"EngineActor(**{ARGUMENTS!r}).generate([GenerationRequest(prompt='device', seed=1)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the device is broken" in done.stderr
    assert "Traceback" not in done.stderr


def test_batches_hold_what_is_left_of_the_whole_cut(tmp_path: Path) -> None:
    storage, plan = Storage(str(tmp_path)), plan_of(["p"] * 7)
    storage.write_table(plan_key(0, "p"), plan)
    cutting = Cutting("p", "run", frame_budget=10_000, max_batch_size=3)

    def ids(cutting: Cutting) -> list[list[str]]:
        return [batch.column("id").to_pylist() for batch in batches_of(0, storage, cutting)]

    assert ids(cutting) == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    done = plan.filter(pa.compute.is_in(plan.column("id"), pa.array(["a", "d", "e", "f"])))
    storage.write_table("songs/bucket=000000/x.parquet", done.select(["id", "fingerprint"]))
    assert ids(cutting) == [["b", "c"], ["g"]]
    failed = plan.slice(1, 1).select(["id", "fingerprint"]).append_column("run", pa.array(["run"]))
    storage.write_table("failed/bucket=000000/x.parquet", failed)
    assert ids(cutting) == [["b", "c"], ["g"]]
    assert ids(Cutting("p", "run", 10_000, 3, alone=True)) == [["c"], ["g"]]


def test_a_bucket_that_cannot_be_read_stops_the_job(tmp_path: Path) -> None:
    cutting = Cutting("p", "run", 100, 3)
    (row,) = [
        row for t in cut_bucket(pa.table({"bucket": [5]}), Storage(str(tmp_path)), cutting) for row in t.to_pylist()
    ]
    assert "FileNotFoundError" in Stop.of(row["stop"]).message


def test_songs_pass_through_the_stages_with_everything_that_belongs_to_them(tmp_path: Path) -> None:
    storage, plan = Storage(str(tmp_path)), plan_of(["rock", "refuse", "nan"])
    generated = pa.concat_tables(list(GenerateStage(**ARGUMENTS)(batch_of(plan))))
    assert generated.column("size").to_pylist() == [3, 3, 3]
    rows = encode_songs(generated, storage, AudioFormat(format="flac"), Loudness(), "run").to_pylist()
    song = unpack(rows[0]["song"])
    assert song.schema.equals(schema.SONG.append(pa.field("label", pa.int64())))
    values = song.to_pylist()[0]
    assert values["label"] == 0
    assert values["requested_duration"] == 2.0
    assert values["duration"] == values["num_samples"] / 44100
    assert values["batch_size"] == 3
    assert values["model"] == "stand-in"
    assert values["warnings"] == ["made by a stand-in"]
    assert storage.get(values["path"])[:4] == b"fLaC"
    failures = [unpack(row["failed"]).to_pylist()[0] for row in rows[1:]]
    assert [failure["error_class"] for failure in failures] == ["out_of_memory", "quality"]
    assert "not finite" in failures[1]["message"]


def test_storage_that_keeps_failing_stops_the_job(tmp_path: Path) -> None:
    (tmp_path / "audio").write_text("in the way")
    generated = pa.concat_tables(list(GenerateStage(**ARGUMENTS)(batch_of(plan_of(["rock"])))))
    (row,) = encode_songs(generated, Storage(str(tmp_path)), AudioFormat(format="flac"), Loudness(), "run").to_pylist()
    assert Stop.of(row["stop"]).error_class == "storage"


def test_an_engine_that_cannot_be_loaded_stops_the_job() -> None:
    stage = GenerateStage(**ARGUMENTS | {"checkpoint": "broken-on-the-node"})
    (row,) = [row for table in stage(batch_of(plan_of(["rock"]))) for row in table.to_pylist()]
    stop = Stop.of(row["stop"])
    assert stop.error_class == "input"
    assert "the weights on this node are damaged" in stop.message
