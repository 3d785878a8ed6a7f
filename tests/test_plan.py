"""The plan: rows into complete requests and rejects, bucketed, repeatable, there whole or not at all."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from acestep.errors import InvalidRequestError
from acestep.request import GenerationRequest, derived_seed
from pipelines import layout, plan, schema
from pipelines.errors import ManifestError, OutputError
from pipelines.judging import plan_rows
from pipelines.manifest import Manifest, ManifestBatch
from pipelines.manifest_files import UnreadableRow, array_of
from pipelines.plan import PlanRecord, make_plan, read_rejects, read_warnings
from pipelines.resolution import Resolution
from pipelines.sections import PreflightSection
from pipelines.spill import Spill
from pipelines.storage import Storage

RESOLUTION = Resolution(
    defaults={"duration": 20, "num_inference_steps": 40}, seed=7, model_fingerprint="m", rendition="r"
)


def planned(rows: list[dict[str, Any]] | pa.Table, resolution: Resolution = RESOLUTION) -> tuple[list[Any], list[Any]]:
    """`plan_rows` of plain rows, as plain rows."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    batch = ManifestBatch("m", list(range(1, table.num_rows + 1)), table)
    judged = plan_rows(batch, resolution)
    return judged.planned.to_pylist(), judged.rejects.to_pylist()


def test_a_row_goes_before_the_defaults_and_null_means_default() -> None:
    rows = [
        {"id": "a", "prompt": "p", "duration": 5.0, "lyrics": None, "guidance_scale": None},
        {"id": "b", "prompt": "p", "duration": None, "lyrics": "la", "guidance_scale": 3.0},
    ]
    (a, b), bad = planned(rows)
    assert not bad
    assert (a["duration"], a["lyrics"], a["num_inference_steps"], a["guidance_scale"]) == (5.0, "", 40, 15.0)
    assert (b["duration"], b["lyrics"], b["guidance_scale"]) == (20.0, "la", 3.0)
    assert (a["file"], a["row"], b["row"]) == ("m", 1, 2)
    assert schema.requests_of(pa.Table.from_pylist([a], schema=schema.PLAN))[0].duration == 5.0


def test_a_missing_seed_is_derived_from_run_and_id() -> None:
    (a, b), _ = planned([{"id": "a", "prompt": "p", "seed": None}, {"id": "b", "prompt": "p", "seed": 5}])
    assert (a["seed"], b["seed"]) == (derived_seed(7, "a"), 5)
    (other, _), _ = planned([{"id": "a", "prompt": "p"}, {"id": "b", "prompt": "p"}], Resolution({}, 8, "m", "r"))
    assert other["seed"] == derived_seed(8, "a")


def test_the_fingerprint_names_sound_model_and_rendition() -> None:
    rows = [{"id": "a", "prompt": "p", "seed": 1}]
    ((first,), _) = planned(rows)
    assert first["fingerprint"] == GenerationRequest(
        prompt="p", seed=1, duration=20, num_inference_steps=40
    ).fingerprint("m", "r")
    for other in (Resolution(RESOLUTION.defaults, 7, "x", "r"), Resolution(RESOLUTION.defaults, 7, "m", "x")):
        assert planned(rows, other)[0][0]["fingerprint"] != first["fingerprint"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        (7.5, "7.5"),
        (np.int64(7), "7"),
        (b"bytes", "bytes"),
        (True, "True"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        ("\U0001f3b5 / ..", "\U0001f3b5 / .."),
        (2**64 - 1, str(2**64 - 1)),
    ],
)
def test_ids_of_any_scalar_type_become_text(value: Any, text: str) -> None:
    kind = pa.uint64() if value == 2**64 - 1 else None
    (row,), _ = planned(pa.table({"id": pa.array([value], kind), "prompt": ["p"]}))
    assert row["id"] == text


