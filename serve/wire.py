"""Bodies of requests: the library's `GenerationRequest`, with aliases that the field knows, and how to deliver.

There is no second request model here: what the library takes, the API takes, by the same names and in the same ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from acestep.audio_format import KINDS, AudioFormat
from acestep.errors import InvalidRequestError
from acestep.problems import Problem, nearest
from acestep.request import MAX_SEED, GenerationRequest, derived_seed
from serve.settings import ServeConfig

ALIASES = {
    "input": "prompt",
    "audio_duration": "duration",
    "audio_length": "duration",
    "seconds": "duration",
    "infer_step": "num_inference_steps",
    "scheduler_type": "scheduler",
    "cfg_type": "guidance",
}
MAX_DURATION = 240.0
"""Seconds; what a request may ask of any server."""
DELIVERY = ("model", "n", "response_format", "delivery", "stream_format")
_REFUSED = ("id",)
FIELDS = tuple(name for name in GenerationRequest.model_fields if name not in _REFUSED)
_MOST_FIELDS = 100
_MOST_HINTS = 10
"""Looking for the nearest name takes a while, and nobody misspells more."""
_LONGEST_TEXT = 40_000
_SHOWN_NAME = 60


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for songs, understood.

    Attributes:
        request: with the server's defaults; its seed may be open, and its `source` is still the client's word.
        seeds: one for each song.
        bytes_wanted: whether the caller asked for raw audio in the body itself.
    """

    request: GenerationRequest
    seeds: tuple[int, ...]
    format: AudioFormat
    delivery: str
    bytes_wanted: bool


def parse(body: Mapping[str, Any], config: ServeConfig, model: str, draw: Any) -> Asked:
    """A body as JSON or form fields gave it.

    Args:
        draw: called for a seed where none is given.

    Raises:
        InvalidRequestError: with every problem of every field.
    """
    if len(body) > _MOST_FIELDS:
        raise InvalidRequestError([Problem("(whole)", f"{len(body):,} fields", f"at most {_MOST_FIELDS} can be given")])
    values, problems = _renamed(body)
    delivery = {name: values.pop(name, None) for name in DELIVERY}
    for number, name in enumerate(sorted(set(values) - set(FIELDS))):
        hint = nearest(name[:_SHOWN_NAME], (*FIELDS, *ALIASES, *DELIVERY)) if number < _MOST_HINTS else ""
        what = "there is no such field" + (f"; {hint}" if hint else "")
        problems.append(Problem(name[:_SHOWN_NAME] or '""', values.pop(name), what))
    for name in [name for name, value in values.items() if _is_too_long(name, value)]:
        problems.append(Problem(name, values.pop(name), "it is too long"))
    seed = values.pop("seed", config.defaults.get("seed"))
    count = _count(delivery["n"], config.jobs.max_n, problems)
    audio = _format(delivery["response_format"], config, problems)
    _check_delivery(delivery, model, count, problems)
    _check_limits(values, config, problems)
    seeds = _seeds(seed, count, draw, problems)
    try:
        request = GenerationRequest.parse({**config.defaults, **values})
    except InvalidRequestError as error:
        told = {problem.field for problem in problems}
        raise InvalidRequestError([*problems, *(each for each in error.problems if each.field not in told)]) from None
    if problems:
        raise InvalidRequestError(problems)
    where = delivery["delivery"] or "url"
    return Asked(request, seeds, audio, where, delivery["stream_format"] == "audio")


