"""Rows that were refused or warned of: their columns, how many there are by rule, and the table that people read."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from acestep.problems import Problem, shown

SETTINGS = "settings"
DUPLICATE_ID = "duplicate_id"
"""Rules that are no options of a song: a setting that is out of range, an id that is taken."""

_REASON = pa.struct([(name, pa.string()) for name in ("rule", "field", "value", "allowed")])

REJECT = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("message", pa.string()),
        pa.field("reasons", pa.list_(_REASON)),
        pa.field("request", pa.string()),
    ]
)
"""A refused row; `request` is its values as JSON."""

WARNING = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("id", pa.string()),
        *(pa.field(name, pa.string()) for name in ("rule", "field", "value", "message")),
    ]
)
"""One thing that a row was warned of."""

_EXAMPLES = 2
"""Kept for each rule and severity."""
_VALUE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found in a row."""

    rule: str
    severity: str
    """error or warning."""
    problem: Problem


def reject(file: str, row: int, id: Any, findings: Iterable[Finding], values: Mapping[str, Any]) -> dict[str, Any]:
    """A refused row as `REJECT` has it."""
    findings = list(findings)
    reasons = [{"rule": each.rule, "field": each.problem.field, "value": _cut(each.problem.value)} for each in findings]
    return {
        "file": file,
        "row": row,
        "id": None if id is None else str(id),
        "message": "; ".join(str(each.problem) for each in findings),
        "reasons": [reason | {"allowed": each.problem.allowed} for reason, each in zip(reasons, findings, strict=True)],
        "request": json.dumps(dict(values), ensure_ascii=False, default=str),
    }


def warning(file: str, row: int, id: Any, finding: Finding) -> dict[str, Any]:
    """A warning as `WARNING` has it."""
    problem = finding.problem
    return {
        "file": file,
        "row": row,
        "id": None if id is None else str(id),
        "rule": finding.rule,
        "field": problem.field,
        "value": _cut(problem.value),
        "message": f"{problem.field}: {shown(problem.value)}: {problem.allowed}",
    }


@dataclass(slots=True)
class Tally:
    """How many rows each rule found something in, and the first examples."""

    rules: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rule, then severity, to rows."""
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, file: str, row: int, id: Any, findings: Sequence[Finding]) -> None:
        """Count one row."""
        first: dict[tuple[str, str], Finding] = {}
        for each in findings:
            first.setdefault((each.rule, each.severity), each)
        for (rule, severity), each in first.items():
            counts = self.rules.setdefault(rule, {})
            counts[severity] = counts.get(severity, 0) + 1
            if counts[severity] <= _EXAMPLES:
                where = {"rule": rule, "severity": severity, "file": file, "row": row}
                problem = each.problem
                what = {"field": problem.field, "value": shown(problem.value), "allowed": problem.allowed}
                self.examples.append({**where, "id": None if id is None else str(id), **what})

    def merge(self, later: Tally) -> None:
        """Take the counts of rows that come after ours."""
        for rule, counts in later.rules.items():
            ours = self.rules.setdefault(rule, {})
            for severity, count in counts.items():
                ours[severity] = ours.get(severity, 0) + count
        kept: dict[tuple[str, str], int] = defaultdict(int)
        examples, self.examples = [*self.examples, *later.examples], []
        for each in examples:
            kind = each["rule"], each["severity"]
            kept[kind] += 1
            if kept[kind] <= _EXAMPLES:
                self.examples.append(each)


def preflight_table(rules: Mapping[str, Mapping[str, int]], examples: Iterable[Mapping[str, Any]]) -> str:
    """What `Tally` counted, as lines for people, errors and the most frequent first; empty when there is nothing."""
    lines = []
    of_rule = defaultdict(list)
    for each in examples:
        of_rule[each["rule"], each["severity"]].append(each)
    found = [(severity, rule, count) for rule, counts in rules.items() for severity, count in counts.items()]
    width = max((len(rule) for _, rule, _ in found), default=0)
    for severity, rule, count in sorted(found, key=lambda each: (each[0], -each[2], each[1])):
        lines.append(f"{severity:<7}  {rule:<{width}}  {count:>9,} row{'s' if count > 1 else ''}")
        for each in of_rule[rule, severity]:
            id = "" if each["id"] is None else f" (id {shown(each['id'])})"
            where = f"{each['file']} row {each['row']:,}{id}"
            lines.append(f"    {where}: {each['field']} {each['value']}: {each['allowed']}")
    return "\n".join(lines)


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}... ({len(text):,} characters)"
