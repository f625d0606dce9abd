"""The dtypes that models compute in and vectors are stored in, by name: PyTorch is not needed to check one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float16", "bfloat16", "float32")


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that PyTorch has under one of :data:`DTYPES`."""
    import torch

    found: torch.dtype = getattr(torch, name)
    return found
