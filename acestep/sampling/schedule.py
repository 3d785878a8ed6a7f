"""The noise schedule of the flow: sigma from 1 (noise) to 0 (music), spent unevenly by a shift."""

from __future__ import annotations

from collections.abc import Sequence

import torch

SHIFT = 3.0
SIGMA_MIN = 0.001
TIMESTEPS = 1000


def shifted(sigma: torch.Tensor) -> torch.Tensor:
    """s x / (1 + (s - 1) x): more of the steps go to the noisy end."""
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)


def flow_sigmas(num_inference_steps: int, sigma_max: float = 1.0) -> torch.Tensor:
    """Sigmas of `n` steps and the final 0: float32 `[n + 1]`.

    The shift is applied to the end points and again to the whole line, as the original does
    (`FlowMatchEulerDiscreteScheduler`, built with shifted bounds and shifting once more in `set_timesteps`).
    """
    high, low = shifted(torch.tensor([sigma_max, SIGMA_MIN], dtype=torch.float64)).tolist()
    line = torch.linspace(high, low, num_inference_steps, dtype=torch.float64)
    return torch.cat([shifted(line), torch.zeros(1, dtype=torch.float64)]).float()


def chosen_sigmas(steps: Sequence[int]) -> torch.Tensor:
    """Sigmas of some steps (1-based, rising) of a schedule of `max(steps)` steps, shifted a third time as the original
    does when it is handed sigmas, and the final 0: float32 `[len(steps) + 1]`."""
    whole = flow_sigmas(max(steps))
    chosen = shifted(whole[torch.tensor(steps) - 1].double())
    return torch.cat([chosen, torch.zeros(1, dtype=torch.float64)]).float()
