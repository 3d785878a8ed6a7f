"""Verification: every row against its objects, and the plan against the rows."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import layout
from pipelines.catalog import Catalog
from pipelines.census import read_markers, take_census
from pipelines.compaction import rewrite_songs
from pipelines.decoding import fault_of_audio
from pipelines.errors import OutputError
from pipelines.listing import Sizes
from pipelines.plan import PlanRecord
from pipelines.rows import files_by_bucket, joined_keys, without
from pipelines.storage import Storage

_COLUMNS = ["id", "fingerprint", "path", "latents", "bytes", "sha256", "num_samples", "sample_rate", "format"]
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as a row says."""

    id: str
    fingerprint: str
    path: str
    kind: str
    """One of missing, size, sha256, audio, latents, plan, marker."""
    what: str
    bucket: int

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(slots=True)
class VerifyReport:
    """What a verification found."""

    songs: int = 0
    """That have a row; looked at."""
    bytes: int = 0
    duplicates: int = 0
    """Rows beyond the first of each song: harmless, `acestep compact` does away with them."""
    planned: int = 0
    made: int = 0
    failed: int = 0
    """Songs of the plan whose failure stands."""
    missing: int = 0
    """Songs of the plan that the next run will make."""
    faults: list[Fault] = field(default_factory=list)

    @property
    def beyond_plan(self) -> int:
        """Songs that the current plan does not have: another fingerprint, or they left the manifest."""
        return max(0, self.songs - self.made)

    @property
    def kinds(self) -> Counter[str]:
        """How many faults there are of each kind."""
        return Counter(fault.kind for fault in self.faults)

    @property
    def exit_code(self) -> int:
        """0 when all is as the rows say, else 3."""
        return 3 if self.faults else 0


def verify(
    storage: Storage,
    *,
    deep: bool = False,
    checksum: bool = True,
    threads: int = 16,
    on_progress: Callable[[int], object] = lambda _: None,
) -> VerifyReport:
    """Look at every song's objects, and count what the plan has.

    Args:
        deep: decode every song, too.
        checksum: read every song and compare its sha256; else only sizes, from one listing.
        threads: objects read at the same time.
        on_progress: called with how many more songs have been looked at.

    Raises:
        OutputError: where there is no catalog.
        StorageError: when it cannot be read.
    """
    record = PlanRecord.read(storage)
    buckets = list(files_by_bucket(storage, layout.SONGS))
    if record is None and not buckets:
        raise OutputError(f"output {storage.url}: there is no catalog, neither {layout.RUN} nor songs")
    report = VerifyReport()
    if record is not None:
        _against_plan(storage, record, report)
    catalog = Catalog(storage)
    sizes = {"latents": Sizes.below(storage, "latents")}
    if not (checksum or deep):
        sizes["audio"] = Sizes.below(storage, "audio")
    with ThreadPoolExecutor(threads) as pool:
        for bucket in buckets:
            songs = catalog.songs_of(bucket, _COLUMNS)
            report.songs += songs.num_rows
            report.bytes += pc.sum(songs.column("bytes")).as_py() or 0
            report.duplicates += max(0, catalog.done_keys(bucket).num_rows - songs.num_rows)
            look = partial(_faults_of, storage, sizes, deep, checksum, bucket)
            for start in range(0, songs.num_rows, _CHUNK):
                for faults in pool.map(look, songs.slice(start, _CHUNK).to_pylist()):
                    report.faults += faults
                    on_progress(1)
    return report


def withdraw(storage: Storage, faults: Iterable[Fault], run: str, check: Callable[[], None] = lambda: None) -> int:
    """Take the rows of faulty songs out of the catalog, so that the next run makes them again; how many songs.

    Nobody else may write meanwhile.

    Args:
        run: who asks.
        check: called before anything is changed, again and again; raises what is to end the work.
    """
    by_bucket: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for fault in faults:
        by_bucket[fault.bucket].add((fault.id, fault.fingerprint))
    withdrawn = 0
    for bucket, keys in by_bucket.items():
        check()
        # The marker first: whoever finds it believes it.
        storage.delete([layout.finished_key(bucket)])
        keys.discard(("", ""))
        if keys:
            Catalog(storage).retry(bucket, keys, run)  # A failure from before the song was made would stand again.
            table = pa.table({"id": [id for id, _ in keys], "fingerprint": [each for _, each in keys]})
            withdrawn += rewrite_songs(storage, bucket, without(joined_keys(table)))
    return withdrawn


def _against_plan(storage: Storage, record: PlanRecord, report: VerifyReport) -> None:
    """Count what the plan has, and find plan objects that are gone and markers that are wrong."""
    marked = {state.bucket for state in read_markers(storage, record.plan)}
    there = {key for keys in files_by_bucket(storage, layout.PLAN).values() for key in keys}
    keys = {bucket: layout.plan_key(bucket, record.plan) for bucket in range(record.num_buckets)}
    for bucket, key in keys.items():
        if key not in there:
            report.faults.append(Fault("", "", key, "plan", "this part of the plan is gone", bucket))
    counted = [bucket for bucket, key in keys.items() if key in there]
    for state in take_census(storage, record.plan, counted, markers=False):
        report.planned += state.planned
        report.made += state.made
        report.failed += state.failed
        report.missing += state.missing
        if state.missing and state.bucket in marked:
            what = f"it says that nothing is left to do, and {state.missing:,} songs are missing"
            report.faults.append(Fault("", "", layout.finished_key(state.bucket), "marker", what, state.bucket))


def _faults_of(
    storage: Storage, sizes: dict[str, Sizes], deep: bool, checksum: bool, bucket: int, song: dict[str, Any]
) -> list[Fault]:
    fault = partial(Fault, song["id"], song["fingerprint"], bucket=bucket)
    found = [fault(song["path"], *each) for each in _faults_of_sound(storage, sizes, deep, checksum, song)]
    latents = song["latents"]
    if latents and latents not in sizes["latents"] and not storage.exists(latents):
        found.append(fault(latents, "latents", "the song's latents are gone"))
    return found


def _faults_of_sound(
    storage: Storage, sizes: dict[str, Sizes], deep: bool, checksum: bool, song: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    if "audio" in sizes and sizes["audio"].get(song["path"]) == song["bytes"]:
        return
    # What is not in the listing may have come after it.
    try:
        data = storage.get(song["path"])
    except FileNotFoundError:
        yield "missing", "there is no such object"
        return
    if len(data) != song["bytes"]:
        yield "size", f"{len(data):,} bytes; its row says {song['bytes']:,}"
    elif checksum and hashlib.sha256(data).hexdigest() != song["sha256"]:
        yield "sha256", "its content is not what was written: another sha256"
    if deep and (problem := fault_of_audio(data, song["num_samples"], song["sample_rate"])):
        yield "audio", problem
