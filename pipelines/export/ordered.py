"""Work spread over a pool whose results come back in order, with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    pool: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    most: int,
    cost: Callable[[Item], int] = lambda _: 1,
    budget: int | None = None,
) -> Iterator[Result]:
    """`function` of each item, in the order of the items; those in work or waiting are at most `most`.

    Args:
        cost: what an item and its result hold, such as bytes.
        budget: the costs of those in work or waiting stay below it, but for a single item.
    """
    ahead: deque[tuple[Future[Result], int]] = deque()
    held = 0
    try:
        for item in items:
            weight = cost(item)
            while ahead and (len(ahead) >= most or (budget is not None and held + weight > budget)):
                future, freed = ahead.popleft()
                held -= freed
                yield future.result()
            ahead.append((pool.submit(function, item), weight))
            held += weight
        while ahead:
            yield ahead.popleft()[0].result()
    finally:
        for future, _ in ahead:
            future.cancel()
