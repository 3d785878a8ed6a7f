"""The tone wheels that all sound of the synthesiser comes from, so that a vocoder can play it.

A vocoder without memory sees frames of a spectrum, and a steady tone is the same in each: all that it can play then
repeats itself every frame of 512 samples, as a buzz of 86 Hz. So there is one oscillator for each semitone, as in an
electric organ, which every instrument takes its overtones from; all of them run through, in step with the frames: a
turn of 16 frames for low tones, of 8, 4, 2 or 1 for higher ones, as far as their tuning allows. A quiet pilot high up
says where in the turn the song is. What sounds is then a function of the spectrum that one looks at.
"""

from __future__ import annotations

import numpy as np

SAMPLE_RATE = 44100
FRAME = 512
"""Samples in a frame of the model's mel spectrogram."""

FRAMES_PER_TURN = 16
TURN = FRAMES_PER_TURN * FRAME
"""Samples after which all steady sound repeats itself: 186 ms, two latent frames."""

LINE_HZ = SAMPLE_RATE / TURN
"""What frequencies are multiples of: 5.4 Hz."""

TUNING = 440.0
"""Hz of the A above middle C, MIDI note 69."""

HIGHEST = 120
"""MIDI note of the highest wheel, 8.4 kHz."""

_TOLERANCE = 2 ** (15 / 1200) - 1
"""How far a wheel may be out of tune for a shorter turn: 15 cents. The lowest are out by up to 30 with the longest."""

_SWEEP = 2048
"""Lines over which the wheels' delay sweeps through one turn: in phase, they would all be loud at once."""

_PILOT_LINES = (1790, 1850, 1912, 1976)
"""9.6 to 10.6 kHz."""
_PILOT_LEVEL = 1e-3
_PILOT_DEPTH = 1.5
"""Of the pilot's loudness to either side of its middle, in nats."""

Wave = np.ndarray


def wheel(midi: int) -> int:
    """The line of a semitone's wheel: the fewest frames a turn that its tuning allows."""
    frequency = TUNING * 2 ** ((midi - 69) / 12)
    for step in (16, 8, 4, 2):
        line = round(frequency / LINE_HZ / step) * step
        if abs(line * LINE_HZ / frequency - 1) <= _TOLERANCE and line * LINE_HZ * _TOLERANCE >= LINE_HZ * step / 2:
            return line
    return round(frequency / LINE_HZ)


def turn_of(lines: dict[int, float]) -> Wave:
    """One turn of oscillators with amplitudes by line, float32 `[TURN]`."""
    spectrum = np.zeros(TURN // 2 + 1, dtype=np.complex128)
    for line, amplitude in lines.items():
        spectrum[line] += amplitude * np.exp(-1j * np.pi * line**2 / _SWEEP)
    return (np.fft.irfft(spectrum, TURN) * TURN / 2).astype(np.float32)


def along(turn: Wave, start: int, size: int) -> Wave:
    """What a turn sounds like from sample `start` of a song on."""
    return np.take(turn, np.arange(start, start + size), mode="wrap")


def pilot(size: int) -> Wave:
    """The pilot, float32 `[size]`: four tones at -60 dB that swell once and twice a turn."""
    angle = 2 * np.pi * np.arange(TURN) / TURN
    swells = (np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle))
    turn = np.sum(
        [
            turn_of({line: _PILOT_LEVEL}) * np.exp(_PILOT_DEPTH * (swell - 1))
            for line, swell in zip(_PILOT_LINES, swells, strict=True)
        ],
        axis=0,
    )
    return along(turn.astype(np.float32), 0, size)
