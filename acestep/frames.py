"""The grid of the model: samples, mel frames and latent frames. No torch here, so that a plan can count cheaply."""

from __future__ import annotations

SAMPLE_RATE = 44_100
"""Hz, of what the vocoder makes."""

HOP_LENGTH = 512
"""Samples in a mel frame."""

MEL_FRAMES_PER_LATENT = 8
"""Mel frames in a latent frame: the time compression of the autoencoder."""

SAMPLES_PER_FRAME = HOP_LENGTH * MEL_FRAMES_PER_LATENT
"""Samples at 44,100 Hz in one latent frame: 4,096, or 93 ms."""

LATENTS_KEY = "latents"
"""The tensor's name in a file of kept latents, `[8, 16, T]`."""

LATENT_CHANNELS = 8
LATENT_HEIGHT = 16


def num_latent_frames(duration: float) -> int:
    """Latent frames T for a duration in seconds, rounded down as the original does."""
    return int(duration * SAMPLE_RATE / HOP_LENGTH / MEL_FRAMES_PER_LATENT)


def num_samples(duration: float, sample_rate: int = SAMPLE_RATE) -> int:
    """Samples of a song asked to last `duration` seconds: whole latent frames, at most 93 ms short."""
    native = num_latent_frames(duration) * SAMPLES_PER_FRAME
    return -(-native * sample_rate // SAMPLE_RATE)
