"""Ten thousand rows of anything, in every kind of file: each becomes a song or a reject that names rule and field."""

from __future__ import annotations

import csv
import datetime
import json
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import layout, schema
from pipelines.catalog import Catalog
from pipelines.manifest import Manifest
from pipelines.plan import PlanRecord, make_plan, read_rejects, read_warnings
from pipelines.resolution import Resolution
from pipelines.storage import Storage

ROWS = 10_000
TEXTS = [
    *(
        "",
        " ",
        "a",
        "pop, rock",
        "[verse]\nla la",
        "0",
        "-1",
        "1e400",
        "nan",
        "None",
        "null",
        "true",
        "[]",
        "{}",
        "song:x",
    ),
    *(
        "\x00",
        "\x00\x01\x7f",
        "\ufeff",
        "\u202e",
        "\u200b" * 9,
        "\ufffd",
        "\U0010ffff",
        "\U0001f3b5" * 40,
        "e\u0301",
        "ﷺ" * 60,
    ),
    *(
        "我爱你" * 80,
        "Τραγούδι",
        "مرحبا",
        "हिन्दी",
        "가나다",
        "も" * 99,
        "x" * 513,
        "x" * 5000,
        "y" * 40_000,
        "%s %d",
        "../..",
        "'\"",
    ),
]
NUMBERS = [0, 1, -1, 2, 27, 44_100, 48_000, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**70), 10**400]
FLOATS = [0.0, -0.0, 0.5, 1.0, 1.5, 15.0, 240.0, 240.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")]
SETTINGS = [*schema.REQUEST.names, "num_songs"]
OWN = ["label", "path", "Prompt", "", "a b", "\U0001f3b5", "bucket", "x.y", "nested"]


def nested(drawn: random.Random, depth: int) -> Any:
    """A list or object of anything."""
    count = drawn.randint(0, 3)
    inner = [junk(drawn, depth - 1) for _ in range(count)]
    return inner if drawn.random() < 0.5 else {drawn.choice(["a", "b", "", "id"]): value for value in inner}


def junk(drawn: random.Random, depth: int = 3) -> Any:
    """A value of any kind that JSON has."""
    kind = drawn.random()
    if kind < 0.4:
        return drawn.choice(TEXTS)
    if kind < 0.6:
        return drawn.choice(NUMBERS)
    if kind < 0.75:
        return drawn.choice(FLOATS)
    if kind < 0.85 or depth == 0:
        return drawn.choice([True, False, None])
    return nested(drawn, depth)


def any_row(drawn: random.Random, number: int) -> dict[str, Any]:
    """Mostly a sensible song, with junk in some places."""
    row: dict[str, Any] = {"id": f"row-{number}", "prompt": f"pop {number}", "lyrics": "la", "duration": 30.0}
    for _ in range(drawn.choice([0, 0, 1, 1, 2, 3])):
        row[drawn.choice(SETTINGS)] = junk(drawn)
    for _ in range(drawn.choice([0, 0, 0, 1])):
        row[drawn.choice(OWN)] = junk(drawn)
    for _ in range(drawn.choice([0, 0, 0, 0, 1])):
        row.pop(drawn.choice(list(row)), None)
    return row


def write_jsonl(path: Path, drawn: random.Random) -> None:
    with path.open("wb") as file:
        for number in range(ROWS):
            line = json.dumps(any_row(drawn, number), ensure_ascii=drawn.random() < 0.5).encode()
            broken = drawn.random()
            if number and broken < 0.01:
                line = line[: drawn.randrange(1, len(line))]
            elif number and broken < 0.02:
                line = line.replace(b"pop", drawn.choice([rb"\ud800", b"\xff", b"\x01", b'"']))
            elif number and broken < 0.025:
                line = b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
            elif number and broken < 0.03:
                depth = drawn.randint(10, 300)
                line = b'{"id": 1, "prompt": "p", "nested": ' + b"[" * depth + b"]" * depth + b"}"
            file.write(line + drawn.choice([b"\n", b"\r\n", b"\n\n"]))


def write_csv(path: Path, drawn: random.Random) -> None:
    names = [*SETTINGS, *(name for name in OWN if name)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for number in range(ROWS):
            row = any_row(drawn, number)
            cells = [str(row.get(name, "")) for name in names]
            writer.writerow(cells[:-1] if drawn.random() < 0.01 else cells)


def write_parquet(path: Path, drawn: random.Random) -> None:
    """Columns of every type that Parquet has, in files of their own; text that is none; times that are none."""
    path.mkdir()
    columns: dict[str, Callable[[int], pa.Array]] = {
        "floats": lambda count: pa.array(drawn.choices(FLOATS, k=count)),
        "floats16": lambda count: pa.array(drawn.choices([0.0, 1.0, 50.0], k=count), pa.float32()),
        "integers": lambda count: pa.array(drawn.choices(NUMBERS[:9], k=count)),
        "unsigned": lambda count: pa.array(drawn.choices([0, 7, 2**64 - 1], k=count), pa.uint64()),
        "flags": lambda count: pa.array(drawn.choices([True, False, None], k=count)),
        "texts": lambda count: pa.array(drawn.choices(TEXTS, k=count), pa.large_string()),
        "not texts": lambda count: pa.array(drawn.choices([b"pop", b"\xff", b"\xed\xa0\x80"], k=count)).view(
            pa.string()
        ),
        "bytes": lambda count: pa.array(drawn.choices([b"pop", b"\xff", b""], k=count), pa.binary()),
        "words": lambda count: pa.array(drawn.choices(["euler", "heun", "x"], k=count)).dictionary_encode(),
        "days": lambda count: pa.array(drawn.choices([0, 10**6, -(10**6)], k=count), pa.date32()),
        "times": lambda count: pa.array(drawn.choices([0, 10**18, -(10**18)], k=count)).cast(pa.timestamp("us")),
        "exact": lambda count: pa.array(drawn.choices([Decimal("1.50"), Decimal(10), None], k=count)),
        "lists": lambda count: pa.array([[junk_text(drawn)] for _ in range(count)], pa.list_(pa.string())),
        "structs": lambda count: pa.array([{"a": junk_text(drawn), "b": {"c": 1}} for _ in range(count)]),
        "maps": lambda count: pa.array([[("k", 1.5)] for _ in range(count)], pa.map_(pa.string(), pa.float64())),
        "nothing": lambda count: pa.nulls(count),
    }
    files = ROWS // 50
    for number in range(files):
        ids = [f"{number}-{row}" for row in range(50)]
        table = {"id": pa.array(ids), "prompt": pa.array(["pop"] * 50), "duration": pa.array([20.0] * 50)}
        for name in drawn.sample([*SETTINGS, "label", "mood", "when", "where"], drawn.choice([1, 1, 2])):
            table[name] = columns[drawn.choice(list(columns))](50)
        pq.write_table(pa.table(table), path / f"{number:04d}.parquet")


def junk_text(drawn: random.Random) -> str | None:
    return drawn.choice([*TEXTS[:20], None])


def plan_of(path: Path, output: Path) -> tuple[PlanRecord, Storage]:
    storage = Storage(str(output))
    resolution = Resolution({"num_inference_steps": 5}, 0, "m", "r")
    about: dict[str, Any] = {"model": {}, "config": {}}
    return make_plan(Manifest(str(path)), storage, resolution, bucket_rows=4000, about=about), storage


def check(record: PlanRecord, storage: Storage, rows: int) -> None:
    """Every row is there once, as songs or as a reject; what was written can be read, and made."""
    assert record.rows == rows
    planned = [storage.read_table(layout.plan_key(bucket, record.plan)) for bucket in range(record.num_buckets)]
    songs = pa.concat_tables(planned)
    songs.to_pylist()
    for request in schema.requests_of(songs.slice(0, 500)):
        assert request.seed is not None
    rejects = read_rejects(storage).to_pylist()
    places = set(zip(songs.column("file").to_pylist(), songs.column("row").to_pylist(), strict=True))
    refused = [(row["file"], row["row"]) for row in rejects]
    assert refused == sorted(refused)
    assert len(places) + len(rejects) == rows
    assert places.isdisjoint(refused)
    assert (record.planned, record.rejected) == (songs.num_rows, len(rejects))
    for row in rejects:
        assert row["message"], row
        assert row["reasons"], row
        assert all(reason["rule"] and reason["field"] and reason["allowed"] for reason in row["reasons"]), row
    rules = {reason["rule"] for row in rejects for reason in row["reasons"]}
    counted = {rule: sum(any(reason["rule"] == rule for reason in row["reasons"]) for row in rejects) for rule in rules}
    assert counted == {rule: counts["error"] for rule, counts in record.rules.items() if "error" in counts}
    assert len({(row["file"], row["row"]) for row in read_warnings(storage).to_pylist()}) == record.warned
    assert Catalog(storage).failures().num_rows == len(rejects)


@pytest.mark.parametrize(
    ("name", "write"),
    [("m.jsonl", write_jsonl), ("m.csv", write_csv), ("m", write_parquet)],
    ids=["jsonl", "csv", "parquet"],
)
def test_ten_thousand_rows_of_anything_are_songs_or_named_rejects(
    tmp_path: Path, name: str, write: Callable[[Path, random.Random], None]
) -> None:
    write(tmp_path / name, random.Random(name))
    record, storage = plan_of(tmp_path / name, tmp_path / "out")
    check(record, storage, ROWS)
    assert ROWS / 10 < record.rejected < ROWS * 9 / 10


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from([*SETTINGS, "label"]) | st.text(max_size=4), ANYTHING, max_size=5),
        min_size=1,
        max_size=8,
    )
)
def test_any_json_is_a_song_or_a_named_reject(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("any")
    first = {"id": "first", "prompt": "p"}
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [first, *rows]))
    record, storage = plan_of(folder / "m.jsonl", folder / "out")
    check(record, storage, 1 + len(rows))


def test_dates_far_away_and_text_that_is_none_cost_one_row_each(tmp_path: Path) -> None:
    count = 5
    texts = pa.array([b"good", b"\xff", b"good", b"good", b"good"]).view(pa.string())
    times = pa.array([0, 0, 10**18, 0, 0]).cast(pa.timestamp("us"))
    inner = pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), texts.take(pa.array([0, 0, 0, 1, 0])))
    ids = pa.array([f"s{number}" for number in range(count)])
    pq.write_table(pa.table({"id": ids, "prompt": texts, "when": times, "labels": inner}), tmp_path / "m.parquet")
    record, storage = plan_of(tmp_path / "m.parquet", tmp_path / "out")
    check(record, storage, count)
    rejects = read_rejects(storage).to_pylist()
    assert [row["row"] for row in rejects] == [2, 3, 4], rejects
    for row, name in zip(rejects, ("prompt", "when", "labels"), strict=True):
        assert f"the column '{name}' cannot be read" in row["message"]
    (bucket,) = range(record.num_buckets)
    when = storage.read_table(layout.plan_key(bucket, record.plan)).column("when").to_pylist()
    assert when == [datetime.datetime(1970, 1, 1)] * 2
