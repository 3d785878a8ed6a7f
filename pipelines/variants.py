"""Variants: one row of the manifest, many songs: with several seeds (`num_songs`), with several settings (`sweep`).

A sweep is over all rows, each with every combination of its values; a value that a row sets itself goes before it, and
the row is not swept over that setting. What a row expands to depends on nothing but the row and the config:

- ids: the row's, then `.name-value` for each swept setting in the order of the config, then `.k` from 1 where there are
  several songs; a row that gives one song keeps its id;
- seeds: song 1 has the row's seed (or the one that is derived from its id), song k one derived from that. All
  combinations share the seed of song k, so that what is heard between them is the setting alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from acestep.errors import InvalidRequestError
from acestep.problems import Problem, nearest, problems_of
from acestep.request import GenerationRequest, derived_seed

NUM_SONGS = "num_songs"
"""The column of the manifest that goes before the config's."""
NOT_SWEPT = ("id", "prompt", "lyrics")
MAX_SONGS = 10_000
"""Songs of one row, at most."""
MAX_ID = 512
"""Characters of an id, as `GenerationRequest` has it."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One value for each swept setting."""

    suffix: str
    """What the ids of its songs have behind the row's."""
    values: dict[str, Any]


def sweep_problems(sweep: Mapping[str, Sequence[Any]], defaults: Mapping[str, Any]) -> list[Problem]:
    """Everything that is wrong with a config's `sweep`, fields named `sweep.<setting>`.

    Args:
        defaults: the config's; a sweep goes before them.
    """
    problems: list[Problem] = []
    for name, values in sweep.items():
        field = f"sweep.{name}"
        if name in NOT_SWEPT:
            problems.append(Problem(field, values, "every row of the manifest has its own"))
        elif name not in GenerationRequest.model_fields:
            hint = nearest(name, GenerationRequest.model_fields) or "every setting of a request can be swept"
            problems.append(Problem(field, values, f"there is no such setting; {hint}"))
        elif not values:
            problems.append(Problem(field, values, "it must have at least one value"))
        else:
            problems += _value_problems(field, name, values)
    if (count := math.prod(len(values) for values in sweep.values())) > MAX_SONGS:
        problems.append(Problem("sweep", f"{count:,} combinations", f"a row can have at most {MAX_SONGS:,} songs"))
    return problems


def combinations(sweep: Mapping[str, Sequence[Any]], own: Collection[str]) -> list[Combination]:
    """Every combination of a valid sweep for a row that sets the settings `own` itself; at least one."""
    swept = [[(name, _parsed(name, value)) for value in values] for name, values in sweep.items() if name not in own]
    return [
        Combination("".join(f".{name}-{value_text(value)}" for name, value in chosen), dict(chosen))
        for chosen in itertools.product(*swept)
    ]


def number_of_songs(value: Any, default: int) -> int:
    """What a row's `num_songs` means.

    Raises:
        InvalidRequestError: for anything but a whole number from 1 to 10,000.
    """
    if value is None or value == "":
        return default
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        number = 0.0
    if not (number.is_integer() and 1 <= number <= MAX_SONGS):
        raise InvalidRequestError([Problem(NUM_SONGS, value, f"it must be a whole number, 1 to {MAX_SONGS:,}")])
    return int(number)


def child_id(parent: str, suffix: str, number: int, of: int) -> str:
    """The id of song `number` (from 1) of `of` with the combination `suffix`."""
    return f"{parent}{suffix}.{number}" if of > 1 else f"{parent}{suffix}"


def child_seed(seed: int, number: int) -> int:
    """The seed of song `number` (from 1) of a row whose seed is `seed`."""
    return seed if number == 1 else derived_seed("song", seed, number)


def value_text(value: Any) -> str:
    """A value as ids have it: 5, 7.5, heun, true, 16-29, none."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return "-".join(map(value_text, value))
    return str(value)


def _value_problems(field: str, name: str, values: Sequence[Any]) -> list[Problem]:
    problems: list[Problem] = []
    known: dict[str, Any] = {}
    for value in values:
        try:
            text = value_text(_parsed(name, value))
        except ValidationError as error:
            problems += [Problem(field, value, each.allowed) for each in problems_of(error, GenerationRequest)]
            continue
        if text in known:
            problems.append(Problem(field, value, f"{known[text]!r} is the same; every value once"))
        known.setdefault(text, value)
    return problems


def _parsed(name: str, value: Any) -> Any:
    """A value of a setting as requests have it; whether it goes with others is for the rows to say.

    Raises:
        ValidationError: when it is not allowed in any row.
    """
    if value is None:
        return None
    try:
        return getattr(GenerationRequest.model_validate({"prompt": "any", name: value}), name)
    except ValidationError as error:
        if any(item["loc"] for item in error.errors(include_url=False)):
            raise
        return value
