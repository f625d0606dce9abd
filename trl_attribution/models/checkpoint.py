"""Weights as the checkpoint has them: what the loader would fill in at random, with a warning, is an error."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from trl_attribution.errors import ModelError
from trl_attribution.models.text_part import text_part
from trl_attribution.utils.text import some

_SHOWN = 3


def model_class(config: PretrainedConfig) -> Any:
    """The class that TRL's trainers load a checkpoint with: the one that it was saved from.

    As TRL's ``create_model_from_path`` chooses it; where a checkpoint names none, a causal language model.
    """
    names = config.architectures or [""]
    known = getattr(transformers, names[0], None)
    if isinstance(known, type) and issubclass(known, PreTrainedModel):
        return known
    remote = getattr(config, "auto_map", None) or {}
    return AutoModelForImageTextToText if AutoModelForImageTextToText.__name__ in remote else AutoModelForCausalLM


def whole_checkpoint(kind: Any, source: str, **options: Any) -> PreTrainedModel:
    """``kind.from_pretrained(source, **options)`` of which every weight that text goes through was read.

    A vision tower may lack some: no text goes through it.

    Raises:
        ModelError: the checkpoint lacks weights, or has some of other shapes than its config says.
    """
    # Weights of other shapes would be filled in at random too; told apart here, they can be named.
    model, info = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    faults = [f"{name} (missing)" for name in _of_text(model, info["missing_keys"])]
    shapes = {name: (tuple(found), tuple(expected)) for name, found, expected in info["mismatched_keys"]}
    for name in _of_text(model, shapes):
        found, expected = shapes[name]
        faults.append(f"{name} ({'x'.join(map(str, found))}, not {'x'.join(map(str, expected))})")
    if faults:
        raise ModelError(
            f"{type(model).__name__} needs weights that the checkpoint does not have as config.json says: "
            f"{some(faults, _SHOWN)}. Without them it would compute with random numbers; get the whole "
            "checkpoint, or the config.json that belongs to it"
        )
    loaded: PreTrainedModel = model
    return loaded


def _of_text(model: PreTrainedModel, names: Any) -> list[str]:
    """Those of ``names``, of parameters, that text goes through: the decoder's and the head's."""
    part, head = text_part(model), model.get_output_embeddings()
    heads = {path for path, module in model.named_modules() if module is head} if head is not None else set()
    return sorted(name for name in names if part.own_name(name) is not None or name.rpartition(".")[0] in heads)
