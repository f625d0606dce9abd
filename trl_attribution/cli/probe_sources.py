"""What ``trl-attribution probe build`` builds from: five ways, and the options that belong to each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from trl_attribution.cli import options, paths
from trl_attribution.errors import SettingsError
from trl_attribution.utils.text import printable

_WAYS = ("behavior", "describe", "contrast", "labels", "prompts")
_BELONGING = {
    "behavior": ("controls", "description"),
    "describe": ("describe_endpoint", "describe_key_env", "draft"),
    "prompts": (
        *("judge", "judge_download", "judge_key_env", "judge_timeout", "judge_calls", "responses", "four_condition"),
        *("samples", "max_new_tokens", "temperature", "seed"),
    ),
    "labels": (
        *("label_column", "prompt_column", "chosen_column", "rejected_column", "format", "split", "on_bad_row"),
    ),
}
"""Options that belong to one way."""
_ENDPOINT = typer.Option("--describe-endpoint", metavar="URL#MODEL")


@dataclass(frozen=True)
class ProbeSources:
    """The way that was chosen, which is the one of the five that is given, and what it needs."""

    behavior: Annotated[Path | None, paths.PROMPTS] = None
    """JSONL with prompt, undesired and desired responses."""
    controls: Annotated[Path | None, paths.PROMPTS] = None
    """JSONL with prompts like the behavior's on which its answers are right."""
    no_controls: bool = False
    """Without controls, where the behavior brings none of its own."""
    description: str | None = None
    """What the model does, as a system prompt says it: for a second witness."""
    describe: str | None = None
    """What the model does, in a sentence: a behavior file is drafted from it."""
    describe_endpoint: str | None = field(default=None, metadata={"typer": _ENDPOINT})
    """OpenAI-compatible endpoint that writes the draft's questions and controls; default: M0."""
    describe_key_env: str = ""
    """Environment variable with the endpoint's key."""
    draft: Annotated[Path | None, paths.A_FILE] = None
    """Where the drafted behavior file goes; default: NAME.behavior.jsonl."""
    contrast: Annotated[Path | None, paths.PROMPTS] = None
    """JSONL with positive and negative texts, prompt optional."""
    labels: Annotated[str | None, paths.DATASET] = None
    """Preference pairs with a label: 1 teaches the behavior, 0 does not."""
    prompts: Annotated[Path | None, paths.PROMPTS] = None
    """JSONL with prompts that M0 and the model --after answer."""
    after: Annotated[str | None, paths.MODEL] = None
    """M1, the model after training, with --prompts."""
    judge: str | None = None
    """Which sampled responses show the behavior: complies, refuses, keyword:A,B, regex:PATTERN,
    model:NAME[:LABEL] (a text-classification model) or endpoint:URL#MODEL[#QUESTION] (OpenAI-compatible).
    By default what the prompts' field judge says, else complies."""
    responses: Annotated[Path | None, paths.A_FOLDER] = None
    """Folder that keeps the sampled responses: judged again, not sampled again."""
    four_condition: bool = False
    """Keep prompts where only M1, and only off the plain prompt, shows it."""
    samples: int | None = None
    """Responses sampled a prompt; default: 4, or 1 at temperature 0."""
    label_column: str = "label"
    """Column of the label, with --labels."""

    def check(self, context: typer.Context) -> None:
        """Refuse what does not go together.

        Raises:
            SettingsError: no way or several, or an option that belongs to another one.
        """
        ways = options.chosen(**{way: getattr(self, way) for way in _WAYS})
        if len(ways) != 1:
            given = ", ".join(f"--{way}" for way in ways) or "none"
            raise SettingsError(
                f"give exactly one of --behavior, --describe, --contrast, --labels and --prompts; given: {given}"
            )
        if (self.prompts is None) != (self.after is None):
            raise SettingsError("--prompts and --after belong together: both models answer the prompts")
        options.refuse_idle(context, _BELONGING, ways)
        if self.no_controls and self.controls is not None:
            raise SettingsError("--no-controls and --controls exclude each other: give one of them")
        if self.no_controls and self.labels is not None:
            raise SettingsError("--no-controls: labelled pairs have no prompts to control; leave it out")

    def rule(self) -> str:
        """Which responses show the behavior: as asked for, else what the prompts say of themselves.

        Raises:
            SettingsError: they name several judges.
        """
        return self.judge or (_own_rule(self.prompts) if self.prompts is not None else "") or "complies"

    def samples_at(self, temperature: float) -> int:
        """Responses a prompt: as asked for, else 4, or 1 where all of them would be the same."""
        if self.samples is not None:
            return self.samples
        return 1 if temperature == 0 else 4


def _own_rule(prompts: Path) -> str:
    """The rule that the rows of ``prompts`` name; empty where none does."""
    from trl_attribution.pairs.rows import open_rows

    rules: dict[str, str] = {}
    for row in open_rows(str(prompts)):
        rule = row.values.get("judge") or ""
        if not isinstance(rule, str):
            raise SettingsError(f"{row.location}: field `judge` is no text; write a rule such as 'refuses'")
        if rule:
            rules.setdefault(rule, row.location)
    if len(rules) > 1:
        places = "; ".join(f"{where}: {printable(rule, 80)}" for rule, where in rules.items())
        raise SettingsError(f"--judge: the prompts name several judges ({places}). A probe takes one: give --judge.")
    return next(iter(rules), "")
