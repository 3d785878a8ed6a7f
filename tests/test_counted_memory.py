"""Memory counted on the meta device: tensor by tensor, and against what a CPU takes for the same songs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from acestep.checkpoint import Checkpoint
from acestep.networks import Networks
from benchmarks.counted_memory import CountedMemory, WithoutData
from benchmarks.memory import Case, make_songs
from benchmarks.memory_meters import watching

MIB = 2**20


def mebibyte() -> torch.Tensor:
    return torch.empty(MIB // 4, device="meta")


def test_storages_count_from_their_making_to_their_end() -> None:
    before = mebibyte()
    with torch.no_grad(), CountedMemory() as counted:
        before.view(2, -1).t()
        assert counted.read() == (0, 0), "what is handed in does not count, nor do views of it"
        one = before + 1
        rows = one.view(4, -1).unbind()
        del one
        assert counted.held == MIB, "a view keeps its storage"
        two = rows[0].clone()
        assert counted.held == MIB + MIB // 4
        del rows, two
        assert counted.read() == (MIB + MIB // 4, 0)
        counted.restart()
        (before + 1).add_(1).mul(2)
        torch.zeros(100)
        assert counted.read() == (2 * MIB, 0), "in place takes nothing; other devices are not counted"


def test_a_convolution_copies_what_does_not_lie_in_a_row() -> None:
    convolution = nn.Conv1d(8, 8, 3, padding=1, groups=8, bias=False, device="meta")
    straight, turned = torch.empty(1, 8, 1000, device="meta"), torch.empty(1, 1000, 8, device="meta").transpose(1, 2)
    peaks = []
    for x in (straight, turned):
        with torch.no_grad(), CountedMemory() as counted:
            convolution(x)
        peaks.append(counted.peak)
    assert peaks == [straight.nbytes, 2 * straight.nbytes]


def test_attention_keeps_no_scores() -> None:
    query, key = (torch.empty(1, 4, length, 64, device="meta") for length in (1000, 300))
    with torch.no_grad(), WithoutData(), CountedMemory() as counted:
        attended = nn.functional.scaled_dot_product_attention(query, key, key)
        assert attended.shape == query.shape and attended.transpose(1, 2).is_contiguous()
    assert counted.peak == query.nbytes


@pytest.mark.parametrize("case", [Case(1, 20.0, 60), Case(3, 10.0, 200)], ids=str)
def test_the_count_is_what_a_cpu_takes(case: Case) -> None:
    real = Networks.load(Checkpoint.open("tiny"), torch.device("cpu"), torch.float32)
    parts = (real.prompt_encoder, real.transformer, real.codec)
    counted = Networks(*(copy.deepcopy(part).to("meta") for part in parts), torch.device("meta"))  # type: ignore[arg-type]
    peaks, kept = [], []
    for networks in (real, counted):
        with watching(networks.device) as watch:
            make_songs(networks, [case.prepared()] * case.batch, watch)
        peaks.append(watch.peaks)
        kept.append(watch.kept["condition"])
    assert kept[1] == pytest.approx(kept[0], rel=0.02)
    for stage in ("condition", "denoise"):
        assert peaks[1][stage] == pytest.approx(peaks[0][stage], rel=0.02), stage
    # A CPU's convolutions fill channels up to sixteen, of which the tiny decoder has four.
    assert peaks[1]["decode"] < peaks[0]["decode"] < 2.5 * peaks[1]["decode"]
