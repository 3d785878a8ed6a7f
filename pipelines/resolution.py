"""`Resolution`: what turns the values of a manifest's row into complete requests.

A row depends on nothing but itself and the resolution, so that rows can be judged anywhere and in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal, get_args, get_origin

from acestep.errors import InvalidRequestError
from acestep.problems import Problem
from acestep.request import GenerationRequest
from pipelines.kept import PREFIX, KeptLatents
from pipelines.sections import PreflightSection
from pipelines.variants import MAX_SONGS, NUM_SONGS, Combination, combinations, number_of_songs

_NUMBERED = {
    name
    for name, info in GenerationRequest.model_fields.items()
    if get_origin(info.annotation) is Literal and isinstance(get_args(info.annotation)[0], int)
}

_LOOKED_AT = ("prompt", "lyrics", "language", "normalize_tags", "duration", "lora", "task", "source")
"""What the rules of `pipelines.preflight` look at."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What turns a row into complete requests, names their sound, and says which rows are refused.

    Attributes:
        defaults: settings that a row may leave open.
        seed: rows without one get theirs from this and their id.
        kept: where sources such as `song:<id>` are looked up; None: there are none.
        num_songs: songs of each row, unless it says so itself.
        sweep: settings with lists of values, as `pipelines.variants` explains.
        preflight: which rules refuse a row, and which only warn.
        prompt_tokenizer: path of the checkpoint's `text_encoder/tokenizer.json`.
        lyric_vocab: path of its lyric vocabulary; without these two, lengths are estimated.
    """

    defaults: Mapping[str, Any]
    seed: int
    model_fingerprint: str
    rendition: str
    kept: KeptLatents | None = None
    num_songs: int = 1
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    preflight: PreflightSection = field(default_factory=PreflightSection)
    prompt_tokenizer: str | None = None
    lyric_vocab: str | None = None

    def identity(self) -> dict[str, Any]:
        """What plans are told apart by."""
        return {
            "defaults": dict(self.defaults),
            "seed": self.seed,
            "model": self.model_fingerprint,
            "rendition": self.rendition,
            "num_songs": self.num_songs,
            "sweep": [[name, list(values)] for name, values in self.sweep.items()],
            "preflight": self.preflight.model_dump(),
            "tokenizers": [self.prompt_tokenizer is not None, self.lyric_vocab is not None],
        }

    def most_songs_of_a_row(self) -> int:
        """Songs that a row without a `num_songs` of its own can have."""
        return len(combinations(self.sweep, ())) * self.num_songs


@dataclass(frozen=True, slots=True)
class Variant:
    """A row with one combination of swept settings.

    Attributes:
        request: complete but for what follows from the seed, which may be open; its id is the row's.
    """

    suffix: str
    request: GenerationRequest


@dataclass(slots=True)
class Resolved:
    """What a row means.

    Attributes:
        id: as text; None when it has none that can be used.
        count: songs of each variant.
        problems: of its settings.
        missing: sources that are no songs of the catalog.
        readable: with problems: the row without the values that are wrong, for rules that look at the others.
    """

    id: str | None
    count: int = 1
    variants: list[Variant] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    readable: GenerationRequest | None = None


def resolve(values: Mapping[str, Any], resolution: Resolution, songs: Mapping[str, str | Problem]) -> Resolved:
    """A row's values as requests, with every problem.

    Args:
        songs: where the latents of sources such as `song:<id>` lie, or why they cannot be had.
    """
    given = {name: _number(name, value) for name, value in values.items() if value is not None}
    row = Resolved(id=None)
    row.id = _id_text(given.pop("id", None), row.problems)
    try:
        row.count = number_of_songs(given.pop(NUM_SONGS, None), resolution.num_songs)
    except InvalidRequestError as error:
        row.problems += error.problems
    chosen = combinations(resolution.sweep, given)
    for combination in chosen:
        merged = {**resolution.defaults, **combination.values, **given, "id": row.id}
        _add_variant(row, combination, merged, songs)
    if len(chosen) * row.count > MAX_SONGS:
        songs_of_row = f"{len(chosen) * row.count:,} songs"
        row.problems.append(Problem(NUM_SONGS, songs_of_row, f"a row can have at most {MAX_SONGS:,}"))
    if row.problems or row.missing:
        row.readable = _readable({**resolution.defaults, **given}, [*row.problems, *row.missing])
    return row


def _add_variant(
    row: Resolved, combination: Combination, merged: dict[str, Any], songs: Mapping[str, str | Problem]
) -> None:
    address = songs.get(merged["source"]) if isinstance(merged.get("source"), str) else None
    if isinstance(address, Problem):
        row.missing += [address] if address not in row.missing else []
    elif address is not None:
        merged["source"] = address
    try:
        row.variants.append(Variant(combination.suffix, GenerationRequest.parse(merged)))
    except InvalidRequestError as error:
        row.problems += [each for each in error.problems if each not in row.problems]


def song_sources(values: Sequence[Any], resolution: Resolution) -> list[str]:
    """Those of `values`, and of the config's sources, that name songs of the catalog."""
    named = [*values, resolution.defaults.get("source"), *resolution.sweep.get("source", ())]
    return list(dict.fromkeys(each for each in named if isinstance(each, str) and each.startswith(PREFIX)))


def _readable(merged: Mapping[str, Any], problems: Sequence[Problem]) -> GenerationRequest | None:
    wrong = {problem.field.split(".")[0] for problem in problems}
    usable = {name: value for name, value in merged.items() if name in _LOOKED_AT and name not in wrong}
    for left_out in ((), ("task", "source")):  # These two may not go together.
        try:
            return GenerationRequest.parse(
                {"prompt": "any", **{name: value for name, value in usable.items() if name not in left_out}}
            )
        except InvalidRequestError:
            continue
    return None


def _id_text(value: Any, problems: list[Problem]) -> str | None:
    """An id of any scalar type as text; whole floats as integers, for a column with a gap turns into floats."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (datetime, date)):
        value = value.isoformat()
    if value is None or value == "" or isinstance(value, (list, dict)) or value != value:
        problems.append(Problem("id", value, "it is required: text or a number, different in every row"))
        return None
    return str(value)


def _number(name: str, value: Any) -> Any:
    """What CSV has as text and a column with a gap as a float, for fields where only certain integers are allowed."""
    if name in _NUMBERED and isinstance(value, (str, float)):
        try:
            return int(value) if float(value).is_integer() else value
        except ValueError:
            return value
    return value
