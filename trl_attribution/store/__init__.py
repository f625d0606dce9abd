"""Pair vectors on disk: shards, resume, integrity."""

from trl_attribution.store.settings import StoreSettings
from trl_attribution.store.vector_store import ShardWriter, VectorBlock, VectorStore, VectorView

__all__ = ["ShardWriter", "StoreSettings", "VectorBlock", "VectorStore", "VectorView"]
