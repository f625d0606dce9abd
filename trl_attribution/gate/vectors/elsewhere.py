"""Vectors that were made elsewhere: those of an audit, or a store by itself; they are read, never written."""

from __future__ import annotations

from pathlib import Path

from trl_attribution.audit.info import AuditInfo
from trl_attribution.store import VectorStore

_AUDIT, _STORE = "audit.json", "store.json"
_WITHIN = "vectors"
"""Where an audit keeps its own, also before it is finished."""


def holds_vectors(folder: Path) -> bool:
    """Whether ``folder`` is an audit's or a store."""
    return any((folder / name).is_file() for name in (_AUDIT, _STORE, f"{_WITHIN}/{_STORE}"))


def open_vectors(folder: Path) -> VectorStore:
    """The store at ``folder``, or that of the audit there, finished or not.

    Raises:
        StoreError: there is none, it is broken, or of a newer version.
    """
    if (folder / _AUDIT).is_file():
        return AuditInfo.load(folder).open_store(folder, repeats=True)
    inside = folder / _WITHIN
    return VectorStore.open(inside if (inside / _STORE).is_file() else folder, repeats=True)
