"""Whether the bytes of a song decode to what its row says."""

from __future__ import annotations

import io
import math

_BLOCK = 1 << 16
"""Samples decoded at a time: a song of some minutes would take 100 MB as a whole."""


def fault_of_audio(data: bytes, num_samples: int, sample_rate: int) -> str | None:
    """What is wrong with an encoded song, None when nothing is: it decodes, has its length, and only finite samples.

    Args:
        num_samples: as encoded, at `sample_rate` in Hz; a file of another rate, as Opus has, has as many more.
    """
    import numpy as np
    import soundfile

    decoded = not_finite = 0
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            expected = math.ceil(num_samples * file.samplerate / sample_rate)
            # Not `file.blocks`: it goes by the header, and pads a file that ends before.
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                decoded += len(block)
                not_finite += block.size - int(np.isfinite(block).sum())
    except soundfile.LibsndfileError as error:
        return f"it cannot be decoded: {error}"
    if not_finite:
        return f"{not_finite:,} samples are not finite"
    if abs(decoded - expected) > 1:
        return f"{decoded:,} samples; its row says {expected:,}"
    return None
