"""Devices and dtypes: which to take, and what their errors mean."""

from __future__ import annotations

import torch

from acestep.problems import nearest

FLOAT8 = torch.float8_e4m3fn
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float8": FLOAT8}
"""By name; float8 stands for the transformer's large layers in it, and all else in bfloat16."""

_POISONED = (
    *("device-side assert", "illegal memory access", "unspecified launch failure", "misaligned address"),
    *("illegal instruction", "uncorrectable ecc", "cublas_status_execution_failed", "cuda error: unknown error"),
)


def best_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or the best there is: CUDA, Apple's GPU, the CPU.

    Raises:
        ValueError: for a device that this machine does not have.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: {str(device)!r} is not allowed; it must be like cpu, cuda, cuda:1 or mps") from None
    missing = chosen.type == "cuda" and not torch.cuda.is_available()
    missing = missing or (chosen.type == "mps" and not torch.backends.mps.is_available())
    if missing:
        raise ValueError(f"device: {str(device)!r} is not allowed; this machine (or this build of torch) has none")
    return chosen


def device_name(device: torch.device) -> str:
    """What a device is called, for records: `NVIDIA H100 80GB HBM3`, or `cpu x2` with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu x{torch.get_num_threads()}" if device.type == "cpu" else device.type


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast and safe, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A torch dtype from its name or itself.

    Raises:
        ValueError: for any that is not in `DTYPES`.
    """
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        hint = nearest(name, DTYPES)
        raise ValueError(
            f"dtype: {name!r} is not allowed; allowed: {', '.join(DTYPES)}" + (f"; {hint}" if hint else "")
        )
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` and the like, as `parse_dtype` takes it."""
    return "float8" if dtype == FLOAT8 else str(dtype).removeprefix("torch.")


def require_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Make sure that a device computes in a dtype; a CPU does in each.

    Raises:
        ValueError: for float8 on a GPU without it.
    """
    if dtype != FLOAT8 or device.type == "cpu":
        return
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        return
    allowed = ", ".join(name for name in DTYPES if name != "float8")
    raise ValueError(
        f"dtype: 'float8' is not allowed on {device_name(device)}; it needs an NVIDIA GPU of compute capability 8.9 or "
        f"higher, such as L4, RTX 4090 and H100; allowed here: {allowed}"
    )


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device (or the machine) ran out of memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error).lower()


def is_poisoned(error: BaseException) -> bool:
    """Whether the device's context is broken for this process: nothing after this error can be trusted."""
    if is_out_of_memory(error):
        return False
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(mark in text for mark in _POISONED)
