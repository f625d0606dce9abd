"""Rows of any dataset format, in and out: the rest of the library never asks what kind of file it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.pairs.rows.opening import OpenDataset, open_dataset, open_rows
    from trl_attribution.pairs.rows.rows import Row, RowSource
    from trl_attribution.pairs.rows.writers import write_rows
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["OpenDataset", "Row", "RowSource", "open_dataset", "open_rows", "write_rows"]
