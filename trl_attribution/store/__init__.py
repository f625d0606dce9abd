"""Pair vectors on disk: shards, resume, integrity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.store.settings import StoreSettings
    from trl_attribution.store.vector_store import ShardWriter, VectorBlock, VectorStore, VectorView
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["ShardWriter", "StoreSettings", "VectorBlock", "VectorStore", "VectorView"]
