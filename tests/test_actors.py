"""`EngineActor` and the stages around it, without Ray: what they hand on, and what becomes of every failure."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import soundfile

from acestep.audio_format import AudioFormat
from acestep.errors import CheckpointError
from acestep.frames import num_latent_frames
from acestep.loudness import Loudness
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult
from pipelines import schema
from pipelines.actors import EngineActor
from pipelines.catalog import failed_table
from pipelines.cutting import Cutting, batches_of, cut_bucket, lost_songs
from pipelines.encoding import Encoder, encode_songs
from pipelines.errors import ConfigError, Stop
from pipelines.generating import GenerateStage
from pipelines.judging import plan_rows
from pipelines.layout import last_words_key, plan_key
from pipelines.manifest import ManifestBatch
from pipelines.resolution import Resolution
from pipelines.schema import pack, unpack
from pipelines.sections import BestOfSection, ProvenanceSection, QualitySection, StoppingSection
from pipelines.speed import SpeedKey
from pipelines.storage import Storage
from tests.conftest import ROOT

ARGUMENTS: dict[str, Any] = {"engine": "tests.stand_in:Engine", "checkpoint": "stand-in", "dtype": "float32"}
SPEED_KEY = SpeedKey("stand-in", "f", "", "float32")


def stage_of(folder: Path, **changes: Any) -> GenerateStage:
    """A stage whose process has its last words in `folder`."""
    settings: dict[str, Any] = {"quality": QualitySection(), "best_of": BestOfSection(), "stopping": StoppingSection()}
    settings |= {"run": "run", "storage": Storage(str(folder)), "speed_key": SPEED_KEY}
    return GenerateStage(**settings | ARGUMENTS | changes)


def encoder(folder: Path) -> Encoder:
    return Encoder(Storage(str(folder)), "run", AudioFormat(format="flac"), Loudness(), ProvenanceSection())


def plan_of(prompts: list[str], duration: float = 2.0) -> pa.Table:
    """A plan of songs `a`, `b`, ..., with a column of the manifest's own."""
    ids = [chr(97 + number) for number in range(len(prompts))]
    table = pa.table({"id": ids, "prompt": prompts, "label": list(range(len(prompts)))})
    batch = ManifestBatch("m", list(range(len(ids))), table)
    judged = plan_rows(batch, Resolution({"duration": duration}, 0, "model", "flac-16"))
    assert not judged.rejects.num_rows
    return judged.planned


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


def test_nothing_new_begins_while_the_job_drains(tmp_path: Path) -> None:
    assert list(stage_of(tmp_path, is_draining=lambda: True)(batch_of(plan_of(["rock"])))) == []
    storage = Storage(str(tmp_path))
    storage.write_table(plan_key(0, "p"), plan_of(["rock"]))
    assert list(cut_bucket(pa.table({"bucket": [0]}), storage, Cutting("p", 100, 3), lambda: True)) == []


def test_a_batch_on_which_a_process_hung_is_left_and_its_song_alone_fails(tmp_path: Path) -> None:
    words = json.dumps({"error_class": "timeout", "message": "it hangs", "process": "another"})
    Storage(str(tmp_path)).put(last_words_key("run", "x"), words.encode())
    assert list(stage_of(tmp_path)(batch_of(plan_of(["rock", "pop"])))) == []
    (row,) = [row for table in stage_of(tmp_path)(batch_of(plan_of(["rock"]))) for row in table.to_pylist()]
    outcome = json.loads(row["outcome"])
    assert (row["size"], outcome["error_class"], outcome["message"]) == (1, "timeout", "it hangs")


def test_what_the_first_batch_took_is_the_measure_of_the_next(tmp_path: Path) -> None:
    stopping, key = StoppingSection(batch_timeout_min_seconds=1), SpeedKey("crawling", "c", "", "float32")
    stage = stage_of(tmp_path, stopping=stopping, speed_key=key)
    list(stage(batch_of(plan_of(["rock"]))))
    (row,) = [row for table in stage(batch_of(plan_of(["rock crawl:0.8"]))) for row in table.to_pylist()]
    outcome = json.loads(row["outcome"])
    assert outcome["error_class"] == "timeout"
    assert "much longer than batches of its cost do; it was at step" in outcome["message"]


