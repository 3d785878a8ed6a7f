"""`Selection`: the songs that are delivered, in an order that depends on nothing but them."""

from __future__ import annotations

from collections.abc import Iterator, Set
from functools import lru_cache
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schema
from pipelines.catalog import Catalog
from pipelines.spill import Spill


class Selection:
    """The newest song of each id, ordered by bucket and id; held on local disk, so that memory stays flat.

    Buckets are a hash of the id, so neighbours have nothing to do with each other: the data set is shuffled already.

    Args:
        only: ids; None: all.

    Attributes:
        counts: songs in each bucket that has any.
        older: songs left out because a newer one has their id.
        missing: ids of `only` that the catalog does not have.
    """

    def __init__(self, catalog: Catalog, only: Set[str] | None = None):
        self.counts: dict[int, int] = {}
        self.older = 0
        self.missing: set[str] = set(only or ())
        self._spill = Spill()
        self._bucket = lru_cache(maxsize=2)(lambda bucket: self._spill.table(bucket, schema.SONG))
        wanted = pa.array(sorted(only), pa.string()) if only is not None else None
        for bucket in catalog.buckets():
            songs = catalog.songs_of(bucket)
            if wanted is not None:
                songs = songs.filter(pc.is_in(songs.column("id"), value_set=wanted))
            newest = _newest_of_each_id(songs)
            self.older += songs.num_rows - newest.num_rows
            if newest.num_rows:
                self._spill.add(bucket, newest)
                self.counts[bucket] = newest.num_rows
                self.missing.difference_update(newest.column("id").to_pylist())

    def __enter__(self) -> Selection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spill.__exit__(kind, error, trace)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def tables(self) -> Iterator[pa.Table]:
        """All songs, bucket by bucket, all with the same columns."""
        for bucket in self.counts:
            yield self._bucket(bucket)

    def rows(self, first: int, count: int) -> pa.Table:
        """`count` songs from position `first`."""
        parts, start = [], 0
        for bucket, size in self.counts.items():
            low, high = max(first - start, 0), min(first + count - start, size)
            if low < high:
                parts.append(self._bucket(bucket).slice(low, high - low))
            start += size
        return pa.concat_tables(parts).combine_chunks()


def _newest_of_each_id(songs: pa.Table) -> pa.Table:
    columns = (songs.column(name).to_pylist() for name in ("created_at", "fingerprint", "id"))
    by_age = sorted(zip(*columns, range(songs.num_rows), strict=True))
    newest = {id: position for _, _, id, position in by_age}
    return songs.take(pa.array([newest[id] for id in sorted(newest)], pa.int64()))
