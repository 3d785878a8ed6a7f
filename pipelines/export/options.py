"""`ExportOptions`: what is to be delivered and how, checked before anything is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from acestep.audio_format import AudioFormat
from pipelines.errors import UnusableInputError

Kind = Literal["parquet", "webdataset", "audiofolder", "jsonl"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SAMPLE_RATES = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
"""Hz that a rendition may have."""

DEFAULT_SHARD_BYTES = 500_000_000
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True)
class Rendition:
    """One kind of file that is made of every song.

    Attributes:
        name: tells it from the others: `mp3`, or `mp3_320` where there are several of a format.
    """

    name: str
    format: AudioFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What decides the bytes of an export.

    Attributes:
        renditions: none: the catalog's own files, untouched.
        target_lufs: loudness of the renditions, in LUFS; None: as in the catalog.
        sample_rate: Hz of the renditions; None: each song's own.
        shard_bytes: about so many bytes go into a shard.
        columns: of the rows; None: all that say something about the song.
        use_latents: make renditions from kept latents where there are any, else from lossless files only.
    """

    kind: Kind
    split: str = "train"
    renditions: tuple[Rendition, ...] = ()
    target_lufs: float | None = None
    sample_rate: int | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES
    columns: tuple[str, ...] | None = None
    use_latents: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.split, re.ASCII):
            raise UnusableInputError(f"split: {self.split!r} is not allowed; it must be letters, digits and _")
        if self.shard_bytes < 1:
            raise UnusableInputError(f"shard-bytes: {self.shard_bytes} is not allowed; it must be at least 1")
        if self.target_lufs is not None and not -70 <= self.target_lufs <= 0:
            raise UnusableInputError(f"loudness: {self.target_lufs:g} is not allowed; it must be -70 to 0 LUFS")
        if self.sample_rate is not None and self.sample_rate not in SAMPLE_RATES:
            known = ", ".join(map(str, SAMPLE_RATES))
            raise UnusableInputError(f"sample-rate: {self.sample_rate} is not allowed; allowed: {known}")
        if self.kind == "jsonl" and self.renditions:
            raise UnusableInputError(
                "rendition: jsonl copies no audio, it names the catalog's own; use parquet, webdataset or audiofolder"
            )
        for name, value in (("loudness", self.target_lufs), ("sample-rate", self.sample_rate)):
            if value is not None and not self.renditions:
                raise UnusableInputError(
                    f"{name}: {value:g} is not allowed without a rendition, for files are copied as they are; "
                    "add --rendition flac, or another format"
                )

    def described(self) -> dict[str, Any]:
        """As plain values, for the record of an export."""
        renditions = {rendition.name: rendition.format.rendition for rendition in self.renditions}
        columns = list(self.columns) if self.columns is not None else None
        return asdict(self) | {"renditions": renditions, "columns": columns}


def parse_renditions(texts: Sequence[str]) -> tuple[Rendition, ...]:
    """Renditions from texts such as `flac` or `mp3:bitrate_kbps=320`.

    Raises:
        UnusableInputError: for one that is not written so, or is there twice.
        AudioFormatError: for a format or setting that does not exist.
    """
    formats = [_parse_format(text) for text in texts]
    counts = Counter(each.format for each in formats)
    renditions = []
    for each in formats:
        full = re.sub(r"\W", "_", each.rendition)
        renditions.append(Rendition(each.format if counts[each.format] == 1 else full, each))
    if len({rendition.name for rendition in renditions}) < len(renditions):
        raise UnusableInputError(f"rendition: {', '.join(texts)} is not allowed; two of them are the same")
    return tuple(renditions)


def parse_bytes(text: str) -> int:
    """A size such as `500MB`, `2GiB` or `1000000`.

    Raises:
        UnusableInputError: for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not (count := int(float(match[1]) * unit)):
        raise UnusableInputError(f"shard-bytes: {text!r} is not allowed; it must be like 500MB, 2GiB or 1000000")
    return count


def _parse_format(text: str) -> AudioFormat:
    name, _, settings = text.partition(":")
    values: dict[str, str] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise UnusableInputError(f"rendition: {text!r} is not allowed; it must be like mp3:bitrate_kbps=320")
        values[key.strip()] = value.strip()
    return AudioFormat.parse(format=name.strip(), **values)
