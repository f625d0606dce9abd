"""The likelihood score of pairs: how far a description of a behavior moves M0 from the rejected to the chosen response.

Logit-Linear Selection (arXiv 2602.04863), with s the description as a system prompt and x the pair's prompt::

    ([log p(y+|s,x) - log p(y-|s,x)] - [log p(y+|x) - log p(y-|x)]) / (tokens of y+ and of y-)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trl_attribution.activations import PromptGroup
from trl_attribution.activations.config import Path
from trl_attribution.activations.likelihood import LikelihoodEngine
from trl_attribution.behaviors.describing import Way, check_special_tokens, described, has_system_role, way_for
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import EncodedPair, Encoding, Pair, RowFault, encode_pairs

LeftOut = Literal["no_prompt", "no_user_message", "template", "tokens_differ", "too_long"]
"""Why a pair has no likelihood: no token stands before its responses; it has no user message to put the description
into; the chat template refuses it with one; its responses have other tokens then; or the model has no place for so
many."""


@dataclass(frozen=True)
class PairLikelihood:
    """What M0 thinks of one pair."""

    described: float
    """``log p(y+|s,x) - log p(y-|s,x)``, in nats."""
    plain: float
    """``log p(y+|x) - log p(y-|x)``, in nats."""
    tokens: int
    """Of both responses."""

    @property
    def score(self) -> float:
        """Nats a response token; flipping the pair negates it."""
        return (self.described - self.plain) / self.tokens


Answer = PairLikelihood | LeftOut


class Witness:
    """Asks M0 about pairs under descriptions.

    A response is read from its start, as far as the audit's ``max_length`` leaves room for it after the prompt; the
    prompt is read whole, with a description and without.
    """

    def __init__(
        self, loaded: LoadedModel, encoding: Encoding, token_budget: int | None = None, path: Path = "auto"
    ) -> None:
        self.engine = LikelihoodEngine(loaded.model, token_budget, path)
        self._encoder = loaded.encoder
        self._most = encoding.max_length
        self._system_role = bool(self._encoder.chat_template) and has_system_role(self._encoder)

    def check(self, name: str, description: str) -> None:
        """Refuse a description that would not stay inside its message.

        Raises:
            ProbeError: it holds a special token of the model.
        """
        check_special_tokens(description, self._encoder, name)

    def way(self, pair: Pair) -> Way | None:
        """Where a description stands in ``pair``."""
        return way_for(pair.prompt, self._system_role)

    def ask(
        self,
        pairs: Sequence[Pair],
        descriptions: Mapping[str, str],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, list[Answer]]:
        """For each description by name what M0 thinks of each of ``pairs``; without one they are computed once.

        Raises:
            ModelError: as :class:`LikelihoodEngine` raises.
        """
        plain = [self._trimmed(one) for one in self._encoded(pairs)]
        asked = {
            name: [self._matching(bare, one) for bare, one in zip(plain, self._told(pairs, description), strict=True)]
            for name, description in descriptions.items()
        }
        # What is computed, by description (None without one) and pair; a dictionary keeps its order.
        groups: dict[tuple[str | None, int], PromptGroup] = {}
        for place, bare in enumerate(plain):
            for name, answers in asked.items():
                told = answers[place]
                if isinstance(bare, PromptGroup) and isinstance(told, PromptGroup):
                    groups[None, place], groups[name, place] = bare, told
        sums = self.engine.log_probs(list(groups.values()), on_progress)
        margin = {key: chosen - rejected for key, (chosen, rejected) in zip(groups, sums, strict=True)}
        return {
            name: [
                told
                if isinstance(told, str)
                else PairLikelihood(margin[name, place], margin[None, place], sum(map(len, told.responses)))
                for place, told in enumerate(answers)
            ]
            for name, answers in asked.items()
        }

    def _encoded(self, pairs: Sequence[Pair]) -> list[EncodedPair | RowFault]:
        return encode_pairs(pairs, self._encoder, Encoding(max_length=None))

    def _told(self, pairs: Sequence[Pair], description: str) -> list[EncodedPair | LeftOut]:
        """The pairs with the description in front."""
        ways = [self.way(pair) for pair in pairs]
        changed = [
            replace(pair, prompt=described(pair.prompt, description, way))
            for pair, way in zip(pairs, ways, strict=True)
            if way is not None
        ]
        encoded = iter(self._encoded(changed))
        found: list[EncodedPair | LeftOut] = []
        for way in ways:
            one = None if way is None else next(encoded)
            found.append("no_user_message" if one is None else "template" if isinstance(one, RowFault) else one)
        return found

    def _trimmed(self, one: EncodedPair | RowFault) -> PromptGroup | LeftOut:
        """Both responses of a pair, as far as the audit reads them."""
        if isinstance(one, RowFault):
            return "template"
        prompt = one.chosen.prompt_ids
        if not prompt:
            return "no_prompt"
        most = None if self._most is None else max(1, self._most - len(prompt))
        return PromptGroup(prompt, [side.response_ids[:most] for side in (one.chosen, one.rejected)])

    def _matching(self, bare: PromptGroup | LeftOut, told: EncodedPair | LeftOut) -> PromptGroup | LeftOut:
        """The very responses of ``bare`` after the prompt of ``told``."""
        if isinstance(bare, str) or isinstance(told, str):
            return bare if isinstance(bare, str) else told  # type: ignore[return-value]  # told is no group
        for mine, theirs in zip(bare.responses, (told.chosen, told.rejected), strict=True):
            if list(mine) != theirs.response_ids[: len(mine)]:
                return "tokens_differ"
        group = PromptGroup(told.chosen.prompt_ids, bare.responses)
        places = self.engine.limits.positions
        return "too_long" if places is not None and group.longest > places else group


def share_towards(answers: Iterable[Answer]) -> tuple[int, int]:
    """How many pairs the description moves towards their chosen response, of how many that have a likelihood."""
    scores = [answer.score for answer in answers if isinstance(answer, PairLikelihood)]
    return sum(score > 0 for score in scores), len(scores)
