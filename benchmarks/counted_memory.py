"""Memory counted without computing: the real code runs on the meta device, where tensors have a shape but no data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountedMemory(TorchDispatchMode):
    """Bytes of the storages that operations make within this context, from their making to their end.

    What is there before, such as weights, does not count. Use it without autograd and outside of inference mode,
    which hides the steps of composed operations.
    """

    def __init__(self, device: str = "meta"):
        super().__init__()
        self.held = 0
        """Bytes now."""
        self.peak = 0
        """The most there were since `restart`."""
        self._device = device

    def restart(self) -> None:
        """Begin another peak."""
        self.peak = self.held

    def read(self) -> tuple[int, int]:
        """Peak, and what is held now."""
        return self.peak, self.held

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = {storage._cdata for storage in self._storages((args, kwargs))}
        inside = _inside(func, args)
        result = func(*args, **kwargs)
        for storage in self._storages(result):
            if storage._cdata not in known:  # else a view of what was handed in
                known.add(storage._cdata)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.held + inside)
        return result

    def _storages(self, tree: Any) -> Iterator[torch.UntypedStorage]:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self._device:
                yield leaf.untyped_storage()

    def _release(self, size: int) -> None:
        self.held -= size


def _inside(func: Callable[..., Any], args: tuple[Any, ...]) -> int:
    """What a kernel takes for itself and gives back: convolutions copy an input that does not lie in a row."""
    if func is not torch.ops.aten.convolution.default or args[0].is_contiguous():
        return 0
    if args[0].ndim == 4 and args[0].is_contiguous(memory_format=torch.channels_last):
        return 0
    return args[0].nbytes


class WithoutData(TorchFunctionMode):
    """Lets code run on the meta device that would look at data; attention is one kernel there, as on a GPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if first is None or not first.is_meta:
            return func(*args, **kwargs)
        if func is torch.Tensor.__bool__:  # a mask is asked whether it is all ones
            return True
        if func is torch.Tensor.cpu:
            return torch.empty(first.shape, dtype=first.dtype)
        if func is F.scaled_dot_product_attention:  # [B, H, T, D], lying as [B, T, H, D] as flash attention leaves it
            batch, heads, length, _ = first.shape
            return first.new_empty(batch, length, heads, args[2].shape[-1]).transpose(1, 2)
        return func(*args, **kwargs)
