"""How fast engines make songs: `Speed` of one model on one kind of device, and the `SpeedTable` that remembers them.

What was measured comes from three places: the catalog's own `speeds.json`, the cache folder of this machine, and
`speeds.json` beside this file. Where nothing was measured, a speed is modelled from published peaks.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from acestep.cache import cache_folder
from acestep.result import ModelInfo
from acestep.whole_file import write_whole
from pipelines import layout
from pipelines.devices import QUANTILE, modelled, same_device, split_share
from pipelines.measured import Files, Measured
from pipelines.speed_file import Layer, SpeedKey, added, pack_layer, read_layer
from pipelines.storage import Storage
from pipelines.work import Work

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("speeds.json")

LOAD_SECONDS = 60.0
"""For loading the weights and warming up, where that was not measured."""

_LAYERS = (("in this catalog", 0.05), ("on this machine", 0.07), ("elsewhere", 0.1))
"""Where it was measured, and the doubt that remains however often: log standard deviation from run to run."""
_ELSEWHERE_CPU_DOUBT = 0.4
_SHARE_DOUBT = 0.35
"""For twice or half the threads or share: speed does not quite follow."""
_COMPILE_DOUBT = 0.3


@dataclass(frozen=True, slots=True)
class Range:
    """A value, and the bounds that hold it in four of five cases."""

    low: float
    middle: float
    high: float

    def times(self, factor: float) -> Range:
        """All three, so many times."""
        return Range(self.low * factor, self.middle * factor, self.high * factor)

    def plus(self, other: Range) -> Range:
        """Both together, should all go well or badly at once."""
        return Range(self.low + other.low, self.middle + other.middle, self.high + other.high)

    @classmethod
    def exactly(cls, value: float) -> Range:
        """A value that is known."""
        return cls(value, value, value)

    @classmethod
    def total(cls, ranges: Iterable[Range]) -> Range:
        """All of them together, as `plus` has it."""
        total = cls.exactly(0.0)
        for each in ranges:
            total = total.plus(each)
        return total


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one model is on one kind of device.

    Attributes:
        rates: seconds for a TFLOP of denoising, a TFLOP of decoding, and a call: see `Work`.
        spread: log standard deviation of batches about that.
        doubt: log standard deviation that no number of batches takes away.
        batches, songs: behind it; 0: it is modelled, not measured.
        evidence: how many batches of equal length would say as much.
        basis: where it comes from, for a person.
        load_seconds: of an engine.
        files: what was measured of files, by rendition.
    """

    device: str
    rates: tuple[float, float, float]
    spread: float
    doubt: float
    basis: str
    batches: float = 0.0
    songs: float = 0.0
    evidence: float = 1.0
    load_seconds: float = LOAD_SECONDS
    measured_at: str = ""
    version: str = ""
    files: dict[str, Files] = field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether it was measured, and not only modelled."""
        return self.batches > 0

    @property
    def uncertainty(self) -> float:
        """Log standard deviation of what very many batches take together."""
        return math.hypot(self.doubt, self.spread / math.sqrt(max(self.evidence, 1)))

    def seconds(self, work: Work) -> float:
        """What a batch takes in the middle, without waiting for anything."""
        return sum(rate * part for rate, part in zip(self.rates, work.parts, strict=True))

    def deadline(self, work: Work, factor: float, minimum: float) -> float:
        """Seconds after which a batch is hanging: `factor` times what it may take at worst, `minimum` at least."""
        return max(minimum, factor * self.interval(self.seconds(work), 1).high)

    def interval(self, seconds: float, batches: float) -> Range:
        """The bounds of what `batches` of equal length, with together `seconds` in the middle, take."""
        factor = math.exp(QUANTILE * math.hypot(self.uncertainty, self.spread / math.sqrt(max(batches, 1))))
        return Range(seconds / factor, seconds, seconds * factor)

    def of_batches(self, batches: np.ndarray) -> tuple[Range, float]:
        """What batches `[n, 3]` (parts of `Work`) take together, and the longest of them in the middle."""
        seconds = batches @ np.array(self.rates)
        total, squares = float(seconds.sum()), float((seconds**2).sum())
        return self.interval(total, total**2 / squares if squares else 0), float(seconds.max(initial=0.0))


class SpeedTable:
    """The speeds that are known, and what is being measured; one process writes it down, from any of its threads."""

    def __init__(self, *layers: Layer):
        """`layers` are of this catalog, of this machine, and shipped."""
        self._layers: list[Layer] = [*layers, *({} for _ in range(len(_LAYERS) - len(layers)))]
        self._new: dict[SpeedKey, Measured] = {}
        self._lock, self._saving = threading.Lock(), threading.Lock()

    @classmethod
    def load(cls, storage: Storage | None = None) -> SpeedTable:
        """What is known for a catalog; a file that cannot be read is as good as none."""
        own = read_layer(lambda: storage.get(layout.SPEEDS), storage.url) if storage is not None else {}
        return cls(own, *(read_layer(file.read_bytes, str(file)) for file in (_cache_file(), SHIPPED)))

    def observe(self, key: SpeedKey, work: Work, seconds: float, songs: int = 1) -> None:
        """Count one batch that was made whole, in a warm engine."""
        with self._lock:
            self._measured(key).observe(work, seconds, songs)

    def observe_load(self, key: SpeedKey, seconds: float) -> None:
        """Count one engine that was loaded and warmed up."""
        with self._lock:
            measured = self._measured(key)
            measured.loads += 1
            measured.load_seconds += seconds

    def observe_file(
        self, key: SpeedKey, rendition: str, audio_seconds: float, num_bytes: int, encode_seconds: float
    ) -> None:
        """Count one file that was written."""
        with self._lock:
            files = self._measured(key).files.setdefault(rendition, Files())
            files.add(Files(1, audio_seconds, num_bytes, encode_seconds))

    def merge(self, other: SpeedTable) -> None:
        """Count what `other` has observed, too."""
        with self._lock:
            self._merge(other._new)

    def find(self, key: SpeedKey) -> Speed:
        """The speed of a key from where it is most certain: measured, on a device of another size too, or modelled."""
        with self._lock:
            found = [speed for number in range(len(_LAYERS)) if (speed := self._find_in(number, key))]
        if found:
            return min(found, key=lambda speed: speed.uncertainty)
        model = modelled(key.device, key.dtype)
        rate = 1 / model.tflops
        basis = f"modelled, not measured: {model.words}, give or take a factor of {model.factor:.1f}"
        return Speed(key.device, (rate, rate, 0.0), 0.0, model.doubt, basis)

    def last_device(self, model: ModelInfo) -> str | None:
        """The accelerator on which songs of this model were last made in this catalog."""
        entries = [
            (entry.measured_at, key.device)
            for key, entry in self._layers[0].items()
            if _same_model(key, model.name, model.fingerprint) and split_share(key.device)[0] != "cpu"
        ]
        return split_share(max(entries)[1])[0] if entries else None

    def device_named(self, name: str) -> str:
        """A device that speeds are known of and that `name` means, else `name` itself."""
        known = sorted({split_share(key.device)[0] for layer in self._known() for key in layer})
        exact = [each for each in known if each.lower() == name.lower()]
        return next(iter([*exact, *(each for each in known if same_device(name, each)), name]))

    def _known(self) -> list[Iterable[SpeedKey]]:
        return [*self._layers, self._new]

    def save(self, storage: Storage) -> None:
        """Write down what was observed: in the catalog, and in this machine's cache; the last writer wins.

        Raises:
            StorageError: when the catalog does not take it.
        """
        with self._saving:
            with self._lock:
                own, new = added(self._layers[0], self._new), self._new
                before, self._layers[0], self._new = self._layers[0], own, {}
            try:
                storage.put(layout.SPEEDS, pack_layer(own))
            except BaseException:
                with self._lock:
                    self._layers[0] = before
                    self._merge(new)
                raise
            try:
                kept = read_layer(_cache_file().read_bytes, str(_cache_file()))
                _cache_file().parent.mkdir(parents=True, exist_ok=True)
                write_whole(str(_cache_file()), pack_layer(added(kept, new)))
            except OSError as error:  # A cache that cannot be written costs a better estimate, nothing else.
                logger.debug("cannot keep speeds: %s", error)

    def _merge(self, new: Mapping[SpeedKey, Measured]) -> None:
        for key, measured in new.items():
            self._measured(key).add(measured)

    def _measured(self, key: SpeedKey) -> Measured:
        return self._new.setdefault(key, Measured())

    def _find_in(self, number: int, key: SpeedKey) -> Speed | None:
        layer = added(self._layers[0], self._new) if number == 0 else self._layers[number]
        where, doubt = _LAYERS[number]
        fits = [
            (distance, each.fingerprint != key.fingerprint, position, each)
            for position, (each, entry) in enumerate(layer.items())
            if entry.measured.batches and (distance := _distance(key, each)) is not None
        ]
        if not fits:
            return None
        distance, _, _, nearest = min(fits, key=lambda fit: fit[:3])
        entry, (name, share) = layer[nearest], split_share(nearest.device)
        if number == len(_LAYERS) - 1 and name == "cpu":
            doubt = _ELSEWHERE_CPU_DOUBT
        measured, factor = entry.measured, share / split_share(key.device)[1]
        rates = measured.rates() * factor
        hardware = f" ({entry.hardware})" if entry.hardware else ""
        basis = f"measured {where}{hardware} on {measured.batches:,.0f} batches"
        if nearest.device != key.device:
            basis += f" of {nearest.device}"
        if nearest.torch_compile != key.torch_compile:
            basis += f", {'with' if nearest.torch_compile else 'without'} torch_compile"
        return Speed(
            *(key.device, (float(rates[0]), float(rates[1]), float(rates[2])), measured.spread()),
            math.hypot(doubt, distance),
            basis,
            batches=measured.batches,
            songs=measured.songs,
            evidence=measured.evidence,
            load_seconds=measured.load_seconds / measured.loads if measured.loads else LOAD_SECONDS,
            measured_at=entry.measured_at,
            version=entry.version,
            files=measured.files,
        )


def _distance(wanted: SpeedKey, known: SpeedKey) -> float | None:
    """How much doubt it adds to take the speed of one for the other's; None: it says nothing."""
    (name, share), (other, other_share) = split_share(wanted.device), split_share(known.device)
    same = _same_model(known, wanted.model, wanted.fingerprint) and name.lower() == other.lower()
    if not same or (wanted.dtype, wanted.cpu_offload) != (known.dtype, known.cpu_offload):
        return None
    doubt = _SHARE_DOUBT * abs(math.log2(share / other_share))
    return math.hypot(doubt, _COMPILE_DOUBT if wanted.torch_compile != known.torch_compile else 0.0)


def _same_model(key: SpeedKey, name: str, fingerprint: str) -> bool:
    return key.fingerprint == fingerprint or key.model == name


def _cache_file() -> Path:
    return cache_folder() / "speeds.json"