def with_defaults(defaults: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    """One item of many: what it says goes before the defaults, under whatever name."""
    given = {ALIASES.get(name, name) for name in item}
    return {**{name: value for name, value in defaults.items() if ALIASES.get(name, name) not in given}, **item}


def resolved(asked: Asked, seed: int) -> GenerationRequest:
    """The request of one song, nothing left open."""
    return asked.request.model_copy(update={"seed": seed}).resolved()


def parameters(asked: Asked) -> dict[str, Any]:
    """What the answer says was asked for: every setting, resolved, and the seeds."""
    first = resolved(asked, asked.seeds[0])
    shown = first.model_dump(mode="json", exclude={"id"}, exclude_none=True)
    seed: Any = asked.seeds[0] if len(asked.seeds) == 1 else list(asked.seeds)
    return shown | {"seed": seed, "n": len(asked.seeds), "response_format": asked.format.format}


def _renamed(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    values: dict[str, Any] = {}
    problems = []
    for name, value in body.items():
        real = ALIASES.get(name, name)
        if real in values and value is not None:
            problems.append(Problem(name[:_SHOWN_NAME], value, f"{real} was given already, under another name"))
        elif value is not None or real not in (*FIELDS, *DELIVERY):
            values[real] = value
    return values, problems


def _is_too_long(name: str, value: Any) -> bool:
    """Whether it is longer than any field may be: such a text is not worth looking at."""
    return isinstance(value, str) and len(value) > _LONGEST_TEXT and name != "source"


def _count(value: Any, most: int, problems: list[Problem]) -> int:
    value = 1 if value is None else value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        problems.append(Problem("n", value, f"it must be a whole number from 1 to {most}"))
        return 1
    return value


def _format(value: Any, config: ServeConfig, problems: list[Problem]) -> AudioFormat:
    if value is None or value == config.audio.format:
        return config.audio
    if not isinstance(value, str) or value not in KINDS:
        problems.append(Problem("response_format", value, f"allowed: {', '.join(KINDS)}"))
        return config.audio
    return AudioFormat.parse(format=value)


def _check_delivery(delivery: Mapping[str, Any], model: str, count: int, problems: list[Problem]) -> None:
    if delivery["model"] not in (None, model):
        problems.append(Problem("model", delivery["model"], f"this server has {model!r}"))
    if delivery["delivery"] not in (None, "url", "b64_json"):
        problems.append(Problem("delivery", delivery["delivery"], "allowed: url, b64_json"))
    if delivery["stream_format"] not in (None, "audio"):
        problems.append(Problem("stream_format", delivery["stream_format"], "allowed: audio"))
    if delivery["stream_format"] == "audio" and count > 1:
        problems.append(Problem("n", count, "raw audio is one song"))


def _check_limits(values: Mapping[str, Any], config: ServeConfig, problems: list[Problem]) -> None:
    duration, most = values.get("duration"), config.jobs.max_duration
    if _number(duration) > most < MAX_DURATION:
        problems.append(Problem("duration", duration, f"this server makes songs of up to {most:g} s"))
    lora, allowed = values.get("lora"), config.jobs.loras
    if lora is not None and allowed != ["*"] and lora not in (allowed or ()):
        what = f"this server has {', '.join(allowed)}" if allowed else "this server has no adapters"
        problems.append(Problem("lora", lora, what))


def _number(value: Any) -> float:
    """Forms have texts where JSON has numbers; 0 for neither."""
    try:
        return float(value) if isinstance(value, int | float | str) else 0.0
    except (ValueError, OverflowError):
        return 0.0


def _seeds(value: Any, count: int, draw: Any, problems: list[Problem]) -> tuple[int, ...]:
    """One seed is the first song's, and the others' follow from it; a list has one for each."""
    given = value if isinstance(value, list | tuple) else None
    if given is not None and len(given) != count:
        problems.append(Problem("seed", value, f"a list must have n = {count} seeds"))
        return ()
    found = []
    for each in given if given is not None else [draw() if value is None else value]:
        number = int(each) if isinstance(each, str) and each.isascii() and each.isdigit() and len(each) < 21 else each
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_SEED:
            problems.append(Problem("seed", each, f"it must be a whole number from 0 to {MAX_SEED}"))
            return ()
        found.append(number)
    if given is None:
        found += [derived_seed("song", found[0], number) for number in range(1, count)]
    return tuple(found)
