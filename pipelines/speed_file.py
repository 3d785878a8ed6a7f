"""What was measured, as it is written down: `speeds.json` of a catalog, of a machine, or shipped."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

from acestep import __version__
from acestep.result import ModelInfo
from pipelines.config import RunConfig
from pipelines.devices import with_share
from pipelines.errors import StorageError
from pipelines.measured import Measured

logger = logging.getLogger(__name__)

FORMAT = 1
MOST_BATCHES = 2000
"""For so many at most counts what is written down: hardware and code change."""


@dataclass(frozen=True, slots=True)
class SpeedKey:
    """What speeds are told apart by.

    Attributes:
        device: as the engine calls it, `NVIDIA H100 80GB HBM3` or `cpu x2`; with `x0.5` for an engine on half a GPU.
    """

    model: str
    fingerprint: str
    device: str
    dtype: str
    torch_compile: bool = False
    cpu_offload: bool = False

    @classmethod
    def of(cls, config: RunConfig, model: ModelInfo, device: str) -> SpeedKey:
        """Of a job's engines, on the device that they report."""
        if config.resources.num_gpus:
            device = with_share(device, config.resources.num_gpus)
        return cls(
            *(model.name, model.fingerprint, device, model.dtype),
            torch_compile=config.model.torch_compile,
            cpu_offload=config.model.cpu_offload,
        )


@dataclass(slots=True)
class Entry:
    """What was measured under one key, when it was last added to, with which version, and on what, if somebody said."""

    measured: Measured = field(default_factory=Measured)
    measured_at: str = ""
    version: str = ""
    hardware: str = ""


Layer = dict[SpeedKey, Entry]


def added(layer: Layer, new: Mapping[SpeedKey, Measured]) -> Layer:
    """A layer and what was observed since, as a layer of its own."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    both = dict(layer)
    for key, measured in new.items():
        total = layer[key].measured.faded(MOST_BATCHES) if key in layer else Measured()
        total.add(measured)
        both[key] = Entry(total, now, __version__)
    return both


def pack_layer(layer: Layer) -> bytes:
    """A layer as the content of a file."""
    entries = [
        {**dataclasses.asdict(key), "measured_at": entry.measured_at, "version": entry.version}
        | {"hardware": entry.hardware, "measured": entry.measured.as_dict()}
        for key, entry in layer.items()
    ]
    return json.dumps({"format": FORMAT, "speeds": entries}, indent=1).encode()


def read_layer(read: Callable[[], bytes], where: str) -> Layer:
    """The layer in a file that `read` reads; one that is not there or cannot be read is empty."""
    names = [each.name for each in dataclasses.fields(SpeedKey)]
    try:
        values = json.loads(read())
        if values["format"] != FORMAT:
            raise ValueError(f"it is of format {values['format']!r}, not {FORMAT}")
        return {
            SpeedKey(**{name: each[name] for name in names}): Entry(
                Measured.from_dict(each["measured"]), each["measured_at"], each["version"], each.get("hardware", "")
            )
            for each in values["speeds"]
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, OSError, StorageError) as error:
        logger.warning("the speeds in %s cannot be read and are left alone: %s", where, error)
        return {}
