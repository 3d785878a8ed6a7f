"""Batches hold what may share a pass, keep to the budget, and lose nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from acestep.batching import BatchItem, form_batches

items_strategy = st.lists(st.tuples(st.integers(1, 2600), st.sampled_from("abc")), max_size=60)


@given(items_strategy, st.integers(100, 20_000), st.integers(1, 12))
def test_every_item_once_within_the_budget(pairs: list, budget: int, size: int) -> None:
    items = [BatchItem(position, frames, key) for position, (frames, key) in enumerate(pairs)]
    batches = form_batches(items, frame_budget=budget, max_batch_size=size)
    assert sorted(position for batch in batches for position in batch) == list(range(len(items)))
    for batch in batches:
        frames = [items[position].num_frames for position in batch]
        assert len({items[position].batch_key for position in batch}) == 1
        assert len(batch) <= size
        assert len(batch) == 1 or max(frames) * len(batch) <= budget
        assert frames == sorted(frames, reverse=True)
    longest = [max(items[position].num_frames for position in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@given(items_strategy, st.randoms())
def test_the_cut_does_not_depend_on_the_order(pairs: list, random) -> None:
    items = [BatchItem(position, frames, key) for position, (frames, key) in enumerate(pairs)]
    shuffled = list(items)
    random.shuffle(shuffled)
    cut = {"frame_budget": 5000, "max_batch_size": 8}
    assert form_batches(items, **cut) == form_batches(shuffled, **cut)
