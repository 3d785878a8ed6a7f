"""`plan_rows`: rows of a manifest, judged: complete requests, rejects with every reason, warnings.

Most rows of a manifest have settings that an earlier row had, and differ in texts, length and seed. Settings are
validated once, as the row that has them first is; a later row is checked for what it has of its own. Whatever is not
plain (an id that is a date, a length that is text, a source) goes the long way, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from acestep.problems import Problem
from acestep.request import MAX_SEED, GenerationRequest, derived_seed
from pipelines import outside, schema
from pipelines.manifest_files import ManifestBatch
from pipelines.planned import PlannedSongs
from pipelines.preflight import Means, Preflight, Song
from pipelines.rejects import REJECT, SETTINGS, WARNING, Finding, Tally, reject, warning
from pipelines.resolution import Resolution, Variant, resolve
from pipelines.template import OWN, Template
from pipelines.variants import MAX_ID, NUM_SONGS, child_id, child_seed

SIMPLE_TASK = "text2music"
"""Its settings follow from nothing that a song has of its own."""

_KNOWN = (*schema.REQUEST.names, NUM_SONGS)


def _limit(name: str, kind: str) -> Any:
    return next(limit for item in GenerationRequest.model_fields[name].metadata if (limit := getattr(item, kind, None)))


_LONGEST_PROMPT, _LONGEST_LYRICS = _limit("prompt", "max_length"), _limit("lyrics", "max_length")
_SHORTEST, _LONGEST = _limit("duration", "ge"), _limit("duration", "le")
_EXACT = 2**53
"""Whole floats up to here are the integers that they look like."""


@dataclass(slots=True)
class Judged:
    """What became of some rows.

    Attributes:
        planned: `schema.PLAN` and the manifest's own columns.
        rejects: `REJECT`.
        warnings: `WARNING`.
        adapters: fingerprints of the adapters that rows name; an empty one could not be read.
    """

    planned: pa.Table
    rejects: pa.Table
    warnings: pa.Table
    tally: Tally
    adapters: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Shared:
    """A variant of all rows with the same settings."""

    suffix: str
    template: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class _Settings:
    count: int
    variants: tuple[_Shared, ...]


def plan_rows(batch: ManifestBatch, resolution: Resolution, songs: Mapping[str, str | Problem] | None = None) -> Judged:
    """Judge rows, each for itself.

    Args:
        songs: where the latents of sources such as `song:<id>` lie, or why they cannot be had.
    """
    return _Judge(batch, resolution, songs or {}).judged()


class _Judge:
    def __init__(self, batch: ManifestBatch, resolution: Resolution, songs: Mapping[str, str | Problem]):
        self.batch, self.resolution, self.catalog = batch, resolution, songs
        known = [name for name in batch.table.column_names if name in _KNOWN]
        self.columns = {name: batch.table.column(name).to_pylist() for name in known}
        addresses = frozenset(each for each in songs.values() if isinstance(each, str))
        means = Means(resolution.preflight, resolution.prompt_tokenizer, resolution.lyric_vocab, addresses)
        self.preflight = Preflight(means)
        self.songs = PlannedSongs()
        self.rejects: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []
        self.tally = Tally()

    def judged(self) -> Judged:
        for bad in self.batch.unreadable:
            finding = Finding(SETTINGS, "error", Problem("(row)", bad.text, bad.reason))
            self._refuse(bad.row, None, [finding], {"text": bad.text})
        if self.resolution.preflight.source != "off":
            outside.check_sources(self._addresses())
        known: dict[Any, _Settings | None] = {}
        own = [self.columns.get(name) or [None] * len(self.batch.rows) for name in OWN]
        shared = [column for name, column in self.columns.items() if name not in OWN]
        settings: Iterator[tuple] = zip(*shared, strict=True) if shared else iter([()] * len(self.batch.rows))
        for position, (id, prompt, lyrics, duration, seed, key) in enumerate(zip(*own, settings, strict=True)):
            # As text: 1 and 1.0 and true are equal, and so are 0.0 and -0.0, but not as settings.
            what = (repr(key), lyrics is None, duration is None, seed is None)
            found = known.get(what)
            if found is None or not self._plain_row(position, found, id, prompt, lyrics, duration, seed):
                settings_of_row = self._any_row(position)
                if found is None:
                    known[what] = settings_of_row
        used = {template.request.lora: template.adapter for template in self.songs.templates}
        return Judged(
            self.songs.table(self.batch, _KNOWN),
            schema.table_of(self.rejects, REJECT),
            schema.table_of(self.warnings, WARNING),
            self.tally,
            {name: adapter for name, adapter in used.items() if name is not None},
        )

    def _plain_row(
        self, position: int, settings: _Settings, id: Any, prompt: Any, lyrics: Any, duration: Any, seed: Any
    ) -> bool:
        """Take a row whose settings are known; False when it is not plain."""
        if type(id) is int:
            id = str(id)
        if type(seed) is float and seed.is_integer() and abs(seed) < _EXACT:
            seed = int(seed)
        plain = (
            (type(id) is str and 0 < len(id) <= MAX_ID)
            and (type(prompt) is str and len(prompt) <= _LONGEST_PROMPT and prompt.strip())
            and (lyrics is None or (type(lyrics) is str and len(lyrics) <= _LONGEST_LYRICS))
            and (duration is None or (type(duration) in (float, int) and _SHORTEST <= duration <= _LONGEST))
            and (seed is None or (type(seed) is int and 0 <= seed <= MAX_SEED))
        )
        if not plain:
            return False
        findings: list[Finding] = []
        songs = []
        for variant in settings.variants:
            request = variant.request
            sung = request.lyrics if lyrics is None else lyrics
            seconds = request.duration if duration is None else float(duration)
            song_seed = request.seed if seed is None else seed
            findings += self.preflight.findings(Song.of(prompt, sung, seconds, request))
            songs.append((variant, sung, seconds, song_seed))
        if self._accept(position, id, findings, settings):
            for variant, sung, seconds, song_seed in songs:
                self._add(position, variant, settings, id, prompt, sung, seconds, song_seed)
        return True

    def _any_row(self, position: int) -> _Settings | None:
        """Take a row the long way; its settings, where others can share them."""
        values = self._values(position)
        row = resolve(values, self.resolution, self.catalog)
        findings = [Finding(SETTINGS, "error", problem) for problem in row.problems]
        findings += [Finding("source", "error", problem) for problem in row.missing]
        if findings:
            if row.readable is not None:
                wrong = {each.problem.field.split(".")[0] for each in findings}
                findings += self.preflight.findings(_song(row.readable), wrong)
            id = values.get("id") if row.id is None else row.id
            self._refuse(self.batch.rows[position], id, findings, values)
            return None
        assert row.id is not None
        for variant in row.variants:
            findings += self.preflight.findings(_song(variant.request))
        settings = _Settings(row.count, tuple(self._shared(variant) for variant in row.variants))
        if self._accept(position, row.id, findings, settings):
            for variant, shared in zip(row.variants, settings.variants, strict=True):
                request = variant.request
                texts = (row.id, request.prompt, request.lyrics, request.duration, request.seed)
                self._add(position, shared, settings, *texts)
        return settings if all(_is_simple(variant.request) for variant in row.variants) else None

    def _accept(self, position: int, id: str, findings: list[Finding], settings: _Settings) -> bool:
        """Whether a row has no error; all that was found in it is kept."""
        if settings.count > 1 or len(settings.variants) > 1:
            longest = max(len(child_id(id, each.suffix, settings.count, settings.count)) for each in settings.variants)
            if longest > MAX_ID:
                allowed = f"with the variants' ending it has {longest:,} characters; at most {MAX_ID}"
                findings.append(Finding(SETTINGS, "error", Problem("id", id, allowed)))
        if not findings:
            return True
        row = self.batch.rows[position]
        if any(each.severity == "error" for each in findings):
            self._refuse(row, id, findings, self._values(position))
            return False
        self._tell(row, id, findings)
        self.tally.add(self.batch.file, row, id, findings)
        return True

    def _refuse(self, row: int, id: Any, findings: list[Finding], values: Mapping[str, Any]) -> None:
        errors = _once(each for each in findings if each.severity == "error")
        self.rejects.append(reject(self.batch.file, row, id, errors, values))
        self._tell(row, id, findings)
        self.tally.add(self.batch.file, row, id, findings)

    def _tell(self, row: int, id: Any, findings: list[Finding]) -> None:
        told = _once(each for each in findings if each.severity == "warning")
        self.warnings += [warning(self.batch.file, row, id, each) for each in told]

    def _add(
        self,
        position: int,
        variant: _Shared,
        settings: _Settings,
        id: str,
        prompt: str,
        lyrics: str,
        duration: float,
        seed: int | None,
    ) -> None:
        """Add the songs of one variant of a row."""
        several = settings.count > 1 or len(settings.variants) > 1
        first_seed = derived_seed(self.resolution.seed, id) if seed is None else seed
        simple = _is_simple(variant.request)
        for number in range(1, settings.count + 1):
            song_seed = child_seed(first_seed, number)
            template = variant.template
            if not simple:  # What follows from the seed is another setting for each song.
                template = self._template(variant.request.model_copy(update={"seed": song_seed}).resolved())
            song_id = child_id(id, variant.suffix, number, settings.count) if several else id
            self.songs.add(position, template, id if several else None, song_id, prompt, lyrics, duration, song_seed)

    def _shared(self, variant: Variant) -> _Shared:
        # A template that is simple is resolved by any seed.
        template = self._template(variant.request) if _is_simple(variant.request) else -1
        return _Shared(variant.suffix, template, variant.request)

    def _template(self, request: GenerationRequest) -> int:
        adapter = outside.adapter(request.lora)[0] if request.lora is not None else ""
        resolution = self.resolution
        self.songs.templates.append(Template(request, resolution.model_fingerprint, resolution.rendition, adapter))
        return len(self.songs.templates) - 1

    def _values(self, position: int) -> dict[str, Any]:
        return {name: column[position] for name, column in self.columns.items()}

    def _addresses(self) -> Iterator[str]:
        needed = (self.resolution.defaults.get("source"), *self.resolution.sweep.get("source", ()))
        for each in (*needed, *self.columns.get("source", ())):
            if isinstance(each, str) and each not in self.catalog:
                yield each


def _song(request: GenerationRequest) -> Song:
    return Song.of(request.prompt, request.lyrics, request.duration, request)


def _is_simple(request: GenerationRequest) -> bool:
    return request.task == SIMPLE_TASK and request.source is None


def _once(findings: Iterator[Finding]) -> list[Finding]:
    """Variants of a row may have the same to say."""
    return list({(each.rule, str(each.problem)): each for each in findings}.values())