def test_arrow_and_pandas_types_are_as_good_as_python_s() -> None:
    frame = pd.DataFrame({"id": [1, 2], "prompt": ["p", "p"], "seed": [42, None], "use_erg_tag": [True, None]})
    frame["duration"] = np.array([10, 20], dtype=np.float32)
    frame["scheduler"] = pd.Categorical(["heun", "euler"])
    frame["sample_rate"] = [48000.0, None]
    rows, bad = planned(pa.Table.from_pandas(frame))
    assert not bad
    assert [row["id"] for row in rows] == ["1", "2"]
    assert [row["sample_rate"] for row in rows] == [48000, 44100]
    assert [row["scheduler"] for row in rows] == ["heun", "euler"]


def test_text_from_csv_becomes_numbers() -> None:
    row = {"id": "007", "prompt": "p", "duration": "12.5", "seed": "3", "sample_rate": "48000", "use_erg_tag": "false"}
    (made,), bad = planned([row])
    assert not bad
    assert (made["id"], made["duration"], made["seed"], made["sample_rate"]) == ("007", 12.5, 3, 48000)
    assert made["use_erg_tag"] is False


BAD = [
    ({"duration": 0}, "duration: 0"),
    ({"duration": -1}, "duration: -1"),
    ({"duration": float("nan")}, "duration: nan"),
    ({"duration": 1000}, "1 to 240"),
    ({"duration": "abc"}, "duration: 'abc'"),
    ({"num_inference_steps": 0}, "num_inference_steps: 0"),
    ({"scheduler": "dpm"}, "scheduler: 'dpm' is not allowed; allowed: 'euler', 'heun' or 'pingpong'"),
    ({"prompt": "x" * 100_000}, "(100,000 characters)"),
    ({"prompt": None}, "prompt: None is not allowed; it is required"),
    ({"prompt": "  "}, "prompt: '  '"),
    ({"id": None}, "id: None is not allowed; it is required"),
    ({"id": ""}, "id: '' is not allowed"),
    ({"id": "x" * 1000}, "id: 'xxx"),
    ({"seed": -1}, "seed: -1"),
    ({"sample_rate": 8000}, "sample_rate: 8000"),
]


@pytest.mark.parametrize(("change", "expected"), BAD, ids=[expected[:30] for _, expected in BAD])
def test_a_bad_value_names_field_value_and_what_is_allowed(change: dict[str, Any], expected: str) -> None:
    good, (reject,) = planned([{"id": "a", "prompt": "p"} | change])
    assert not good
    assert expected in reject["message"]
    assert "is not allowed" in reject["message"]
    assert [reason["field"] for reason in reject["reasons"]] == list(change)
    assert reject["row"] == 1


def test_good_rows_among_bad_ones_and_all_problems_at_once() -> None:
    rows = [{"id": str(n), "prompt": "\U0001f525 emoji", "duration": 10.0, "num_inference_steps": 5} for n in range(4)]
    rows[1] |= {"duration": 0.0, "num_inference_steps": 0, "prompt": None}
    good, (reject,) = planned(rows)
    assert [row["id"] for row in good] == ["0", "2", "3"]
    assert [reason["field"] for reason in reject["reasons"]] == ["prompt", "duration", "num_inference_steps"]
    assert json.loads(reject["request"])["duration"] == 0.0


def test_a_row_that_could_not_be_read_is_a_reject() -> None:
    batch = ManifestBatch("m", [], pa.table({}), [UnreadableRow(3, "'{broken'", "it is not JSON")])
    judged = plan_rows(batch, RESOLUTION)
    assert (judged.planned.num_rows, judged.rejects.to_pylist()[0]["row"]) == (0, 3)


def manifest_of(path: Path, table: pa.Table) -> Manifest:
    pq.write_table(table, path)
    return Manifest(str(path))


def make(
    manifest: Manifest, storage: Storage, resolution: Resolution = RESOLUTION, bucket_rows: int = 10
) -> PlanRecord:
    return make_plan(manifest, storage, resolution, bucket_rows=bucket_rows, about={"model": {}, "config": {}})


