"""M0 and its kin: loaded, recognized by a fingerprint, split over ranks, asked for likelihoods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.models.loading import LoadedModel, load_model, load_tokenizer
    from trl_attribution.models.source import embedded_gguf
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["LoadedModel", "embedded_gguf", "load_model", "load_tokenizer"]
