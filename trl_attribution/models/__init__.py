"""M0 and its kin: loaded, recognized by a fingerprint, split over ranks, asked for likelihoods."""

from trl_attribution.models.loading import LoadedModel, load_model, load_tokenizer
from trl_attribution.models.source import embedded_gguf

__all__ = ["LoadedModel", "embedded_gguf", "load_model", "load_tokenizer"]