def table(count: int, **more: Any) -> pa.Table:
    return pa.table({"id": [f"s{n:03d}" for n in range(count)], "prompt": [f"song {n}" for n in range(count)], **more})


def read_plan(storage: Storage, record: PlanRecord) -> list[dict[str, Any]]:
    keys = [layout.plan_key(bucket, record.plan) for bucket in range(record.num_buckets)]
    return [row for key in keys for row in storage.read_table(key).to_pylist()]


def test_a_plan_is_written_by_bucket_in_an_order_of_its_own(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    record = make(manifest_of(tmp_path / "m.parquet", table(95)), storage)
    assert (record.num_buckets, record.rows, record.planned, record.rejected) == (10, 95, 95, 0)
    rows = read_plan(storage, record)
    assert sorted(row["id"] for row in rows) == [f"s{n:03d}" for n in range(95)]
    assert PlanRecord.read(storage) == record

    shuffled = table(95).take(np.random.default_rng(0).permutation(95))
    other = Storage(str(tmp_path / "other"))
    again = read_plan(other, make(manifest_of(tmp_path / "m2.parquet", shuffled), other))
    drop = ("file", "row")
    assert [{k: v for k, v in row.items() if k not in drop} for row in again] == [
        {k: v for k, v in row.items() if k not in drop} for row in rows
    ]


def test_the_same_plan_is_not_made_twice_and_another_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path / "out"))
    manifest = manifest_of(tmp_path / "m.parquet", table(5))
    first = make(manifest, storage)
    monkeypatch.setattr(plan, "judge_batch", None)
    assert make(manifest, storage) == first
    monkeypatch.undo()
    second = make(manifest, storage, Resolution({}, 9, "m", "r"))
    assert second.plan != first.plan
    assert storage.keys("plan") == [layout.plan_key(0, second.plan)]