def test_padding_is_told_of_every_call_of_the_engine(tmp_path: Path) -> None:
    plan = pa.concat_tables([plan_of(["rock"], duration=2.0), plan_of(["silent"], duration=1.0)])
    generated = pa.concat_tables(list(stage_of(tmp_path)(batch_of(plan))))
    told = json.loads(generated.column("engine")[0].as_py())
    longer, shorter = num_latent_frames(2.0), num_latent_frames(1.0)
    assert told["calls"] > 1, "the silent song was made again, alone"
    assert told["padding"] == [longer - shorter, 2 * longer + (told["calls"] - 1) * shorter]


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
    cutting = Cutting("p", frame_budget=10_000, max_batch_size=3)

    def ids(cutting: Cutting) -> list[list[str]]:
        return [batch.column("id").to_pylist() for batch in batches_of(0, storage, cutting)]

    assert ids(cutting) == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    done = plan.filter(pa.compute.is_in(plan.column("id"), pa.array(["a", "d", "e", "f"])))
    storage.write_table("songs/bucket=000000/x.parquet", done.select(["id", "fingerprint"]))
    assert ids(cutting) == [["b", "c"], ["g"]]
    failed = failed_table(plan.slice(1, 1), "internal", "no", attempts=1, batch="", run="run")
    storage.write_table("failed/bucket=000000/x.parquet", failed)
    assert ids(cutting) == [["c"], ["g"]], "what failed waits until somebody asks for it"
    assert lost_songs(0, storage, "p").column("id").to_pylist() == ["c", "g"]
    assert ids(Cutting("p", 10_000, 3, alone=True)) == [["c"], ["g"]]
    assert ids(Cutting("p", 10_000, 3, candidates=2)) == [["c"], ["g"]]


def test_batches_with_the_same_adapter_follow_each_other(tmp_path: Path) -> None:
    storage, plan = Storage(str(tmp_path)), plan_of(["p"] * 12)
    loras = pa.array([["x", None, "y"][number % 3] for number in range(12)], pa.string())
    storage.write_table(plan_key(0, "p"), plan.set_column(plan.schema.get_field_index("lora"), "lora", loras))
    batches = list(batches_of(0, storage, Cutting("p", 10_000, 2)))
    assert [batch.column("lora").to_pylist() for batch in batches] == [[None] * 2] * 2 + [["x"] * 2] * 2 + [
        ["y"] * 2
    ] * 2


def test_a_bucket_that_cannot_be_read_stops_the_job(tmp_path: Path) -> None:
    cutting = Cutting("p", 100, 3)
    (row,) = [
        row for t in cut_bucket(pa.table({"bucket": [5]}), Storage(str(tmp_path)), cutting) for row in t.to_pylist()
    ]
    assert "FileNotFoundError" in Stop.of(row["stop"]).message


def test_songs_pass_through_the_stages_with_everything_that_belongs_to_them(tmp_path: Path) -> None:
    storage, plan = Storage(str(tmp_path)), plan_of(["rock", "refuse", "nan"])
    generated = pa.concat_tables(list(stage_of(tmp_path)(batch_of(plan))))
    assert generated.column("size").to_pylist() == [3, 3, 3]
    engine = json.loads(generated.column("engine")[0].as_py())
    assert (engine["songs"], engine["calls"], engine["device"]) == (3, 3, "stand-in")
    assert generated.column("engine").to_pylist()[1:] == [None, None], "a batch is told once"
    rows = encode_songs(generated, encoder(tmp_path)).to_pylist()
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
    assert failures[1]["message"] == "after 3 attempts: non_finite_samples: 1 is over 0"
    assert storage.get(failures[1]["path"])[:4] == b"fLaC", "the evidence"
    assert (values["attempt"], values["requested_seed"], values["ai_generated"]) == (1, values["seed"], True)
    assert -8 < values["lufs"] < -2
    comment = json.loads(soundfile.SoundFile(io.BytesIO(storage.get(values["path"]))).comment)
    assert comment["fingerprint"] == values["fingerprint"]
    assert comment["ai_generated"] is True


def test_storage_that_keeps_failing_stops_the_job(tmp_path: Path) -> None:
    (tmp_path / "audio").write_text("in the way")
    generated = pa.concat_tables(list(stage_of(tmp_path)(batch_of(plan_of(["rock"])))))
    (row,) = encode_songs(generated, encoder(tmp_path)).to_pylist()
    assert Stop.of(row["stop"]).error_class == "storage"


def test_an_engine_that_cannot_be_loaded_stops_the_job(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, checkpoint="broken-on-the-node")
    (row,) = [row for table in stage(batch_of(plan_of(["rock"]))) for row in table.to_pylist()]
    stop = Stop.of(row["stop"])
    assert stop.error_class == "input"
    assert "the weights on this node are damaged" in stop.message
