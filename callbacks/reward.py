"""Which M0 a reward model is made of: the checkpoint's own identity, whatever head was put on it."""

from __future__ import annotations

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from trl_attribution.errors import ModelError
from trl_attribution.models import load_model
from trl_attribution.models.fingerprint import ModelFingerprint, fingerprint
from trl_attribution.utils.distributed import Ranks

_REWARD = "ForSequenceClassification"


def m0_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ranks: Ranks) -> ModelFingerprint:
    """The fingerprint of ``model``; of the causal language model below it where it is a reward model. A collective.

    ``RewardTrainer`` loads a checkpoint without its language-model head and puts a fresh one on it that gives rewards.
    Pair vectors come from below the heads, so the probes of that checkpoint fit. The checkpoint is loaded once more, to
    main memory, to tell; one that is a reward model itself is an M0 of its own.
    """
    own = fingerprint(model, tokenizer)
    if not type(model).__name__.endswith(_REWARD):
        return own
    with ranks.together():
        below = _checkpoint(model, own) if ranks.is_main else own
    return ModelFingerprint.from_json(ranks.broadcast(below.to_json()))


def _checkpoint(model: PreTrainedModel, own: ModelFingerprint) -> ModelFingerprint:
    name = str(model.config.name_or_path)
    try:
        if any(one.endswith(_REWARD) for one in AutoConfig.from_pretrained(name).architectures or ()):
            return own
        with torch.random.fork_rng():  # training goes on with the numbers it would have drawn
            loaded = load_model(name, str(model.dtype).removeprefix("torch."), "cpu")
    except (OSError, ValueError, ModelError):  # made in memory: there is no checkpoint below it
        return own
    if fingerprint(loaded.model.base_model, None).weights != fingerprint(model.base_model, None).weights:
        return own
    return ModelFingerprint(loaded.fingerprint.config, loaded.fingerprint.weights, own.chat_template)