def test_a_plan_with_adapters_is_made_anew_for_their_content_may_change(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    adapter = tmp_path / "a.safetensors"
    manifest = manifest_of(tmp_path / "m.parquet", table(2, lora=[str(adapter), None]))
    assert make(manifest, storage).rejected == 1
    seen = []
    for value in (1.0, 2.0):
        save_file({"weight": np.full(4, value)}, adapter)
        record = make(manifest, storage)
        assert record.rejected == 0
        seen.append({row["id"]: row["fingerprint"] for row in read_plan(storage, record)})
    assert seen[0]["s000"] != seen[1]["s000"]
    assert seen[0]["s001"] == seen[1]["s001"]


def test_a_catalog_keeps_its_number_of_buckets(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    assert make(manifest_of(tmp_path / "m.parquet", table(25)), storage).num_buckets == 3
    assert make(manifest_of(tmp_path / "m.parquet", table(95)), storage).num_buckets == 3


def test_duplicate_ids_are_refused_with_the_row_that_has_it_first(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    rows = pa.table({"id": ["a", "b", "a", "c", "a"], "prompt": ["1", "2", "3", "4", "5"]})
    record = make(manifest_of(tmp_path / "m.parquet", rows), storage)
    assert (record.planned, record.rejected) == (3, 2)
    assert {row["id"]: row["prompt"] for row in read_plan(storage, record)} == {"a": "1", "b": "2", "c": "4"}
    rejects = read_rejects(storage).to_pylist()
    assert [row["row"] for row in rejects] == [3, 5]
    assert "id: 'a' is not allowed; row 1 has it already" in rejects[0]["message"]
    (failed,) = storage.keys("failed")
    assert failed.endswith("rejected.parquet")
    assert storage.read_table(failed).column("error_class").to_pylist() == ["input", "input"]

    make(manifest_of(tmp_path / "m.parquet", rows.slice(0, 2)), storage)
    assert storage.keys("failed") == []
    assert read_rejects(storage).num_rows == 0


def test_nothing_is_written_when_the_manifest_breaks_off(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "m.parquet", table(10_000))
    data = (tmp_path / "m.parquet").read_bytes()
    (tmp_path / "m.parquet").write_bytes(data[:40] + bytes(4000) + data[4040:])
    with pytest.raises(ManifestError):
        make(manifest, Storage(str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_unknown_columns_keep_their_types_and_are_never_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = {
        "labels": pa.array([["x"], None]),
        "when": pa.array([datetime.datetime(2026, 1, 1), None], pa.timestamp("ms")),
        "path": ["mine", "mine"],
        "durations": [1, 2],
        "kind": pa.array(["a", "b"]).dictionary_encode(),
        "nothing": pa.nulls(2),
    }
    storage = Storage(str(tmp_path / "out"))
    with caplog.at_level(logging.WARNING):
        record = make(manifest_of(tmp_path / "m.parquet", table(2, **more)), storage)
    types = {field.name: field.type for field in storage.read_table(layout.plan_key(0, record.plan)).schema}
    assert types["labels"] == pa.list_(pa.string())
    assert types["when"] == pa.timestamp("ms")
    assert types["manifest_path"] == pa.string()
    assert types["kind"] == pa.string()
    assert types["nothing"] == pa.string()
    assert "'path' is no setting of a song and goes to the catalog as 'manifest_path'" in caplog.text
    assert "did you mean 'duration'?" in caplog.text
    with pytest.raises(ManifestError, match="'manifest_path' in the catalog"):
        make(manifest_of(tmp_path / "m.parquet", table(2, path=[1, 2], manifest_path=[1, 2])), storage)


def test_files_with_different_columns_make_one_plan(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"id": [1], "prompt": ["p"], "x": [1], "y": ["t"]}), folder / "a.parquet")
    pq.write_table(pa.table({"id": ["two"], "prompt": ["p"], "x": [2.5], "y": [3]}), folder / "b.parquet")
    pq.write_table(pa.table({"id": ["three"], "prompt": ["p"]}), folder / "c.parquet")
    storage = Storage(str(tmp_path / "out"))
    rows = {row["id"]: row for row in read_plan(storage, make(Manifest(str(folder)), storage, bucket_rows=1))}
    assert (rows["1"]["x"], rows["two"]["x"], rows["three"]["x"]) == (1.0, 2.5, None)
    assert (rows["1"]["y"], rows["two"]["y"], rows["three"]["y"]) == ("t", "3", None)


def test_another_program_s_run_json_is_not_overwritten(tmp_path: Path) -> None:
    for text in ("not json", "[]", '{"format": 99}'):
        storage = Storage(str(tmp_path / "out"))
        storage.put(layout.RUN, text.encode())
        with pytest.raises(OutputError, match=r"run\.json there is not"):
            make(manifest_of(tmp_path / "m.parquet", table(1)), storage)


def test_spilling_to_disk_changes_nothing() -> None:
    with Spill(memory=1) as small, Spill() as large:
        for number in range(20):
            for spill in (small, large):
                spill.add(number % 3, pa.table({"n": [number], f"c{number % 2}": [str(number)]}))
        for bucket in range(3):
            wanted = pa.schema([("n", pa.int64())])
            assert small.table(bucket, wanted).equals(large.table(bucket, wanted))


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "guidance_scale": st.sampled_from([1.0, 15.0, 101.0]),
        "omega_scale": st.sampled_from([0.0, -0.0]),
        "oss_steps": st.sampled_from([[1, 2], []]),
        "use_erg_tag": st.booleans(),
        "sample_rate": st.sampled_from([44100.0, 8000.0]),
        "task": st.sampled_from(["text2music", "retake"]),
        "variance": st.just(0.1),
    },
)
OWN = st.fixed_dictionaries(
    {"id": st.text(min_size=1, max_size=9) | st.integers(), "prompt": st.text(min_size=1, max_size=20)},
    optional={
        "lyrics": st.none() | st.text(max_size=40),
        "duration": st.none() | st.sampled_from([1.0, 240.0, 0.99, 240.01, -0.0, float("nan")]) | st.floats(1, 240),
        "seed": st.none() | st.sampled_from([-1, 0, 2**64 - 1, 2**64]) | st.integers(0, 2**64 - 1),
    },
)
ROWS = st.lists(SETTINGS, min_size=1, max_size=2).flatmap(
    lambda several: st.lists(
        st.tuples(st.sampled_from(several), OWN).map(lambda two: two[0] | two[1]), min_size=1, max_size=9
    )
)
DEFAULTS = st.fixed_dictionaries({}, optional={"duration": st.just(9.0), "lyrics": st.just("la"), "seed": st.just(3)})


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, defaults=DEFAULTS)
def test_settings_validated_once_give_what_each_row_alone_gives(rows: list[Any], defaults: dict[str, Any]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    ids = [str(row["id"]) for row in rows]
    columns = {name: array_of([row.get(name) for row in rows]) for name in names if name != "id"}
    resolution = Resolution(defaults, 7, "m", "r 100% %s")
    good, bad = planned(pa.table({"id": ids, **columns}), resolution)
    made = {row["row"]: row for row in good}
    assert len(made) + len(bad) == len(rows)
    for number, row in enumerate(pa.table({"id": ids, **columns}).to_pylist(), start=1):
        values = defaults | {name: value for name, value in row.items() if value is not None}
        if "sample_rate" in values:
            values["sample_rate"] = int(values["sample_rate"])
        values.setdefault("seed", derived_seed(7, values["id"]))
        if number not in made:
            (refused,) = [each for each in bad if each["row"] == number]
            with pytest.raises(InvalidRequestError) as caught:
                GenerationRequest.parse(values)
            assert refused["message"] == str(caught.value)
            continue
        request = GenerationRequest.parse(values).resolved()
        assert made[number]["fingerprint"] == request.fingerprint("m", "r 100% %s")
        assert made[number]["num_frames"] == request.num_frames
        written = {name: made[number][name] for name in schema.REQUEST.names}
        expected = schema.request_values(request)
        assert written == pa.Table.from_pylist([expected], schema=schema.REQUEST).to_pylist()[0]
        assert repr(written["omega_scale"]) == repr(request.omega_scale)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("duration", value) for value in (0.99, 1.0, 240.0, 240.01, -0.0, float("nan"), float("inf"))),
        *(("seed", value) for value in (-1, 0, 2**63 - 1)),
        *(("seed", value) for value in (-1.0, 3.0, 3.5, 2.0**60, float("nan"))),
        *(("prompt", value) for value in ("", " ", "\u3000", "x" * 4096, "x" * 4097)),
        *(("lyrics", value) for value in ("", "x" * 32_768, "x" * 32_769)),
        *(("id", value) for value in ("", "x" * 512, "x" * 513)),
        *(("omega_scale", value) for value in (-0.0, 1e-300)),
    ],
)
def test_a_row_is_judged_as_if_it_were_alone(name: str, value: Any) -> None:
    usual: dict[str, Any] = {"id": "a", "prompt": "p", "lyrics": "la", "duration": 30.0, "omega_scale": 0.0}
    usual["seed"] = 1.0 if isinstance(value, float) else 1
    row = usual | {"id": "b"} | {name: value}
    together, alone = (
        plan_rows(ManifestBatch("m", list(range(3 - len(rows), 3)), pa.Table.from_pylist(rows)), RESOLUTION)
        for rows in ([usual, row], [row])
    )
    assert repr(together.planned.to_pylist()[1:]) == repr(alone.planned.to_pylist())
    assert repr(together.rejects.to_pylist()) == repr(alone.rejects.to_pylist())


