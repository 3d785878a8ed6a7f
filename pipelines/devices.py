"""What devices are called, and how fast the published model would be on one where nobody has measured it."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import dataclass

PEAKS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""TFLOP/s of bfloat16 matrix products without sparsity, as the makers publish them; of equal matches, the first."""

UTILISATION, UTILISATION_FACTOR = 0.2, 2.7
"""The share of its peak that a GPU is taken to reach: 0.2, give or take a factor of 2.7, so 0.07 to 0.54."""
FLOAT32_SHARE, FLOAT32_FACTOR = 1 / 8, 2.0
"""Of the bfloat16 peak: 1/16 on H100 and A100, 1/4 on L4, 1/2 on RTX 4090."""
CPU_CORE, CPU_FACTOR = 0.05, 2.5
"""TFLOP/s of one core of a server CPU in float32: 0.054 decoding and 0.06 denoising, in benchmarks/LOG.md."""
APPLE, APPLE_FACTOR = 2.0, 4.0
"""TFLOP/s of an Apple GPU (`mps`), whichever it is."""
UNKNOWN = "unknown GPU"
"""The name of a device of which nothing is known."""
_UNKNOWN_BETWEEN = ("L4", "H100")

QUANTILE = 1.2816
"""Standard deviations around the middle that hold 80% of a normal distribution."""

_SHARE = re.compile(r"(?P<name>.*\S)\s+x(?P<share>\d+(\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Modelled:
    """A speed from published peaks: a guess, and `doubt` (log standard deviation) says how wide."""

    tflops: float
    """TFLOP a second that are reached."""
    doubt: float
    words: str

    @property
    def factor(self) -> float:
        """The truth is within this factor in four of five cases."""
        return math.exp(QUANTILE * self.doubt)


def split_share(device: str) -> tuple[str, float]:
    """`cpu x2` and `NVIDIA L4 x0.5` as name and number: threads of a CPU, or an engine's share of a GPU."""
    match = _SHARE.fullmatch(device.strip())
    return (match["name"], float(match["share"])) if match else (device.strip(), 1.0)


def with_share(name: str, share: float) -> str:
    """The device of an engine that has `share` GPUs of it."""
    return name if share in (0, 1) else f"{name} x{share:g}"


def same_device(asked: str, known: str) -> bool:
    """Whether all words of the shorter name are words of the longer: `H100` and `NVIDIA H100 80GB HBM3`."""
    words, others = ({word.lower() for word in re.findall(r"[\w.]+", name)} for name in (asked, known))
    return bool(words and others) and (words <= others or others <= words)


def peak_of(device: str) -> tuple[str, float] | None:
    """The known GPU that a name means, and its peak in TFLOP/s; None for one that is not known."""
    words = {word.lower() for word in re.findall(r"[\w.]+", device)}
    for name, peak in PEAKS.items():
        if {word.lower() for word in name.split()} <= words:
            return name, peak
    return None


def modelled(device: str, dtype: str) -> Modelled:
    """How fast the published model may be on a device, from published peaks alone."""
    name, share = split_share(device)
    if name.lower() == "cpu":
        words = f"{CPU_CORE:g} TFLOP/s for each of {share:g} cores"
        return Modelled(CPU_CORE * share, math.log(CPU_FACTOR) / QUANTILE, words)
    if name.lower() == "mps":
        return Modelled(APPLE * share, math.log(APPLE_FACTOR) / QUANTILE, f"{APPLE:g} TFLOP/s of an Apple GPU")
    found = peak_of(name)
    factors = [UTILISATION_FACTOR]
    if found:
        peak, words = found[1], f"{UTILISATION:.0%} of the {found[1]:,.0f} TFLOP/s of {found[0]}"
    else:
        low, high = (PEAKS[each] for each in _UNKNOWN_BETWEEN)
        peak = math.sqrt(low * high)
        factors.append(math.sqrt(high / low))
        words = f"{UTILISATION:.0%} of {peak:,.0f} TFLOP/s, between {' and '.join(_UNKNOWN_BETWEEN)}"
    if dtype == "float32":
        peak *= FLOAT32_SHARE
        factors.append(FLOAT32_FACTOR)
        words += ", an eighth of that in float32"
    doubt = math.hypot(*(math.log(factor) / QUANTILE for factor in factors))
    return Modelled(UTILISATION * peak * share, doubt, words)


def local_gpus() -> list[str]:
    """The names of this machine's NVIDIA GPUs, as torch says them; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
