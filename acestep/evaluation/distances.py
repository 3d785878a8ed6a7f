"""How far two waveforms are apart: for round trips through the codec, and for variations of a song."""

from __future__ import annotations

import numpy as np
import torch

from acestep.frames import HOP_LENGTH, SAMPLE_RATE
from acestep.models.mel import LogMel, MelConfig
from acestep.training.spectral_loss import MultiResolutionSTFTLoss

_MEL = MelConfig(
    sampling_rate=SAMPLE_RATE, n_fft=2048, win_length=2048, hop_length=HOP_LENGTH, f_min=40, f_max=16000, n_mels=128
)


def log_mel_error(made: np.ndarray, wanted: np.ndarray) -> float:
    """Mean absolute difference of the log-mel magnitudes, in nats, of waveforms `[2, W]` at 44.1 kHz.

    The longer one is cut. 1 nat is a factor of 2.7, or 8.7 dB.

    Raises:
        ValueError: for less than 2,048 samples.
    """
    ours, theirs = _pair(made, wanted)
    log_mel = LogMel(_MEL)
    return float((log_mel(ours) - log_mel(theirs)).abs().mean())


def stft_distance(made: np.ndarray, wanted: np.ndarray) -> float:
    """`MultiResolutionSTFTLoss` between waveforms `[2, W]`, the longer one cut; 0 for equal ones.

    Raises:
        ValueError: for less than 2,048 samples.
    """
    return float(MultiResolutionSTFTLoss()(*_pair(made, wanted)))


def _pair(made: np.ndarray, wanted: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    size = min(made.shape[-1], wanted.shape[-1])
    if size < _MEL.win_length:
        raise ValueError(f"waveforms must have at least {_MEL.win_length:,} samples, not {size:,}")
    return torch.from_numpy(np.array(made[..., :size])).float(), torch.from_numpy(np.array(wanted[..., :size])).float()