def everything(storage: Storage, record: PlanRecord) -> list[Any]:
    """All that a plan wrote, but for the time of it."""
    return [
        dataclasses.replace(record, created_at=""),
        *(storage.read_table(layout.plan_key(bucket, record.plan)) for bucket in range(record.num_buckets)),
        *(storage.read_table(key).drop_columns(["created_at"]) for key in storage.keys("failed")),
        read_rejects(storage),
        read_warnings(storage),
    ]


@pytest.mark.slow
def test_any_number_of_processes_makes_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    monkeypatch.setattr("pipelines.manifest_files.BATCH_BYTES", 1 << 14)
    for name in ("a", "b"):
        count = 1500
        ids = [f"{name if n % 5 else 'x'}{n % 1400}" for n in range(count)]
        lyrics = ["[drop]\nla" if n % 9 == 0 else f"la {n}" for n in range(count)]
        more = {"lyrics": lyrics, "duration": [10.0 if n % 11 else 0.0 for n in range(count)]}
        more |= {
            "label": [n if name == "a" else str(n) for n in range(count)],
            "lora": [None if n % 99 else "none/such/x" for n in range(count)],
        }
        pq.write_table(pa.table({"id": ids, "prompt": ["p"] * count, **more}), folder / f"{name}.parquet")
    made = []
    for workers in (1, 3):
        storage = Storage(str(tmp_path / str(workers)))
        resolution = dataclasses.replace(RESOLUTION, num_songs=2)
        record = make_plan(
            Manifest(str(folder)),
            storage,
            resolution,
            bucket_rows=700,
            about={"model": {}, "config": {}},
            workers=workers,
        )
        made.append(everything(storage, record))
    assert made[0] == made[1]
    assert {"settings", "duplicate_id", "structure_tags", "lora"} == made[0][0].rules.keys()


