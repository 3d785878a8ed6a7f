"""Compiled blocks: what `torch.compile` is told, and where it keeps what it made."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import nn

from acestep.cache import cache_folder

VARIANTS = 64
"""Ways of calling a block that are compiled before torch gives up: with and without each mask, one row or more."""


def compile_blocks(blocks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile each block for any number of rows, frames and condition tokens; the work is done at the first calls.

    The blocks share what is compiled, and processes that come later find it in the cache folder (another may be named
    by `TORCHINDUCTOR_CACHE_DIR`).
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for block in blocks:
        block.compile(backend=backend, dynamic=True)
