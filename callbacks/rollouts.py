"""The rollouts of a GRPO or RLOO run: taken as they are generated, kept on disk, one file at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_attribution.callbacks.capture import CaptureError
from trl_attribution.callbacks.checkpoint import does_something
from trl_attribution.callbacks.config import CallbackConfig
from trl_attribution.callbacks.reference_pass import is_peft
from trl_attribution.errors import SettingsError
from trl_attribution.pairs import tokenizer_of
from trl_attribution.utils.atomic import write_lines
from trl_attribution.utils.distributed import Ranks

Rows = list[dict[str, Any]]
GENERATES = "_generate_and_score_completions"
"""The method of a trainer that samples and scores; one without it does so within its step."""
_SAME = 1e-5
_LOGS = "audit the logs afterwards (log_completions=True): trl-attribution audit MODEL completions/"
_REFUSED = {
    "dataset": "dataset: what is trained on is generated in the run. Leave it out.",
    "on_flag": "on_flag='skip': a group is trained on as it was generated. Use on_flag='log' or 'stop'.",
    "tools": f"tools: their answers stand inside the completions, but the model did not say them. Instead, {_LOGS}",
    "rollout_func": f"rollout_func: what it puts into a completion need not be the model's own. Instead, {_LOGS}",
    "names": "reward_funcs: two have one name, and TRL keeps the rewards of one alone. Give each its own (__name__).",
    "images": "the prompts hold images, and only text can be audited. Leave the callback out.",
    "adapter": "the adapter does something before its first step, and with beta=0 no copy of it is kept: M0 would be "
    "taken for the model below it. Set beta above 0, or merge the adapter into the model first.",
}
"""Settings that rollouts cannot be audited with, and the way out."""


def check_rollouts(trainer: Any, config: CallbackConfig, dataset: Any) -> None:
    """Refuse what the rollouts of ``trainer`` cannot be audited with.

    Raises:
        SettingsError: says what, and the way out.
    """
    model = trainer.model
    columns = set(getattr(trainer.train_dataset, "column_names", None) or ())
    faults = {
        "dataset": dataset is not None,
        "on_flag": config.on_flag == "skip",
        "tools": any(getattr(trainer, name, None) for name in ("tools", "environments", "environment_factories")),
        "rollout_func": getattr(trainer, "rollout_func", None) is not None,
        "names": len(set(trainer.reward_func_names)) < len(trainer.reward_func_names),
        "images": bool(columns & {"image", "images"}),
        "adapter": trainer.args.beta == 0 and is_peft(model) and does_something(model),
    }
    for name, is_so in faults.items():
        if is_so:
            raise SettingsError(_REFUSED[name])


class RolloutHook:
    """Hands over what a trainer generates to train on: the rollouts of all ranks together, groups side by side.

    Groups may straddle ranks, so all of them get all rows. What is generated to evaluate on is left alone, and what is
    trained on several times (``num_iterations``) is generated once.

    Args:
        trainer: a GRPO or RLOO trainer of TRL.
        ranks: this run's processes.
        take: called with the rows, G of each group in a row, on all ranks.
    """

    def __init__(self, trainer: Any, ranks: Ranks, take: Callable[[Rows], None]) -> None:
        self._trainer, self._ranks, self._take = trainer, ranks, take
        self._generate: Callable[..., Any] | None = None
        self._step = self._group = -1

    def attach(self) -> None:
        """Put the hook on the trainer; :meth:`detach` takes it off again."""
        self._generate = generate = getattr(self._trainer, GENERATES)

        def generate_and_tell(inputs: Any) -> Any:
            output = generate(inputs)
            if self._trainer.model.training:
                self._take(self._rows(inputs, output))
            return output

        setattr(self._trainer, GENERATES, generate_and_tell)

    def detach(self) -> None:
        """Take the hook off."""
        if self._generate is not None:
            vars(self._trainer).pop(GENERATES, None)
            if getattr(self._trainer, GENERATES) != self._generate:  # somebody else's was there before
                setattr(self._trainer, GENERATES, self._generate)
        self._generate = None

    def _rows(self, inputs: Sequence[Mapping[str, Any]], output: Mapping[str, Any]) -> Rows:
        padding = tokenizer_of(self._trainer.processing_class).pad_token_id
        mine = [_row(example, *tokens) for example, tokens in zip(inputs, _tokens(output, padding), strict=True)]
        self._decode(mine)
        rows = [row for rank in self._ranks.gather(mine) for row in rank]
        logged, size = self._trainer._logs, self._trainer.num_generations  # noqa: SLF001  # of all ranks together
        advantages = list(logged["advantages"])[-len(rows) :]
        if len(advantages) != len(rows) or any(
            not math.isclose(row["advantage"], advantage, abs_tol=_SAME)
            for row, advantage in zip(rows, advantages, strict=False)
        ):
            raise CaptureError(
                f"{type(self._trainer).__name__} trains on other rollouts than it has generated and scored. Instead, "
                f"{_LOGS}"
            )
        rewards = {name: list(found)[-len(rows) :] for name, found in logged["rewards"].items()}
        step = int(self._trainer.state.global_step) + 1
        self._group = self._group if step == self._step else -1
        self._step = step
        for place, row in enumerate(rows):
            self._group += place % size == 0
            each = {name: found[place] for name, found in rewards.items()}
            row |= {"step": step, "group": self._group, "reward": self._total(each)}
            row |= {f"reward/{name}": None if math.isnan(one) else one for name, one in each.items()}
            if not row.pop("counts"):
                row["advantage"] = 0.0  # cut at max_completion_length, and masked from the loss for that
        return rows

    def _total(self, rewards: Mapping[str, float]) -> float | None:
        weights = self._trainer.reward_weights.tolist()
        known = [weight * one for weight, one in zip(weights, rewards.values(), strict=True) if not math.isnan(one)]
        return sum(known) if known else None

    def _decode(self, rows: Rows) -> None:
        """Write out what was sampled, as TRL gives it to its reward functions."""
        ids = [row["completion_ids"] for row in rows]
        texts = self._trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            is_chat = isinstance(row["prompt"], list)
            row["completion"] = [{"role": "assistant", "content": text}] if is_chat else text


def _row(example: Mapping[str, Any], prompt: list[int], completion: list[int], advantage: float, counts: bool) -> Any:
    source = {"source": example["source"]} if example.get("source") is not None else {}
    row = {"prompt": example["prompt"], "completion": None, **source, "advantage": advantage, "counts": counts}
    return {**row, "prompt_ids": prompt, "completion_ids": completion}


def _tokens(output: Mapping[str, Any], padding: int) -> Iterator[tuple[list[int], list[int], float, bool]]:
    """Of each rollout of this rank, its tokens without padding, its advantage, and whether its loss counts."""
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
    prompts, prompt_mask, completions, completion_mask, advantages = (output[name].cpu() for name in names)
    for row, advantage in enumerate(advantages.tolist()):
        counts = bool(completion_mask[row].any())
        # With mask_truncated_completions nothing is left of the mask of one that was cut; it does not end in padding.
        kept = completion_mask[row] != 0 if counts else completions[row] != padding
        length = int(kept.nonzero()[-1]) + 1
        yield prompts[row][prompt_mask[row] != 0].tolist(), completions[row][:length].tolist(), advantage, counts


class RolloutFiles:
    """The rollouts of a run on disk: a file for each generation while it goes on, one for all at the end.

    Args:
        folder: the audit folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rollouts.jsonl"
        self._parts = folder / "parts" / "rollouts"

    @property
    def is_empty(self) -> bool:
        """Whether no run has left anything here."""
        return not self.path.exists() and not self._files()

    def begin(self, step: int) -> None:
        """Be ready to go on after ``step``: what an earlier attempt has generated beyond it is generated anew."""
        if self.path.exists() and not self._files():
            write_lines(self._part(0, 0), (row for row in _read(self.path) if row["step"] <= step))
        for path in self._files():
            if int(path.name.partition("-")[0]) > step:
                path.unlink()

    def add(self, rows: Rows) -> None:
        """Keep the rows of one generation; by the main rank alone."""
        step = rows[0]["step"]
        write_lines(self._part(step, len(list(self._parts.glob(f"{step:07d}-*")))), rows)

    def finish(self) -> None:
        """Bring all rows into one file."""
        write_lines(self.path, (row for path in self._files() for row in _read(path)))

    def _part(self, step: int, number: int) -> Path:
        return self._parts / f"{step:07d}-{number:03d}.jsonl"

    def _files(self) -> list[Path]:
        return sorted(self._parts.glob("*.jsonl"))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