def test_a_plan_is_made_anew_only_when_what_it_names_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path / "out"))
    adapter = tmp_path / "a.safetensors"
    save_file({"weight": np.full(4, 1.0)}, adapter)
    manifest = manifest_of(tmp_path / "m.parquet", table(2, lora=[str(adapter), None]))
    record = make(manifest, storage)
    (row,) = [row for row in read_plan(storage, record) if row["lora"]]
    assert record.adapters == {str(adapter): row["adapter_fingerprint"]}
    monkeypatch.setattr(plan, "judge_batch", None)
    assert make(manifest, storage) == record
    adapter.unlink()
    with pytest.raises(TypeError):
        make(manifest, storage)
    monkeypatch.undo()
    assert make(manifest, storage).rules == {"lora": {"error": 1}}


def test_a_missing_adapter_that_is_only_warned_of_is_looked_for_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    adapter = tmp_path / "a.safetensors"
    for severity in ("warning", "off"):
        adapter.unlink(missing_ok=True)
        resolution = dataclasses.replace(RESOLUTION, preflight=PreflightSection(lora=severity))
        manifest = manifest_of(tmp_path / "m.parquet", table(1, lora=[str(adapter)]))
        record = make(manifest, storage, resolution)
        assert (record.planned, record.adapters) == (1, {str(adapter): ""})
        save_file({"weight": np.full(4, 1.0)}, adapter)
        assert make(manifest, storage, resolution).adapters[str(adapter)]


@pytest.mark.parametrize(
    ("severity", "songs", "rejected", "warned"), [("error", 1, 3, 0), ("warning", 2, 0, 3), ("off", 2, 0, 0)]
)
def test_duplicates_can_be_let_through_but_not_the_same_song_twice(
    tmp_path: Path, severity: Any, songs: int, rejected: int, warned: int
) -> None:
    rows = pa.table({"id": ["a"] * 4, "prompt": ["1", "2", "1", "1"]})
    resolution = dataclasses.replace(RESOLUTION, preflight=PreflightSection(duplicate_id=severity))
    storage = Storage(str(tmp_path / "out"))
    record = make(manifest_of(tmp_path / "m.parquet", rows), storage, resolution)
    assert (record.planned, record.rejected, record.warned) == (songs, rejected, warned)
    assert len({row["fingerprint"] for row in read_plan(storage, record)}) == songs
    assert read_warnings(storage).num_rows == warned


