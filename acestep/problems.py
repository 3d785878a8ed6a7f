"""What is wrong with input, said so that its author can mend it: the field, the value, what is allowed.

pydantic finds the problems; this module gives them one wording for requests, manifests and configs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

_SHOWN_CHARACTERS = 60
_NUMBER_ERRORS = {
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("int_parsing", "int_parsing_size", "int_type", "int_from_float"), "a whole number"),
}
_RANGE_ERRORS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one field."""

    field: str
    value: Any
    allowed: str

    def __str__(self) -> str:
        return f"{self.field}: {shown(self.value)} is not allowed; {self.allowed}"


class ProblemsError(ValueError):
    """Problems in our own words, on their way through a pydantic validator."""

    def __init__(self, problems: Sequence[Problem]):
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


def shown(value: Any) -> str:
    """A value as an error message shows it: quoted, and cut when it is long."""
    text = repr(value)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}... ({len(str(value)):,} characters)"


def nearest(name: str, names: Iterable[str]) -> str:
    """`did you mean 'x'?` for a misspelt name, or the empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every problem that pydantic found while validating `model`, in the model's field names."""
    problems: list[Problem] = []
    for item in error.errors(include_url=False):
        cause = item.get("ctx", {}).get("error")
        problems += cause.problems if isinstance(cause, ProblemsError) else [_problem(dict(item), model)]
    return problems


def _problem(item: dict[str, Any], model: type[BaseModel]) -> Problem:
    location: Sequence[int | str] = item["loc"]
    field = ".".join(str(part) for part in location) or "(whole)"
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        names = sorted(_fields_at(model, location[:-1]))
        hint = nearest(str(location[-1]), names) or "known: " + ", ".join(names)
        return Problem(field, value, f"there is no such field; {hint}")
    if kind == "missing":
        return Problem(field, None, "it is required")
    bounds = _bounds(model, location)
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("String should ")
    if kind == "literal_error":
        expected = context.get("expected", message)
        hint = nearest(str(value), [part.strip(" '") for part in expected.replace(" or ", ",").split(",")])
        return Problem(field, value, f"allowed: {expected}" + (f"; {hint}" if hint else ""))
    if kind in _RANGE_ERRORS and bounds:
        return Problem(field, value, f"it must be {bounds}")
    if kind == "value_error":
        return Problem(field, value, message)
    if noun := _NUMBER_ERRORS.get(kind):
        return Problem(field, value, f"it must be {noun}" + (f", {bounds}" if bounds else ""))
    must = "it must " if message.startswith("have ") else "it must be "
    return Problem(field, value, must + message[0].lower() + message[1:])


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    for part in location:
        info = model.model_fields.get(str(part))
        annotation = info.annotation if info else None
        nested = [kind for kind in getattr(annotation, "__args__", (annotation,)) if isinstance(kind, type)]
        models = [kind for kind in nested if issubclass(kind, BaseModel)]
        if not models:
            return list(model.model_fields)
        model = models[0]
    return list(model.model_fields)


def _bounds(model: type[BaseModel], location: Sequence[int | str]) -> str:
    info = model.model_fields.get(str(location[0])) if len(location) == 1 else None
    limits = {}
    for constraint in info.metadata if info else ():
        for name in ("ge", "gt", "le", "lt"):
            if (limit := getattr(constraint, name, None)) is not None:
                limits[name] = limit
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if low is None or high is None:
        return ""
    return f"{low:,} to {high:,}"
