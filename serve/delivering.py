"""`Deliverer`: a finished song as a file, in the store or for the caller who waits."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import numpy as np

from acestep import __version__
from acestep.audio import encode_audio
from acestep.errors import ACEStepError
from acestep.frames import LATENTS_KEY
from acestep.loudness import normalize
from acestep.provenance import SIGNABLE_FORMATS
from acestep.result import GenerationFailure, GenerationResult
from pipelines.attempts import Verdict
from pipelines.storage import Storage
from serve.settings import ServeConfig
from serve.source_files import SourceFiles
from serve.work import Delivery, Order

logger = logging.getLogger(__name__)


class Deliverer:
    """See the module."""

    def __init__(self, config: ServeConfig, storage: Storage):
        self._config, self._storage = config, storage

    def delivery(self, order: Order, verdict: Verdict, sources: SourceFiles) -> Delivery:
        """What the gateway is told of one song; its audio is in the store by then. Never raises."""
        id, outcome = str(order.request.id), verdict.outcome
        if isinstance(outcome, GenerationFailure):
            message = outcome.message
            if outcome.error_class == "internal":
                logger.warning("%s failed: %s", id, message)
                message = "the engine failed on this song; the server's log says why"
            return Delivery(id, error=(outcome.error_class, sources.hidden(message)))
        try:
            return self._delivered(id, order, verdict, outcome)
        except ACEStepError as error:
            logger.warning("%s could not be delivered: %s", id, error)
            said = str(error) if error.error_class == "quality" else "the song could not be put away"
            return Delivery(id, error=(error.error_class, said))
        except Exception:
            logger.exception("%s could not be delivered", id)
            return Delivery(id, error=("internal", "the song could not be encoded; the server's log says why"))

    def _delivered(self, id: str, order: Order, verdict: Verdict, song: GenerationResult) -> Delivery:
        rate = song.sample_rate
        samples = normalize(np.asarray(song.waveform, dtype=np.float32), rate, **self._config.loudness.model_dump())
        data = self._signed(encode_audio(samples, rate, order.format, song.tags()), order, song)
        made: dict[str, Any] = {
            "seed": song.seed,
            "duration": samples.shape[1] / rate,
            "sample_rate": 48_000 if order.format.format == "opus" else rate,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "format": order.format.format,
            "warnings": list(song.warnings),
            "batch_size": song.batch_size,
            "attempt": verdict.attempt,
        }
        if order.folder is None:
            return Delivery(id, made, data=data)
        made["key"] = f"audio/{order.folder}/{order.index}{order.format.extension}"
        self._storage.put(made["key"], data)
        if self._config.keep_latents:
            made["latents"] = self._put_latents(order, song)
        return Delivery(id, made)

    def _put_latents(self, order: Order, song: GenerationResult) -> str:
        from safetensors.numpy import save

        key = f"latents/{order.folder}/{order.index}.safetensors"
        kept = np.ascontiguousarray(np.asarray(song.latents, dtype=np.float32))
        self._storage.put(key, save({LATENTS_KEY: kept}))
        return key

    def _signed(self, data: bytes, order: Order, song: GenerationResult) -> bytes:
        signing = self._config.provenance
        if signing.mode != "c2pa" or order.format.format not in SIGNABLE_FORMATS:
            return data
        facts = {"model": song.model.name, "model_fingerprint": song.model.fingerprint, "seed": song.seed}
        facts |= {"id": order.request.id, "version": __version__}
        return signing.sign(data, order.format.format, facts)
