"""Resampling: tones come through clean, lengths are exact; `upstream` itself is held by the golden vectors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.resample import Quality, resample

RATES = (8_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000)


def tone(hz: float, rate: int, seconds: float = 0.5) -> torch.Tensor:
    return torch.sin(2 * math.pi * hz * torch.arange(int(rate * seconds), dtype=torch.float64) / rate).float()


def snr_db(hz: float, orig: int, new: int, quality: Quality) -> float:
    want = tone(hz, new)
    got = resample(tone(hz, orig), orig, new, quality)
    middle = slice(new // 10, -new // 10)  # the ends see the silence outside
    noise = (got - want)[middle].double().square().mean()
    return 10 * math.log10(want[middle].double().square().mean() / noise)


@pytest.mark.parametrize(("hz", "least"), [(100, 100), (1000, 100), (10_000, 100), (18_000, 95), (20_000, 38)])
def test_tones_come_through_clean(hz: int, least: float) -> None:
    assert snr_db(hz, 44_100, 48_000, "kaiser") > least
    assert snr_db(hz, 48_000, 44_100, "kaiser") > least


def test_upstream_is_what_it_is() -> None:
    assert 15 < snr_db(18_000, 44_100, 48_000, "upstream") < 30
    assert snr_db(1000, 44_100, 48_000, "upstream") > 60


@pytest.mark.parametrize(("hz", "orig", "new"), [(15_000, 44_100, 22_050), (22_500, 48_000, 44_100)])
def test_what_the_lower_rate_cannot_hold_is_removed(hz: int, orig: int, new: int) -> None:
    assert resample(tone(hz, orig), orig, new)[2000:-2000].abs().max() < 1e-4


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3000),
    st.sampled_from(RATES),
    st.sampled_from(RATES),
    st.sampled_from(["kaiser", "upstream"]),
    st.lists(st.integers(1, 3), max_size=2),
)
def test_lengths_and_leading_dimensions(length: int, orig: int, new: int, quality: Quality, lead: list[int]) -> None:
    waveform = torch.randn(*lead, length, generator=torch.Generator().manual_seed(length))
    got = resample(waveform, orig, new, quality)
    assert got.shape == (*lead, math.ceil(length * new / orig))
    assert got.dtype == torch.float32
    first = resample(waveform.reshape(-1, length)[0], orig, new, quality)
    torch.testing.assert_close(got.reshape(-1, got.shape[-1])[0], first, rtol=1e-4, atol=1e-5)


def test_equal_rates_change_nothing() -> None:
    waveform = torch.randn(2, 100)
    assert torch.equal(resample(waveform, 44_100, 44_100), waveform)


def test_half_precision_is_resampled_in_full() -> None:
    waveform = tone(1000, 44_100).bfloat16()
    torch.testing.assert_close(resample(waveform, 44_100, 48_000), resample(waveform.float(), 44_100, 48_000))


@pytest.mark.parametrize(("orig", "new"), [(0, 48_000), (44_100, -1)])
def test_rates_must_be_positive(orig: int, new: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        resample(torch.zeros(2, 100), orig, new)


def test_rates_without_a_common_factor_are_refused_not_swapped_to_disk() -> None:
    with pytest.raises(ValueError, match="too small a common factor"):
        resample(torch.zeros(2, 100), 44_101, 48_000)


def test_unknown_quality_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown resampling quality 'best'; known: kaiser, upstream"):
        resample(torch.zeros(2, 100), 44_100, 48_000, "best")  # type: ignore[arg-type]
