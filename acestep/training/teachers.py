"""REPA teachers: what a listener, or a plain measurement, hears in a song; the transformer learns to hear it too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep.errors import CheckpointError
from acestep.frames import SAMPLE_RATE, SAMPLES_PER_FRAME
from acestep.models.mel import LogMel, MelConfig
from acestep.models.repa import RepaHeads
from acestep.models.transformer import ACEStepTransformer
from acestep.problems import nearest
from acestep.resample import resample

MEASURED = "logmel-chroma"
HUB = "hub:"


class Teacher(Protocol):
    """Hears a song."""

    name: str
    dim: int
    """Numbers a frame, D."""

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """What is heard of `[2, W]` at 44.1 kHz: float32 `[F, D]`, its frames evenly over the song, F at least 1.

        Raises:
            ValueError: for a waveform that is not stereo, or is empty.
        """


def open_teacher(name: str, *, trust_remote_code: bool = False, device: torch.device | str = "cpu") -> Teacher:
    """A teacher, ready to hear.

    Args:
        name: "logmel-chroma", which needs no download; "hub:<id>" for an encoder of waveforms that `transformers`
            knows, such as "hub:utter-project/mHuBERT-147" or "hub:m-a-p/MERT-v1-330M"; or the folder of one.
        trust_remote_code: run code that comes with the model, which MERT needs.

    Raises:
        ValueError: for a name that means nothing.
        CheckpointError: for a model that cannot be found, reached or loaded.
    """
    if name == MEASURED:
        return LogMelChroma(device)
    if name.startswith(HUB):
        return AudioEncoder.open(name, name.removeprefix(HUB), trust_remote_code, device)
    if Path(name).is_dir():
        return AudioEncoder.open(name, name, trust_remote_code, device)
    hint = nearest(name, [MEASURED]) or f"allowed: {MEASURED!r}, '{HUB}<id>' and the folder of a model"
    raise ValueError(f"teacher: {name!r} is not allowed; {hint}")


def heads_for(transformer: ACEStepTransformer, dims: Sequence[int], depth: int | None = None) -> RepaHeads:
    """New heads for teachers of these `dim`, all behind one block, on a transformer that has none.

    Args:
        depth: the block, 0 the first; None: a third of the way, as published.

    Raises:
        ValueError: for a block that is not there.
    """
    blocks = len(transformer.transformer_blocks)
    depth = blocks // 3 if depth is None else depth
    if not 0 <= depth < blocks:
        raise ValueError(f"depth: {depth} is not allowed; it must be 0 to {blocks - 1}")
    return RepaHeads(transformer.config.inner_dim, dims, [depth] * len(dims))


class LogMelChroma:
    """A measurement, one frame for each latent frame: colour (log-mel), harmony (chroma) and rhythm (onsets).

    Each third is centred and about as long as the others, since a cosine is to compare it.
    """

    name = MEASURED
    bands, onsets = 64, 8
    dim = bands + 12 + onsets

    _HOP = SAMPLES_PER_FRAME // onsets
    _CHROMA_WINDOW = 2 * SAMPLES_PER_FRAME

    def __init__(self, device: torch.device | str = "cpu"):
        self._device = torch.device(device)
        config = MelConfig(SAMPLE_RATE, 2048, 2048, self._HOP, 40.0, 16000.0, self.bands)
        self._log_mel = LogMel(config).to(self._device)
        frequencies = torch.fft.rfftfreq(self._CHROMA_WINDOW, 1 / SAMPLE_RATE, device="cpu")
        # Below 110 Hz a bin is wider than a semitone.
        tonal = (frequencies > 110) & (frequencies < 2000)
        pitch = (12 * torch.log2(frequencies.clamp_min(1) / 440) + 69).round().long() % 12
        self._chroma_of = (F.one_hot(pitch, 12).float() * tonal[:, None]).to(self._device)

    @torch.no_grad()
    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        samples = _mono(waveform).to(self._device)
        frames = -(-len(samples) // SAMPLES_PER_FRAME)
        samples = _normalized(F.pad(samples, (0, frames * SAMPLES_PER_FRAME - len(samples))))
        levels = self._log_mel(samples).T.clamp_min(_FAINTEST)  # [8F, bands]
        parts = (self._colour(levels), self._harmony(samples, frames), self._rhythm(levels))
        return torch.cat(parts, dim=1).cpu().numpy()

    def _colour(self, levels: Tensor) -> Tensor:
        """Levels of the bands, less those that music has anyway: the higher the fainter."""
        usual = torch.linspace(_BASS_LEVEL, _TREBLE_LEVEL, self.bands, device=levels.device)
        return (levels.unflatten(0, (-1, self.onsets)).mean(dim=1) - usual) / (_LEVEL_DEVIATION * self.bands**0.5)

    def _harmony(self, samples: Tensor, frames: int) -> Tensor:
        """Shares of the pitch classes, of length 1; 0 where nothing sounds."""
        size = self._CHROMA_WINDOW
        window = torch.hann_window(size, device=samples.device)
        padded = F.pad(samples, (size // 4, size - size // 4))
        spectrum = torch.stft(padded, size, SAMPLES_PER_FRAME, size, window, center=False, return_complex=True)
        chroma = spectrum.abs().T[:frames] @ self._chroma_of
        return F.normalize(chroma - chroma.mean(dim=1, keepdim=True), dim=1, eps=1e-3)

    def _rhythm(self, levels: Tensor) -> Tensor:
        """How much louder the bands become within each eighth of a frame, less what is usual in the song."""
        rise = F.pad((levels[2:] - levels[:-2]).clamp_min(0).mean(dim=1), (2, 0))
        deviation, mean = torch.std_mean(rise, correction=0)
        return ((rise - mean) / ((deviation + 1e-3) * self.onsets**0.5)).unflatten(0, (-1, self.onsets))


_BASS_LEVEL, _TREBLE_LEVEL, _LEVEL_DEVIATION, _FAINTEST = 0.6, -4.4, 1.7, -4.5
"""Of log-mel of music whose waveform has a deviation of 1, as `acestep.synth` makes it."""


class AudioEncoder:
    """The last hidden states of an encoder of waveforms, such as HuBERT, wav2vec 2.0, WavLM or MERT; frozen."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        extractor: Any,
        device: torch.device | str = "cpu",
        chunk_seconds: float = 30.0,
    ):
        """With the feature extractor that belongs to the model, of which rate and normalisation are followed.

        Args:
            chunk_seconds: longer songs are heard in equal parts of at most this.
        """
        self.name, self.dim = name, int(cast("Any", model).config.hidden_size)
        self._device, self._chunk_seconds = torch.device(device), chunk_seconds
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._rate, self._normalizes = int(extractor.sampling_rate), bool(getattr(extractor, "do_normalize", False))

    @classmethod
    def open(cls, name: str, source: str, trust_remote_code: bool, device: torch.device | str) -> AudioEncoder:
        """Load a model by its hub id or from its folder.

        Raises:
            CheckpointError: if it cannot be found, reached or loaded, or hears no waveforms.
        """
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor

        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(source, **options)
            if config.model_type == "mert_model" and not hasattr(config, "conv_pos_batch_norm"):
                config.conv_pos_batch_norm = False  # Its code asks for it, its config was written before that.
            extractor = AutoFeatureExtractor.from_pretrained(source, **options)
            model = AutoModel.from_pretrained(source, config=config, dtype=torch.float32, **options)
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(f"teacher {name!r} cannot be loaded: {error}") from error
        if not isinstance(extractor, Wav2Vec2FeatureExtractor):  # All encoders of waveforms have it.
            raise CheckpointError(f"teacher {name!r} is a {type(model).__name__}, which does not hear waveforms")
        # MERT was trained on parts of 5 s.
        return cls(name, model, extractor, device, 5.0 if config.model_type == "mert_model" else 30.0)

    @torch.no_grad()
    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """See `Teacher`. As the original, it is the whole song that is brought to mean 0 and deviation 1."""
        samples = resample(_mono(waveform).to(self._device), SAMPLE_RATE, self._rate)
        if self._normalizes:
            samples = _normalized(samples)
        # Less than this some encoders make no frame of.
        samples = F.pad(samples, (0, max(0, self._rate // 4 - len(samples))))
        parts = samples.chunk(math.ceil(len(samples) / (self._chunk_seconds * self._rate)))
        heard = [self._model(part[None]).last_hidden_state[0] for part in parts]
        return torch.cat(heard).float().cpu().numpy()


def _mono(waveform: np.ndarray) -> Tensor:
    if waveform.ndim != 2 or waveform.shape[0] != 2 or waveform.shape[1] == 0:
        raise ValueError(f"a waveform must be [2, W], not {list(waveform.shape)}")
    return torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32)).mean(dim=0)


def _normalized(samples: Tensor) -> Tensor:
    variance, mean = torch.var_mean(samples, correction=0)
    return (samples - mean) / torch.sqrt(variance + 1e-7)
