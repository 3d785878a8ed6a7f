"""The picture of a profile: what its bars cover, and that it is whole."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.timeline import PIXELS, Lane, Span, busy_shares, draw_timeline

WIDE = 100


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10 * WIDE), st.integers(0, 200))))
def test_bars_cover_what_the_spans_cover_together(spans: list[tuple[int, int]]) -> None:
    tenths = {tenth for start, length in spans for tenth in range(start, min(start + length, 10 * WIDE))}
    shares = busy_shares([(start / 10, (start + length) / 10) for start, length in spans], WIDE)
    assert all(0 <= share <= 1 for share in shares)
    assert sum(shares) * PIXELS == pytest.approx(len(tenths) / 10, abs=1e-6)


@pytest.mark.parametrize("length", [0.5, 80.0, 12_345.0, 9e6])
def test_a_picture_is_whole_at_any_length(length: float) -> None:
    stages = [Span("condition", 5.0, 5.0 + length / 10), Span("denoise", 5.0 + length / 10, 5.0 + length)]
    spans = [Span("a<b>", 5.0 + length * part, 5.0 + length * (part + 0.01)) for part in (0.0, 0.05, 0.5, 0.99)]
    root = ElementTree.fromstring(draw_timeline("a & b", stages, [Lane("a<b>" * 20, "1%", spans), Lane("b", "0%", [])]))
    words = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a & b" in words and any(each.startswith("a<b>a<b>") for each in words)
    assert len([each for each in words if each.endswith(" ms") or each.endswith(" s")]) >= 5, "an axis"
    assert max(map(len, root.attrib["viewBox"].split())) < 6
