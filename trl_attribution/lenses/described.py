"""What latents are about, as far as it can be read off: tokens they promote, and tokens of a text that raise them.

Axis letters: T tokens, F latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trl_attribution.activations.tokens import token_streams
from trl_attribution.lenses.sae import SparseAutoencoder
from trl_attribution.probes.logit_lens import promoted_tokens
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel

_BEFORE, _AFTER = 8, 2
_TEXTS = 3


@dataclass(frozen=True)
class Raised:
    """A token that raises a latent, where it stands; RAW."""

    activation: float
    before: str
    token: str
    after: str

    @property
    def shown(self) -> str:
        """On one line, the token marked, printable."""
        parts = (self.before, self.token, self.after)
        before, token, after = (printable(part.replace("\n", " "), 80) for part in parts)
        return f"{before}[{token}]{after}"


@dataclass(frozen=True)
class LatentWords:
    """What one latent is about."""

    latent: int
    promotes: tuple[str, ...]
    """Tokens whose logits it raises most through M0's LM head; RAW."""
    raised_by: tuple[Raised, ...]
    """Where it is highest in the text that was read, highest first; at most one a sequence."""
    share: float
    """Share of that text's tokens on which it is above 0."""

    @property
    def shown_tokens(self) -> str:
        """The promoted tokens, printable."""
        return " ".join(printable(token.strip(), 20) for token in self.promotes)


def describe_latents(
    sae: SparseAutoencoder,
    latents: Sequence[int],
    loaded: LoadedModel,
    sequences: Sequence[Sequence[int]],
    blocks_path: str | None = None,
) -> list[LatentWords]:
    """What each of ``latents`` is about, from M0's LM head and from the tokens of ``sequences`` (token ids)."""
    chosen = list(latents)
    found: list[list[Raised]] = [[] for _ in chosen]
    active, total = torch.zeros(len(chosen)), 0
    for ids, one in zip(sequences, token_streams(loaded.model, sequences, (sae.layer,), blocks_path), strict=True):
        values = sae.encode(one[sae.layer].to(sae.decoder.device))[:, chosen].cpu()
        active += (values > 0).sum(dim=0)
        total += len(ids)
        for number, place in enumerate(values.argmax(dim=0).tolist()):
            if values[place, number] > 0:
                found[number].append(_raised(ids, place, float(values[place, number]), loaded))
    promoted = [promoted_tokens(loaded.model, loaded.tokenizer, sae.decoder[one], 6, blocks_path) for one in chosen]
    return [
        LatentWords(
            latent,
            tuple(tokens),
            tuple(sorted(texts, key=lambda one: -one.activation)[:_TEXTS]),
            float(share) / max(1, total),
        )
        for latent, tokens, texts, share in zip(chosen, promoted, found, active, strict=True)
    ]


def _raised(ids: Sequence[int], place: int, activation: float, loaded: LoadedModel) -> Raised:
    def text(start: int, stop: int) -> str:
        return str(loaded.tokenizer.decode(list(ids[max(0, start) : stop])))

    return Raised(activation, text(place - _BEFORE, place), text(place, place + 1), text(place + 1, place + 1 + _AFTER))
