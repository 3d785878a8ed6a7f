"""The data-set card: `README.md` as the Hub reads it, with the facts of the songs and how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from acestep.request import LANGUAGES
from pipelines.export.facts import SETTINGS, Facts
from pipelines.export.formats import Format
from pipelines.export.names import audio_column
from pipelines.export.record import ExportRecord, SplitRecord
from pipelines.quantities import duration_text, size_text

DEFAULT_LICENSE = "other"

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_MORE = "10M<n<100M"
_SHOWN_VALUES = 8


@dataclass(frozen=True, slots=True)
class About:
    """What the catalog does not know of the data set."""

    title: str | None = None
    license: str = DEFAULT_LICENSE


def write_card(record: ExportRecord, format: Format, url: str, about: About) -> str:
    """The card of all splits of a record, as Markdown with YAML before it.

    It depends on the record and `about` alone, but for the place in the lines that load the data set.
    """
    facts = Facts()
    for split in record.splits.values():
        facts.add_facts(split.counted())
    title = about.title or f"{facts.songs:,} songs made with {_names(facts, 'model') or 'ACE-Step'}"
    front = yaml.safe_dump(_front_matter(record, format, facts, title, about), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {title}",
        _statement(facts),
        _table("Facts", _facts(record, facts)),
        "## How to load\n\n```python\n" + _how_to_load(record, format, url) + "\n```",
        _table("Settings", _settings(facts)),
        _gate(record),
        _PROVENANCE,
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


_PROVENANCE = """## Provenance

