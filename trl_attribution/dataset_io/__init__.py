"""Rows of any dataset format, in and out: the rest of the library never asks what kind of file it reads."""

from trl_attribution.dataset_io.opening import OpenDataset, open_dataset, open_rows
from trl_attribution.dataset_io.rows import Row, RowSource
from trl_attribution.dataset_io.writers import write_rows

__all__ = ["OpenDataset", "Row", "RowSource", "open_dataset", "open_rows", "write_rows"]
