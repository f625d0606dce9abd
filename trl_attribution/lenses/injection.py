"""Vectors put in the place of words: into the residual stream at a prompt's placeholders.

Axis letters: B batch, T tokens, D hidden size, K placeholders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trl_attribution.activations.changing import changed_stream
from trl_attribution.behaviors.encoding import as_chat
from trl_attribution.errors import ModelError
from trl_attribution.lenses.oracle_config import OracleConfig
from trl_attribution.pairs import RowFault, encode_prompt
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trl_attribution.models import LoadedModel


@dataclass(frozen=True)
class OraclePrompt:
    """A question's token ids, and which of them are placeholders."""

    ids: list[int]
    places: list[int]


def oracle_prompt(config: OracleConfig, loaded: LoadedModel, question: str, layer: int) -> OraclePrompt:
    """What an oracle on ``loaded`` is given to answer ``question`` about a vector of ``layer``.

    Raises:
        ModelError: the tokenizer splits the placeholder, or the chat template refuses the prompt.
    """
    token = _placeholder_id(config, loaded)
    text = config.prompt(question, layer)
    chats = as_chat(text, "auto", loaded.encoder, "the oracle's prompt")
    told = {} if config.enable_thinking is None else {"enable_thinking": config.enable_thinking}
    try:
        asked = [{"role": "user", "content": text}] if chats else text
        ids = encode_prompt(asked, loaded.encoder, chat_template_kwargs=told)
    except RowFault as fault:
        raise ModelError(f"the chat template of {loaded.name} refuses the oracle's prompt: {fault.detail}") from fault
    for start in range(len(ids) - config.placeholders + 1):
        places = list(range(start, start + config.placeholders))
        if all(ids[place] == token for place in places):
            return OraclePrompt(ids, places)
    raise ModelError(
        f"the tokenizer of {loaded.name} joins the oracle's placeholders {_shown(config)} with what stands beside "
        "them: its prompt has to be that of the model it was trained on. Give that model, or mend the template."
    )


def _placeholder_id(config: OracleConfig, loaded: LoadedModel) -> int:
    found = loaded.tokenizer.encode(config.placeholder, add_special_tokens=False)
    if len(found) != 1:
        raise ModelError(
            f"the tokenizer of {loaded.name} splits the oracle's placeholder {_shown(config)} into {len(found)} "
            "tokens, and a vector goes in at one. Give the model that the oracle was trained on, or a placeholder that "
            "is one token."
        )
    return int(found[0])


def _shown(config: OracleConfig) -> str:
    return repr(printable(config.placeholder, 40))


@contextmanager
def injected(
    model: PreTrainedModel,
    vectors_BD: Tensor,
    prompt: OraclePrompt,
    config: OracleConfig,
    blocks_path: str | None = None,
) -> Iterator[None]:
    """Put the vectors into passes over ``prompt`` within the block: row b of a batch is given vector b.

    Every row of a batch is the same prompt, unpadded on the left, whatever follows it. Passes of fewer tokens, as
    generation makes them after the first, are left alone.

    Raises:
        ModelError: the decoder blocks are not found, or there is no such layer.
        SettingsError: ranks share the model.
    """

    def change(stream_BTD: Tensor) -> Tensor:
        if stream_BTD.shape[1] < len(prompt.ids):
            return stream_BTD
        changed_BTD = stream_BTD.clone()
        changed_BTD[:, prompt.places] = given_at(stream_BTD[:, prompt.places], vectors_BD, config)
        return changed_BTD

    with changed_stream(model, config.layer, change, blocks_path):
        yield


def given_at(there_BKD: Tensor, vectors_BD: Tensor, config: OracleConfig) -> Tensor:
    """What placeholders hold once they are given the vectors: ``[B, K, D]``, in the dtype of ``there_BKD``."""
    given_B1D = vectors_BD.detach().to(there_BKD.device, torch.float32)[:, None]
    there = there_BKD.float()
    if config.norm_matched:
        given = torch.nn.functional.normalize(given_B1D, dim=-1) * there.norm(dim=-1, keepdim=True)
    else:
        given = given_B1D.expand_as(there)
    changed: Tensor = config.coefficient * given + (there if config.how == "add" else 0.0)
    return changed.to(there_BKD.dtype)