Each row says how its song was made: `fingerprint` names the sound (all settings, the model's content, the file
format); `seed`, `model`, `model_fingerprint`, `adapter_fingerprint` and `dtype` are what made it, `version` and
`sound_version` the program, `created_at` when. The same settings and model make the same song again. The files carry
id, seed, model, prompt and the words "AI-generated" in their tags. `export.json` says how this export was made."""


def _front_matter(record: ExportRecord, format: Format, facts: Facts, title: str, about: About) -> dict[str, Any]:
    codes = [code for code in LANGUAGES if code in facts.values.get("language", {})]
    splits = record.splits.items()
    features = [split.features for _, split in splits]
    info: dict[str, Any] = {}
    if features[0] is not None and all(each == features[0] for each in features):
        info["features"] = features[0]
    info["splits"] = [
        {"name": name, "num_bytes": split.bytes, "num_examples": split.counted().songs} for name, split in splits
    ]
    size = sum(split.bytes for _, split in splits)
    front: dict[str, Any] = {"license": about.license}
    if codes:
        front["language"] = codes
    return front | {
        "pretty_name": title,
        "tags": ["audio", "music", "synthetic", "ai-generated", "ace-step"],
        "task_categories": ["text-to-audio"],
        "size_categories": [next((name for most, name in _SIZES if facts.songs < most), _MORE)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": format.paths(name)} for name, _ in splits],
            }
        ],
        "dataset_info": info | {"download_size": size, "dataset_size": size},
    }


def _statement(facts: Facts) -> str:
    text = "All music here is **AI-generated**: a model made it. Say so where you publish it."
    noise = facts.values.get("random_weights", {}).get("true", 0)
    if noise:
        text += (
            f"\n\n**{noise:,} of {facts.songs:,} songs were made with random weights: they are noise, not music,** "
            "good for trying programs and nothing else."
        )
    return text


def _facts(record: ExportRecord, facts: Facts) -> dict[str, str]:
    splits = {name: split.counted().songs for name, split in record.splits.items()}
    instrumental = f" ({facts.instrumental:,} without lyrics)" if facts.instrumental else ""
    rows = {
        "songs": f"{facts.songs:,}{instrumental}",
        "splits": ", ".join(f"`{name}`: {count:,}" for name, count in splits.items()),
        "audio": f"{duration_text(facts.seconds)}; a song lasts {_range(facts, 'duration', ' s')}",
        "files": "; ".join(dict.fromkeys(_files(split) for split in record.splits.values())),
        "loudness": _loudness(record, facts),
        "model": _names(facts, "model"),
        "model fingerprint": _names(facts, "model_fingerprint"),
        "adapters": _names(facts, "lora") or "none",
        "adapter fingerprints": _names(facts, "adapter_fingerprint"),
        "languages": _names(facts, "language"),
        "made": _range(facts, "created_at", ""),
        "signed": _names(facts, "signed") if not _renditions(record) else "",
        "chosen by": _names(facts, "scorer"),
        "program": f"acestep-ray {_names(facts, 'version')}",
    }
    return {name: value for name, value in rows.items() if value}


def _files(split: SplitRecord) -> str:
    renditions = split.options["renditions"]
    size = size_text(split.bytes)
    facts, count = split.counted(), len(split.shards)
    size += f" in {count:,} shard{'s' if count != 1 else ''}"
    if renditions:
        rate = split.options["sample_rate"] or ", ".join(facts.values.get("sample_rate", {}))
        return f"{', '.join(renditions.values())} at {rate} Hz, {size}"
    formats = ", ".join(facts.values.get("format", {}))
    rates = ", ".join(facts.values.get("sample_rate", {}))
    kept = "named, not copied" if split.options["kind"] == "jsonl" else "as the catalog has them"
    return f"{formats} at {rates} Hz, {kept}, {size}"


def _loudness(record: ExportRecord, facts: Facts) -> str:
    targets = {split.options["target_lufs"] for split in record.splits.values()} - {None}
    if targets:
        return f"{', '.join(f'{target:g}' for target in sorted(targets))} LUFS, true peak at most -1 dBTP"
    return _range(facts, "lufs", " LUFS") if not _renditions(record) else ""


def _renditions(record: ExportRecord) -> bool:
    return any(split.options["renditions"] for split in record.splits.values())


def _settings(facts: Facts) -> dict[str, str]:
    rows = {}
    for each in SETTINGS:
        if each.name in facts.ranges:
            rows[f"`{each.name}`"] = _range(facts, each.name, "")
        elif each.name in facts.values and each.name not in ("language", "lora"):
            rows[f"`{each.name}`"] = _names(facts, each.name)
    return rows


def _gate(record: ExportRecord) -> str:
    gates = [split.gate for split in record.splits.values() if split.gate]
    if not gates:
        return "## Quality\n\nThe songs passed no gate but that of being whole and finite."
    limits = {f"`{name}`": f"{value:g}" for name, value in gates[0].items()}
    return _table("Quality", limits, "Songs beyond these limits were made again with another seed, or left out:")


def _how_to_load(record: ExportRecord, format: Format, url: str) -> str:
    name, split = next(iter(record.splits.items()))
    keys = sorted(split.shards)
    renditions = list(split.audio)
    column = audio_column(renditions[0]) if len(renditions) > 1 else "audio"
    first = f"{name}-{{000000..{len(keys) - 1:06d}}}.tar" if len(keys) > 1 else keys[0]
    values = {
        "{url}": url,
        "{split}": name,
        "{audio}": column,
        "{extension}": next(iter(split.audio.values()), ""),
        "{shards}": f"{url}/{first}",
        "{shard}": keys[0],
    }
    text = format.how_to_load
    for place, value in values.items():
        text = text.replace(place, value)
    return text


def _table(title: str, rows: Mapping[str, str], words: str = "") -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", *([words, ""] if words else []), "| | |", "|---|---|", *lines])


def _range(facts: Facts, name: str, unit: str) -> str:
    if name not in facts.ranges:
        return ""
    low, high = (f"{value:.4g}" if isinstance(value, (int, float)) else str(value) for value in facts.ranges[name])
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _names(facts: Facts, name: str) -> str:
    counts = facts.values.get(name, {})
    if len(counts) == 1:
        return next(iter(counts))
    shown = [f"{value} ({count:,})" for value, count in list(counts.items())[:_SHOWN_VALUES]]
    return ", ".join(shown) + (", ..." if len(counts) > _SHOWN_VALUES else "")
