"""`export_catalog`: a catalog in, a data set out; run again, it goes on where it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from acestep.loudness import Loudness
from pipelines.catalog import Catalog
from pipelines.errors import OutputError, UnusableInputError
from pipelines.export.card import About, write_card
from pipelines.export.decoding import Decoder
from pipelines.export.formats import Format, format_of
from pipelines.export.making import make_shards
from pipelines.export.options import ExportOptions
from pipelines.export.planning import FORMAT, ExportPlan, make_plan
from pipelines.export.record import CARD, ExportRecord, SplitRecord
from pipelines.export.rendering import Renderer
from pipelines.export.resuming import open_record
from pipelines.export.selection import Selection
from pipelines.listing import objects_below
from pipelines.plan import PlanRecord
from pipelines.quantities import duration_text
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What an export may use.

    Attributes:
        workers: processes that encode; None: one for each core.
        checkpoint: with the codec that latents are decoded with; None: the one that the catalog names.
        checkpoint_options: of fsspec, for a checkpoint at a URL.
        device: where latents are decoded.
    """

    workers: int | None = None
    checkpoint: str | None = None
    checkpoint_options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export did."""

    url: str
    songs: int
    seconds: float
    """Of audio."""
    bytes: int
    shards: int
    made: int
    """Shards that were made now."""
    took: float

    def text(self) -> str:
        """For a person, two lines."""
        already = "" if self.made == self.shards else f", {self.shards - self.made:,} of them there already"
        return (
            f"{self.songs:,} songs, {duration_text(self.seconds)} of audio, {self.bytes / 1e6:,.1f} MB in "
            f"{self.shards:,} shard{'s' if self.shards != 1 else ''}{already}, in {self.url}\n"
            f"time {duration_text(self.took)}; how to load it: {self.url}/{CARD}"
        )


def export_catalog(
    source: Storage,
    destination: Storage,
    options: ExportOptions,
    *,
    only: Set[str] | None = None,
    about: About | None = None,
    resources: Resources | None = None,
    overwrite: bool = False,
) -> ExportSummary:
    """Make of a destination the data set that `options` describe, as far as it is not there yet.

    The same songs and options give the same bytes, whether the export was ended and started again or not.

    Args:
        only: ids; None: every song.
        overwrite: replace what another export left of this split.

    Raises:
        UnusableInputError: for a catalog without songs, options that do not fit it, a damaged song.
        OutputError: for a destination that holds something else, or cannot be written.
        StorageError: when storage kept failing; the same call goes on from there.
    """
    started = time.perf_counter()
    resources = resources or Resources()
    if source.url == destination.url:
        raise OutputError(f"destination {destination.url}: it is the catalog itself; give another folder")
    destination.probe()
    with Selection(Catalog(source), only) as selection:
        _tell(selection, source, only)
        plan, described = make_plan(selection, options), PlanRecord.read(source)
        renderer = Renderer(source, options, _loudness(described), _decoder(plan, described, resources))
        format = format_of(options, plan.file_rate(options), source, destination)
        split = _split(plan, options, format, described, renderer)
        record = open_record(destination, options.kind, options.split, split, overwrite=overwrite)
        keys = format.keys(options.split, len(plan.shards))
        todo = [(shard, key) for shard, key in zip(plan.shards, keys, strict=True) if key not in split.shards]
        logger.info("%d songs in %d shards, of which %d are to be made", plan.songs, len(keys), len(todo))
        if todo:
            record.write(destination)
            make_shards(todo, selection, format, renderer, record, split, destination, workers=resources.workers)
    split.finished, split.shards = True, {key: split.shards[key] for key in keys}
    there = objects_below(destination, "")
    split.bytes = sum(size for key, size in there if format.owns(key, options.split))
    finished = {name: each for name, each in sorted(record.splits.items()) if each.finished}
    card = write_card(ExportRecord(record.kind, finished), format, destination.url, about or About())
    destination.put(CARD, card.encode())
    record.write(destination)
    took = time.perf_counter() - started
    return ExportSummary(destination.url, plan.songs, plan.facts.seconds, split.bytes, len(keys), len(todo), took)


def _tell(selection: Selection, source: Storage, only: Set[str] | None) -> None:
    if not len(selection):
        which = "of these ids " if only is not None else ""
        raise UnusableInputError(f"catalog {source.url}: there are no songs {which}in it")
    if selection.older:
        logger.info("%d older songs of the same ids are left out", selection.older)
    if selection.missing:
        missing = sorted(selection.missing)
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        logger.warning("%d of %d ids are not in the catalog: %s", len(missing), len(only or ()), shown)


def _loudness(described: PlanRecord | None) -> Loudness:
    values = (described.config.get("loudness") if described else None) or {}
    return Loudness(**values)


def _decoder(plan: ExportPlan, described: PlanRecord | None, resources: Resources) -> Decoder | None:
    if not plan.models:
        return None
    model = (described.config.get("model") if described else None) or {}
    checkpoint = resources.checkpoint or model.get("checkpoint")
    if checkpoint is None:
        raise UnusableInputError(
            "checkpoint: the catalog does not say which one made its songs; give --checkpoint, "
            "or --no-latents to use lossless files"
        )
    return Decoder.open(
        checkpoint,
        plan.models,
        device=resources.device,
        lyric_vocab=model.get("lyric_vocab"),
        storage_options=resources.checkpoint_options or None,
    )


def _split(
    plan: ExportPlan, options: ExportOptions, format: Format, described: PlanRecord | None, renderer: Renderer
) -> SplitRecord:
    """What is to be done, as it will stand in the record."""
    decides: dict[str, Any] = {"layout": FORMAT, **options.described()}
    if plan.models:
        decides["loudness_of_latents"] = renderer.loudness.model_dump()
    if not format.needs_audio:
        decides["catalog"] = renderer.storage.url
    quality = (described.config.get("quality") if described else None) or {}
    audio = plan.extensions(options)
    return SplitRecord(
        rows=plan.rows,
        options=decides,
        num_shards=len(plan.shards),
        facts=plan.facts.plain(),
        features=format.features(plan.columns, audio),
        audio=audio,
        gate=quality.get("limits") if quality.get("enabled") else None,
    )
