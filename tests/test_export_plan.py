"""What decides an export before audio is read: which songs, in which order, cut how; and what is said of them."""

from __future__ import annotations

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.export import command
from pipelines import schema
from pipelines.catalog import Catalog
from pipelines.errors import UnusableInputError
from pipelines.export import planning
from pipelines.export.facts import MOST_VALUES, OTHERS, Facts
from pipelines.export.json_rows import json_line
from pipelines.export.options import ExportOptions, parse_bytes, parse_renditions
from pipelines.export.ordered import in_order
from pipelines.export.progress import ExportProgress
from pipelines.export.selection import Selection
from pipelines.storage import Storage
from tests.conftest import ROOT
from tests.made_catalog import START, make_catalog

IDS = [f"s{number:02d}" for number in range(30)]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    storage = Storage(str(tmp_path_factory.mktemp("catalog")))
    make_catalog(storage, IDS, seconds=0.1)
    return Catalog(storage)


def test_any_run_of_the_selection_is_its_rows(catalog: Catalog) -> None:
    with Selection(catalog) as selection:
        assert len(selection) == len(IDS)
        assert len(selection.counts) == 3
        whole = [id for table in selection.tables() for id in table.column("id").to_pylist()]
        assert sorted(whole) == IDS
        for first, count in ((0, 30), (0, 1), (29, 1), (3, 20), (9, 12)):
            assert selection.rows(first, count).column("id").to_pylist() == whole[first : first + count]


def test_a_selection_of_ids_says_which_are_missing(catalog: Catalog) -> None:
    with Selection(catalog, {"s01", "s29", "nobody"}) as selection:
        assert sorted(id for table in selection.tables() for id in table.column("id").to_pylist()) == ["s01", "s29"]
        assert selection.missing == {"nobody"}


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 100), st.integers(1, 10))
def test_shards_hold_every_song_once_and_no_more_than_they_may(sizes: list[int], limit: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MOST_SONGS", most)
        shards = list(planning._cut(sizes, limit))
    songs = [position for shard in shards for position in range(shard.first, shard.first + shard.songs)]
    assert songs == list(range(len(sizes)))
    assert [shard.index for shard in shards] == list(range(len(shards)))
    for shard in shards:
        assert shard.bytes == sum(sizes[shard.first : shard.first + shard.songs])
        assert 1 <= shard.songs <= most
        assert shard.bytes <= limit or shard.songs == 1
    for shard, after in itertools.pairwise(shards):
        assert shard.songs == most or shard.bytes + sizes[after.first] > limit, "no room was left"


def test_a_plan_is_named_after_all_that_decides_its_bytes(catalog: Catalog) -> None:
    def name(**changes: Any) -> str:
        with Selection(catalog, changes.pop("only", None)) as selection:
            return planning.make_plan(selection, ExportOptions(**{"kind": "parquet", **changes})).rows

    assert name() == name()
    for changes in ({"only": {"s01"}}, {"columns": ("prompt",)}, {"shard_bytes": 20_000}):
        assert name(**changes) != name(), changes


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["en", "de", None])), min_size=1), st.integers(0, 20))
def test_facts_of_parts_add_up_to_those_of_the_whole(songs: list[tuple[int, str | None]], at: int) -> None:
    rows = [
        {"id": "x", "duration": float(n), "language": language, "num_inference_steps": n, "created_at": START}
        for n, language in songs
    ]
    whole, parts = Facts(), Facts()
    whole.add(schema.table_of(rows, schema.SONG))
    for part in (rows[:at], rows[at:]):
        facts = Facts()
        facts.add(schema.table_of(part, schema.SONG))
        parts.add_facts(Facts(**json.loads(json.dumps(facts.plain()))))
    assert parts == whole
    assert whole.songs == len(songs)
    assert whole.ranges["num_inference_steps"] == [min(n for n, _ in songs), max(n for n, _ in songs)]


def test_of_many_values_the_most_frequent_are_told() -> None:
    rows = [{"id": "x", "lora": f"l{number % 80}", "duration": 1.0, "created_at": START} for number in range(100)]
    facts = Facts()
    facts.add(schema.table_of(rows, schema.SONG))
    assert len(facts.values["lora"]) == MOST_VALUES + 1
    assert sum(facts.values["lora"].values()) == 100
    assert facts.values["lora"]["l0"] == 2
    assert facts.values["lora"][OTHERS] == 30


def test_results_come_in_order_and_within_bounds() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(in_order(pool, work, range(50), most=5)) == list(range(50))
        assert most <= 5
        most = 0
        assert list(in_order(pool, work, range(50), most=50, cost=lambda _: 10, budget=30)) == list(range(50))
        assert most <= 3
        assert list(in_order(pool, work, range(3), most=5, cost=lambda _: 100, budget=30)) == [0, 1, 2]


def test_what_is_ahead_is_dropped_after_an_error() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise ValueError("no")
        time.sleep(0.02)
        return number

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, work, range(100), most=20)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="no"):
            next(results)
    assert len(begun) < 10


def test_json_is_for_strict_parsers() -> None:
    row = {
        "text": "é\n\u2028",
        "numbers": [1.5, float("nan"), float("inf"), 2**64 - 1],
        "when": datetime(2026, 1, 2, 3, tzinfo=timezone.utc),
        "day": date(2026, 1, 2),
        "bytes": b"\x00\xff",
        "more": {"a": None, "b": True},
    }
    line = json_line(row)
    assert b"\n" not in line
    read = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert read["text"] == row["text"]
    assert read["numbers"] == [1.5, None, None, 2**64 - 1]
    assert (read["when"], read["day"], read["bytes"]) == ("2026-01-02T03:00:00+00:00", "2026-01-02", "AP8=")
    assert read["more"] == {"a": None, "b": True}


def test_sizes_and_renditions_are_read_as_people_write_them() -> None:
    assert [parse_bytes(text) for text in ("500MB", "1.5 GB", "2gib", "10")] == [500 * 10**6, 15 * 10**8, 2**31, 10]
    for text in ("", "MB", "-5", "5 TB", "0"):
        with pytest.raises(UnusableInputError, match="shard-bytes"):
            parse_bytes(text)
    names = [each.name for each in parse_renditions(["mp3", "mp3:bitrate_kbps=128", "ogg:quality=0.5", "wav"])]
    assert names == ["mp3_320", "mp3_128", "ogg", "wav"]
    assert parse_renditions(["flac:bit_depth=24"])[0].format.bit_depth == 24


def test_progress_says_how_far_and_how_long(tmp_path: Path) -> None:
    progress = ExportProgress(10, 2)
    assert "0 of 10 songs, 0 of 2 shards" in progress.line()
    assert "time left unknown" in progress.line()
    progress.shard_done(5)
    assert "5 of 10 songs, 1 of 2 shards" in progress.line()
    assert progress.line().endswith("s left")


def test_the_page_names_every_option() -> None:
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    options = [name for option in command.params for name in option.opts if name.startswith("--")]
    assert len(options) > 15
    assert [name for name in options if name not in page and name != "--verbose"] == []
