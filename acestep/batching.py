"""Which requests share a pass: the same settings, filled to a budget of latent frames, longest first.

Used offline on a whole bucket and by the engine on whatever it is handed, so that both cut alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchItem:
    """What batching needs to know of a request."""

    position: int
    """Where the request stands in the caller's list."""
    num_frames: int
    batch_key: Hashable


def form_batches(items: Sequence[BatchItem], *, frame_budget: int, max_batch_size: int) -> list[list[int]]:
    """Cut `items` into batches of positions.

    A batch costs its longest item times its size (shorter items are padded to it), and holds at most `frame_budget`
    frames that way unless a single item is longer. The cut depends on the items alone, not on their order.
    """
    by_key: dict[Hashable, list[BatchItem]] = defaultdict(list)
    for item in items:
        by_key[item.batch_key].append(item)
    batches: list[list[BatchItem]] = []
    for group in by_key.values():
        batch: list[BatchItem] = []
        for item in sorted(group, key=lambda item: (-item.num_frames, item.position)):
            longest = batch[0].num_frames if batch else 0
            if batch and (len(batch) == max_batch_size or longest * (len(batch) + 1) > frame_budget):
                batches.append(batch)
                batch = []
            batch.append(item)
        batches.append(batch)
    batches.sort(key=lambda batch: (-batch[0].num_frames, batch[0].position))
    return [[item.position for item in batch] for batch in batches]
