"""`Manifest`: every kind of file in every kind of place, and every way in which one can be unusable."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import ManifestError
from pipelines.manifest import Manifest
from pipelines.manifest_files import ManifestBatch, UnreadableRow
from tests.conftest import S3

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "rock", "lyrics": '[verse]\nla \U0001f3b5, "la"', "duration": 10.5, "label": "x"},
    {"id": "b", "prompt": "pop", "lyrics": None, "duration": None, "label": "y"},
    {"id": "c", "prompt": "jazz", "lyrics": "", "duration": 3.0, "label": None},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if ".jsonl" in path.name:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    else:
        quoted = [
            ['"' + str("" if cell is None else cell).replace('"', '""') + '"' for cell in row.values()] for row in rows
        ]
        separator = "\t" if ".tsv" in path.name else ","
        data = "\n".join(separator.join(cells) for cells in [list(rows[0]), *quoted]).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows_of(manifest: Manifest, size: int = 4096) -> list[dict[str, Any]]:
    return [row for batch in manifest.batches(size) for row in batch.table.to_pylist()]


@pytest.mark.parametrize("name", ["m.parquet", "m.jsonl", "m.csv", "m.tsv", "m.jsonl.gz", "m.csv.gz", "M.PARQUET"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name.lower(), ROWS)
    manifest = Manifest(str(path.rename(tmp_path / name)))
    assert manifest.columns == ["id", "prompt", "lyrics", "duration", "label"]
    rows = rows_of(manifest, 2)
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["lyrics"] == ROWS[0]["lyrics"]
    assert [float(row["duration"] or 0) for row in rows] == [10.5, 0, 3.0]
    assert rows[2]["label"] is None
    assert manifest.max_rows() >= 3


def test_batches_are_a_stream_with_row_numbers(tmp_path: Path) -> None:
    batches = list(Manifest(str(write(tmp_path / "m.parquet", ROWS * 10))).batches(7))
    assert [len(batch.rows) for batch in batches] == [7, 7, 7, 7, 2]
    assert [row for batch in batches for row in batch.rows] == list(range(1, 31))


def test_a_folder_and_a_glob_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.parquet", "sub/c.jsonl", "a.csv", "_skipped.parquet", ".hidden/d.parquet", "notes.txt"):
        write(tmp_path / "in" / name, [{"id": name, "prompt": "p"}])
    folder = Manifest(str(tmp_path / "in"))
    assert folder.file_names == ["a.csv", "b.parquet", "sub/c.jsonl"]
    assert [row["id"] for row in rows_of(folder)] == folder.file_names
    assert Manifest(str(tmp_path / "in" / "*.parquet")).file_names == ["_skipped.parquet", "b.parquet"]


def test_a_store_is_as_good_as_a_folder(moto: S3) -> None:
    import fsspec

    filesystem = fsspec.filesystem("s3", **moto.options)
    prefix = f"{moto.bucket}/{uuid.uuid4().hex}"
    filesystem.pipe_file(f"{prefix}/a.jsonl", b'{"id": 1, "prompt": "p"}\n')
    filesystem.pipe_file(f"{prefix}/b.csv", b"id,prompt\n2,p\n")
    for url in (f"s3://{prefix}", f"s3://{prefix}/*"):
        assert [str(row["id"]) for row in rows_of(Manifest(url, moto.options))] == ["1", "2"]
    before = Manifest(f"s3://{prefix}", moto.options).identity()
    filesystem.pipe_file(f"{prefix}/b.csv", b"id,prompt\n3,p\n")
    assert Manifest(f"s3://{prefix}", moto.options).identity() != before
    with pytest.raises(ManifestError, match="there is no such file or folder"):
        Manifest(f"s3://{prefix}/nothing.csv", moto.options)


def test_parquet_of_many_row_groups_is_read_from_a_store(moto: S3, tmp_path: Path) -> None:
    import fsspec

    filesystem = fsspec.filesystem("s3", **moto.options)
    rows = [{"id": str(number), "prompt": f"{number} " * 400, "label": number} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet", row_group_size=700, compression="none")
    key = f"{moto.bucket}/{uuid.uuid4().hex}.parquet"
    filesystem.put_file(str(tmp_path / "m.parquet"), key)
    manifest = Manifest(f"s3://{key}", moto.options)
    assert rows_of(manifest) == rows
    (only,) = {tuple(batch.table.column_names) for batch in manifest.batches(columns=["label"])}
    assert only == ("label",)


@pytest.mark.parametrize("name", ["m.parquet", "m.jsonl", "m.csv"])
def test_a_batch_ends_early_where_rows_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = [{"id": str(number), "prompt": f"{number}" * 500} for number in range(100, 200)]
    manifest = Manifest(str(write(tmp_path / name, rows)))
    monkeypatch.setattr("pipelines.manifest_files.BATCH_BYTES", 15_000)
    batches = list(manifest.batches())
    assert 8 <= len(batches) <= 13
    assert [row for batch in batches for row in batch.table.to_pylist()] == rows
    assert [row for batch in batches for row in batch.rows] == list(range(1, 101))


def test_a_batch_is_cut_where_it_is_told(tmp_path: Path) -> None:
    batch = ManifestBatch("m", [1, 3, 4], pa.table({"id": ["a", "b", "c"]}), [UnreadableRow(2, "x", "no")])
    first, second = batch.parts([0, 2])
    assert (first.rows, first.unreadable, second.rows, second.unreadable) == ([1, 3], batch.unreadable, [4], [])
    assert second.table.column("id").to_pylist() == ["c"]
    (whole,) = batch.parts([0])
    assert whole == batch


def test_junk_in_depth_and_in_breadth(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = [json.dumps({"id": depth, "prompt": "p", "x": nested(depth)}) for depth in (2, 20, 200)]
    lines.append('{"id": ' + "[" * 100_000 + "]" * 100_000 + "}")
    path.write_text("\n".join(lines))
    (batch,) = Manifest(str(path)).batches()
    assert batch.table.column("x").to_pylist() == ["[[]]", *(json.dumps(nested(depth)) for depth in (20, 200))]
    assert [bad.row for bad in batch.unreadable] == [4]
    path.write_text(json.dumps({"id": 1, "prompt": "p"} | {f"x{number}": 1 for number in range(1000)}))
    with pytest.raises(ManifestError, match=r"rows 1 to 1 have 1,002 different names; at most 1,000 can be columns"):
        read_all(str(path))


def nested(depth: int) -> list[Any]:
    return [] if depth == 1 else [nested(depth - 1)]


def test_identity_follows_the_files(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", ROWS)
    before = Manifest(str(path)).identity()
    assert Manifest(str(path)).identity() == before
    write(path, ROWS[:2])
    assert Manifest(str(path)).identity() != before


def test_columns_of_mixed_types_become_text(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    values: list[Any] = [1, "abc", {"a": [1]}, True, None, {}]
    path.write_text("".join(json.dumps({"id": 2**64 + i, "prompt": "p", "x": v}) + "\n" for i, v in enumerate(values)))
    rows = rows_of(Manifest(str(path)))
    assert [row["x"] for row in rows] == ["1", "abc", '{"a": [1]}', "true", None, "{}"]
    assert rows[0]["id"] == str(2**64)


def test_rows_that_cannot_be_read_do_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = ['{"id": "a", "prompt": "p"}', "{broken", "[1, 2]", "", '"text"', r'{"id": "\ud800", "prompt": "p"}']
    path.write_bytes("\n".join([*lines, '{"id": "z", "prompt": "p"}']).encode() + b'\n{"id": "\xff"}')
    batches = list(Manifest(str(path)).batches())
    assert [row["id"] for batch in batches for row in batch.table.to_pylist()] == ["a", "z"]
    unreadable = [bad for batch in batches for bad in batch.unreadable]
    assert [bad.row for bad in unreadable] == [2, 3, 4, 5, 7]
    assert "not a JSON object" in unreadable[1].reason

    path = tmp_path / "m.csv"
    path.write_text("id,prompt\na,p\nb\nc,p,q\n\nd,p\n")
    (batch,) = Manifest(str(path)).batches()
    assert batch.rows == [1, 4]
    assert [(bad.row, bad.reason) for bad in batch.unreadable] == [
        (2, "it has 1 cells, the header has 2"),
        (3, "it has 3 cells, the header has 2"),
    ]


def read_all(url: str) -> list[ManifestBatch]:
    return list(Manifest(url).batches())


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.parquet", None, "there is no such file or folder"),
        ("*.parquet", None, "no file matches"),
        ("m.parquet", b"", "cannot be read"),
        ("m.parquet", b"PAR1 and then nonsense PAR1", "cannot be read"),
        ("m.csv", b"", "there are no rows in it"),
        ("m.csv", b"id,prompt\n", "there are no rows in it"),
        ("m.jsonl", b"\n\n", "there are no rows in it"),
        ("m.csv", b"id,lyrics\n1,x\n", "has no column 'prompt'; its columns are: id, lyrics"),
        ("m.csv", b"ID,prompt\n1,x\n", "has no column 'id'; its columns are: ID, prompt; did you mean 'ID'?"),
        ("m.csv", b"id,promt\n1,x\n", "did you mean 'promt'?"),
        ("m.csv", b"id;prompt\n1;x\n", "its columns are: id;prompt"),
        ("m.csv", b"id,prompt,id\n1,x,2\n", "has the column 'id' twice"),
        ("m.csv", b'id,prompt\n1,"open\n', "cannot be read: Error: unexpected end of data"),
        ("m.csv", "id,prompt\n1,caf\xe9\n".encode("latin-1"), "is not UTF-8"),
        ("m.csv.gz", gzip.compress(b"id,prompt\n1,x\n", mtime=0)[:-10], "cannot be read"),
        ("m.jsonl", b'[{"id": 1, "prompt": "x"}]', "is a JSON list"),
        ("m.jsonl", b'{"name": 1}\n', "has no column 'id'"),
        ("m.txt", b"id,prompt\n", "the kind of file is unknown; it must end in .parquet"),
    ],
)
def test_an_unusable_manifest_is_a_clear_message(
    tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        read_all(str(tmp_path / name))
    assert expected in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_empty_folder_is_a_clear_message(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="the folder holds no manifest file"):
        Manifest(str(tmp_path))


def test_a_second_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ROWS)
    whole = write(tmp_path / "b.parquet", ROWS * 1000).read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:40] + bytes(400) + whole[440:])
    with pytest.raises(ManifestError, match=r"b\.parquet cannot be read"):
        read_all(str(tmp_path))
