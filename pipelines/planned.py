"""`PlannedSongs`: the songs of some rows, collected column by column, as a table of `schema.PLAN`."""

from __future__ import annotations

import pyarrow as pa

from acestep.frames import num_latent_frames
from pipelines import schema
from pipelines.manifest_files import ManifestBatch
from pipelines.template import OWN, Template, columns_of, to_json


class PlannedSongs:
    """Songs with their templates, in the order in which they are added.

    Attributes:
        templates: what songs share; a song names one by its place.
    """

    def __init__(self) -> None:
        self.templates: list[Template] = []
        self._positions: list[int] = []
        self._template: list[int] = []
        self._fingerprint: list[str] = []
        self._parent: list[str | None] = []
        self._id: list[str] = []
        self._prompt: list[str] = []
        self._lyrics: list[str] = []
        self._duration: list[float] = []
        self._seed: list[int] = []

    def add(
        self,
        position: int,
        template: int,
        parent: str | None,
        id: str,
        prompt: str,
        lyrics: str,
        duration: float,
        seed: int,
    ) -> None:
        """Add a song of the row at `position` of the batch."""
        texts = (to_json(duration), to_json(lyrics), to_json(prompt), to_json(seed))
        self._positions.append(position)
        self._template.append(template)
        self._fingerprint.append(self.templates[template].fingerprint(*texts))
        self._parent.append(parent)
        self._id.append(id)
        self._prompt.append(prompt)
        self._lyrics.append(lyrics)
        self._duration.append(duration)
        self._seed.append(seed)

    def table(self, batch: ManifestBatch, settings: tuple[str, ...]) -> pa.Table:
        """All songs; the columns of the batch that are no `settings` go behind those of the plan."""
        shared = columns_of(self.templates, self._template)
        adapters = pa.array([template.adapter for template in self.templates], pa.string())
        own = {
            "file": [batch.file] * len(self._id),
            "row": [batch.rows[position] for position in self._positions],
            "num_frames": [num_latent_frames(duration) for duration in self._duration],
            "adapter_fingerprint": adapters.take(pa.array(self._template, pa.int64())),
            **{name: getattr(self, f"_{name}") for name in ("fingerprint", "parent", *OWN)},
        }
        table = pa.table(
            [
                pa.array(own[field.name], field.type) if field.name in own else shared.column(field.name)
                for field in schema.PLAN
            ],
            schema=schema.PLAN,
        )
        positions = pa.array(self._positions, pa.int64())
        for name in batch.table.column_names:
            if name not in settings:
                column = batch.table.column(name).take(positions)
                if pa.types.is_dictionary(column.type):
                    column = column.cast(column.type.value_type)
                table = table.append_column(schema.carried_name(name), column)
        return table
