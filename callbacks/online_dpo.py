"""The pairs of an online DPO run: what is generated is seen at once, which response is chosen once it is rewarded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from trl_attribution.callbacks.rollouts import Rows
from trl_attribution.utils.distributed import Ranks

_HOOKED = ("_forward", "_calculate_rewards_from_functions", "training_step")


class OnlinePairHook:
    """Hands over the pairs of each step of TRL's ``OnlineDPOTrainer``: groups of two with the advantages 1 and -1.

    Tokens are those of the forwards that are trained on, cut as they are; the rewards are looked at after the step,
    when the trainer has taken its penalty for a missing end of text off them.

    Args:
        trainer: the trainer.
        ranks: this run's processes.
        take: called with the rows of all ranks, those of a pair side by side, on all ranks.
    """

    def __init__(self, trainer: Any, ranks: Ranks, take: Callable[[Rows], None]) -> None:
        self._trainer, self._ranks, self._take = trainer, ranks, take
        self._own: dict[str, Any] = {}
        """What stood on the trainer itself in the place of the hooks; None where its class has the method."""
        self._tokens: tuple[torch.Tensor, ...] = ()
        self._step, self._groups = -1, 0
        self._rewarded: tuple[Sequence[Any], Sequence[Any], torch.Tensor] | None = None

    def attach(self) -> None:
        """Put the hooks on the trainer; :meth:`detach` takes them off again."""
        trainer = self._trainer
        forward, reward, train = (getattr(trainer, name) for name in _HOOKED)
        self._own = {name: vars(trainer).get(name) for name in _HOOKED}

        def forward_and_note(model: Any, *tokens: Any, **further: Any) -> Any:
            self._tokens = tokens[:4]
            return forward(model, *tokens, **further)

        def reward_and_note(prompts: Any, completions: Any, *ids: Any, **further: Any) -> Any:
            rewards = reward(prompts, completions, *ids, **further)
            self._rewarded = (prompts, completions, rewards)
            return rewards

        def train_and_tell(model: Any, inputs: Any, *further: Any) -> Any:
            loss = train(model, inputs, *further)
            self._tell(inputs.get("source"))
            return loss

        for name, hook in zip(_HOOKED, (forward_and_note, reward_and_note, train_and_tell), strict=True):
            setattr(trainer, name, hook)

    def detach(self) -> None:
        """Take the hooks off."""
        for name, own in self._own.items():
            vars(self._trainer).pop(name, None)
            if own is not None:
                setattr(self._trainer, name, own)
        self._own = {}

    def _tell(self, sources: Sequence[Any] | None) -> None:
        assert self._rewarded is not None  # a step without rewards has failed
        (prompts, completions, rewards), self._rewarded = self._rewarded, None
        sides = list(_tokens(self._tokens, self._trainer.max_length))
        half = len(sides) // 2
        is_first_better = (rewards[:half] >= rewards[half:]).tolist()
        mine = []
        for place, first in enumerate(is_first_better):
            for side, good in ((place, first), (half + place, not first)):
                row = {"prompt": prompts[side], "completion": completions[side]}
                row |= {} if sources is None else {"source": sources[place]}
                row |= {"advantage": 1.0 if good else -1.0, "reward": float(rewards[side])}
                mine.append({**row, "prompt_ids": sides[side][0], "completion_ids": sides[side][1]})
        rows = [row for rank in self._ranks.gather(mine) for row in rank]
        step = int(self._trainer.state.global_step) + 1
        self._groups = self._groups if step == self._step else 0
        for place, row in enumerate(rows):
            row |= {"step": step, "group": self._groups + place // 2}
        self._step, self._groups = step, self._groups + len(rows) // 2
        self._take(rows)


def _tokens(noted: tuple[torch.Tensor, ...], limit: int) -> Iterator[tuple[list[int], list[int]]]:
    """Of each response its prompt and its own token ids, without padding; of what is too long the prompt is cut."""
    prompts, prompt_mask, completions, completion_mask = (one.cpu() for one in noted)
    cut = max(prompts.size(1) + completions.size(1) - limit, 0)
    for row in range(len(prompts)):
        kept = prompts[row, cut:][prompt_mask[row, cut:] != 0]
        yield kept.tolist(), completions[row][completion_mask[row] != 0].tolist()


def add_to_stats(trainer: Any, metrics: Mapping[str, float]) -> None:
    """Where an online DPO trainer keeps what goes into its next log; nothing for a trainer that has no such place."""
    stats = getattr(trainer, "stats", None)
    if isinstance(stats, dict):
        stats.update({name: [value] for name, value in metrics.items()})


def clear_stats(trainer: Any) -> None:
    """Take out again what was logged: the trainer takes the mean of every list that it keeps, of an empty one too."""
    stats = getattr(trainer, "stats", None)
    if isinstance(stats, dict):
        for name in [one for one in stats if one.startswith("attribution/")]:
            del stats[name]
