"""Latents kept from songs of the catalog: sources that repaint, extend and edit begin with, without a loss."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa

from acestep.errors import InvalidRequestError
from acestep.problems import Problem, nearest
from pipelines.catalog import Catalog
from pipelines.storage import Storage

PREFIX = "song:"
"""A source that begins so names a song of the catalog by its id."""


class KeptLatents:
    """Finds the latents of songs by id; the catalog is read at the first question."""

    def __init__(self, storage: Storage):
        self._storage = storage

    def address(self, source: str) -> str:
        """Where the latents of `song:<id>` lie: the newest song of that id.

        Raises:
            InvalidRequestError: when there is no such song, or its latents were not kept.
        """
        id = source.removeprefix(PREFIX)
        if id not in self._paths:
            hint = nearest(id, self._paths)
            raise InvalidRequestError(
                [Problem("source", source, "no such song in this catalog" + (f"; {hint}" if hint else ""))]
            )
        path = self._paths[id]
        if path is None:
            allowed = "the latents of this song were not kept: keep_latents was off when it was made"
            raise InvalidRequestError([Problem("source", source, allowed)])
        return f"{self._storage.url.rstrip('/')}/{path}"

    @cached_property
    def _paths(self) -> dict[str, str | None]:
        catalog = Catalog(self._storage)
        tables = [catalog.songs_of(bucket, ["id", "latents", "created_at"]) for bucket in catalog.buckets()]
        if not tables:
            return {}
        songs = pa.concat_tables(tables).sort_by("created_at")
        return dict(zip(songs.column("id").to_pylist(), songs.column("latents").to_pylist(), strict=True))