def test_children_share_a_bucket_and_never_an_id(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    ids = [f"s{n}" for n in range(40)] + ["s7.1", "s8"]
    rows = pa.table({"id": ids, "prompt": ["p"] * 42, "num_songs": [3] * 40 + [1, 3]})
    record = make(manifest_of(tmp_path / "m.parquet", rows), storage)
    assert (record.rows, record.planned, record.rejected, record.num_buckets) == (42, 39 * 3 + 1, 2, 13)
    for bucket in range(record.num_buckets):
        for row in storage.read_table(layout.plan_key(bucket, record.plan)).to_pylist():
            assert layout.bucket_of(row["parent"] or row["id"], record.num_buckets) == bucket
    made = [row["id"] for row in read_plan(storage, record)]
    assert len(set(made)) == len(made)
    messages = {row["id"]: row["message"] for row in read_rejects(storage).to_pylist()}
    assert messages["s8"] == "id: 's8' is not allowed; row 9 has it already; every row needs its own"
    assert messages["s7"].startswith("id: 's7' is not allowed; ")


def test_a_column_that_goes_before_the_sweep_is_worth_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = table(2, guidance_scale=[3.0, None])
    resolution = dataclasses.replace(RESOLUTION, sweep={"guidance_scale": [5, 7]})
    record = make(manifest_of(tmp_path / "m.parquet", rows), Storage(str(tmp_path / "out")), resolution)
    assert (record.rows, record.planned) == (2, 3)
    assert "a column 'guidance_scale': rows with a value there are not swept over it" in caplog.text


def test_names_that_come_late_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = [{"id": str(n), "prompt": "p"} for n in range(1200)]
    lines += [{"id": "x", "prompt": "p", "path": 1, "manifest_path": 2}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ManifestError, match="'path' would be 'manifest_path' in the catalog"):
        make(Manifest(str(path)), Storage(str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_rejects_are_in_the_manifest_s_order_with_their_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.manifest_files.BATCH_BYTES", 1 << 12)
    durations = [10.0 if n % 3 else 0.0 for n in range(300)]
    rows = pa.table({"id": [f"s{n % 290}" for n in range(300)], "prompt": ["p"] * 300, "duration": durations})
    storage = Storage(str(tmp_path / "out"))
    record = make(manifest_of(tmp_path / "m.parquet", rows), storage, bucket_rows=50)
    rejects = read_rejects(storage).to_pylist()
    assert [row["row"] for row in rejects] == sorted(row["row"] for row in rejects)
    assert record.rules == {"settings": {"error": 100}, "duplicate_id": {"error": record.rejected - 100}}
    assert {reason["rule"] for row in rejects for reason in row["reasons"]} == record.rules.keys()
    assert [each["row"] for each in record.examples if each["rule"] == "settings"] == [1, 4]
    assert PlanRecord.read(storage) == record


@given(st.lists(st.text(min_size=1), unique=True, max_size=20))
def test_audio_keys_of_any_ids_are_safe_and_differ(ids: list[str]) -> None:
    keys = [layout.audio_key(id, "0" * 16, ".flac") for id in ids]
    assert len(set(keys)) == len(ids)
    assert all(re.fullmatch(r"audio/[0-9a-f]{2}/[A-Za-z0-9_-][A-Za-z0-9._~-]{0,150}", key) for key in keys)


def test_audio_keys_are_safe_and_differ() -> None:
    ids = [
        "a",
        "A",
        "a/b",
        "a_b",
        "../../etc",
        ".",
        "\U0001f3b5",
        "\U0001f3b6",
        "x" * 500,
        "x" * 499,
        "a b%20?#&",
        "a~b",
    ]
    keys = [layout.audio_key(id, "f" * 16, ".flac") for id in ids]
    assert len({key.lower() for key in keys}) == len(ids)
    for key in keys:
        folder, name = key.rsplit("/", 1)
        assert key.isascii()
        assert folder.startswith("audio/")
        assert not name.startswith(".")
        assert len(name) < 160
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-~")
    assert layout.audio_key("a", "f", ".mp3").endswith("/a-f.mp3")
