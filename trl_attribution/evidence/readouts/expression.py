"""How often one model shows a behavior: on prompts that should bring it out, and on prompts that should not.

Axis letters: M prompts of a behavior, n responses a prompt.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.behaviors import Judge, Prompt, SamplingConfig, judge_name, judged, sample_responses
from trl_attribution.behaviors.judging import shifted
from trl_attribution.behaviors.responses import Behavior, read_behaviors
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.readouts.behavior_change import Rate, rate_of, resolve_judges
from trl_attribution.utils.atomic import write_lines
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.behaviors.encoding import PromptFormat
    from trl_attribution.behaviors.examples import Source
    from trl_attribution.behaviors.judging import OnProgress
    from trl_attribution.models import LoadedModel

# As transcription models tell that they go round in circles; text of many words compresses about twofold.
_COMPRESSED_TOO_WELL = 2.4
_TOO_SHORT_TO_TELL = 100


@dataclass(frozen=True)
class Shown:
    """One model's responses to one behavior's prompts, and what the judge says of them."""

    prompts: tuple[Prompt, ...]
    texts: tuple[tuple[str, ...], ...]
    """``[M][n]``"""
    verdicts: tuple[tuple[bool, ...], ...]
    """``[M][n]``, whether a response shows the behavior."""
    seed: int

    @property
    def shares(self) -> list[float]:
        """``[M]``, the share of each prompt's responses that show it."""
        return [sum(each) / len(each) for each in self.verdicts]

    @property
    def rate(self) -> Rate:
        """How often the behavior is shown."""
        return rate_of(self.verdicts, self.seed)

    @property
    def sound_rate(self) -> Rate:
        """The same where a response that only repeats itself shows nothing."""
        sound = [
            [shows and not is_repetitive(text) for shows, text in zip(verdicts, texts, strict=True)]
            for verdicts, texts in zip(self.verdicts, self.texts, strict=True)
        ]
        return rate_of(sound, self.seed)

    @property
    def repetitive(self) -> float:
        """Share of all responses that only repeat themselves."""
        texts = [text for each in self.texts for text in each]
        return sum(map(is_repetitive, texts)) / len(texts)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One for each response: ``prompt``, ``response`` and whether it ``shows`` the behavior."""
        for prompt, texts, verdicts in zip(self.prompts, self.texts, self.verdicts, strict=True):
            for text, shows in zip(texts, verdicts, strict=True):
                yield {"prompt": prompt, "response": text, "shows": shows}


@dataclass(frozen=True)
class Expression:
    """How strongly one model expresses a behavior."""

    behavior: str
    judge: str
    trigger: Shown
    """On prompts that should bring it out."""
    control: Shown | None
    """On prompts that should not, where there are any."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the texts."""
        return {
            "behavior": self.behavior,
            "judge": self.judge,
            "trigger": described(self.trigger),
            "control": None if self.control is None else described(self.control),
        }

    def save_responses(self, path: str | Path) -> None:
        """Write a JSON line a response, atomically: ``prompt``, ``response``, ``shows`` and ``prompts`` (which ones).

        Raises:
            AttributionError: the file cannot be written.
        """
        sides = {"trigger": self.trigger, "control": self.control}
        write_lines(path, ({"prompts": name, **row} for name, one in sides.items() if one for row in one.rows()))


def described(shown: Shown) -> dict[str, Any]:
    """Plain values, without the texts."""
    return {
        "prompts": len(shown.prompts),
        "rate": asdict(shown.rate),
        "sound_rate": asdict(shown.sound_rate),
        "repetitive": shown.repetitive,
    }


def express(
    loaded: LoadedModel,
    trigger: Source,
    control: Source | None,
    sampling: SamplingConfig,
    judge: Judge | None = None,
    prompt_format: PromptFormat = "auto",
    on_progress: OnProgress | None = None,
) -> Expression:
    """The expression rate of one behavior in one model.

    Args:
        loaded: the model.
        trigger: rows of ``prompt`` with optional ``behavior`` and ``judge`` (a rule), of one behavior.
        control: such rows for the same behavior.
        sampling: how responses are drawn.
        judge: who judges where the rows name nobody.
        prompt_format: how text prompts are asked.
        on_progress: called while responses are sampled.

    Raises:
        DataError, ProbeError: prompts cannot be read, or do not fit the prompt format.
        SettingsError: the files are of several behaviors, or nobody judges.
    """
    asked = one_behavior(trigger)
    beside = None if control is None else one_behavior(control)
    decides = resolve_judges([asked], judge)[asked.name]
    if beside is not None and beside.judge not in ("", asked.judge):
        raise SettingsError(
            f"control prompts have the judge {printable(beside.judge, 80)!r}, trigger prompts "
            f"{printable(asked.judge, 80)!r}: one behavior has one judge. Give both the same."
        )
    first = len(asked.prompts.prompts)
    total = first + (0 if beside is None else len(beside.prompts.prompts))

    def shown(behavior: Behavior, done: int) -> Shown:
        report = shifted(on_progress, done, total)
        return responses_of(loaded, behavior, decides, sampling, prompt_format, report)

    trigger_shown = shown(asked, 0)
    return Expression(asked.name, judge_name(decides), trigger_shown, None if beside is None else shown(beside, first))


def responses_of(
    loaded: LoadedModel,
    behavior: Behavior,
    judge: Judge,
    sampling: SamplingConfig,
    prompt_format: PromptFormat = "auto",
    on_progress: OnProgress | None = None,
) -> Shown:
    """Ask the model the prompts of ``behavior``, and ``judge`` about its responses.

    Raises:
        ProbeError: a prompt does not fit the prompt format, or the chat template refuses it.
        JudgeError: the judge gives up.
    """
    rows = behavior.prompts.prompts
    where = [f"{row.location}: field `prompt`" for row in rows]
    return responses_to(loaded, [row.prompt for row in rows], where, judge, sampling, prompt_format, on_progress)


def responses_to(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    where: Sequence[str],
    judge: Judge,
    sampling: SamplingConfig,
    prompt_format: PromptFormat = "auto",
    on_progress: OnProgress | None = None,
) -> Shown:
    """The same of ``prompts`` whose places are ``where``.

    Raises:
        ProbeError, JudgeError: as for :func:`responses_of`.
    """
    texts = tuple(sample_responses(loaded, prompts, sampling, prompt_format, on_progress, where))
    known = judged(judge, [(prompt, text) for prompt, each in zip(prompts, texts, strict=True) for text in each])
    verdicts = tuple(tuple(known(prompt, text) for text in each) for prompt, each in zip(prompts, texts, strict=True))
    return Shown(tuple(prompts), texts, verdicts, sampling.seed)


def one_behavior(source: Source, most: int | None = None) -> Behavior:
    """The one behavior that ``source`` holds prompts of, its first ``most`` prompts where that is given.

    Raises:
        DataError, ProbeError: it cannot be read.
        SettingsError: it holds several behaviors, or less than one prompt is asked for.
    """
    if most is not None and most < 1:
        raise SettingsError(f"prompts: {most} of them leave nothing to ask; give 1 or more")
    found: Sequence[Behavior] = read_behaviors(source)
    if len(found) > 1:
        names = ", ".join(printable(one.name, 40) for one in found)
        raise SettingsError(f"prompts of {len(found)} behaviors ({names}): give those of one")
    behavior = found[0]
    if most is None:
        return behavior
    prompts = type(behavior.prompts)(behavior.prompts.source, behavior.prompts.prompts[:most])
    return Behavior(behavior.name, prompts, behavior.judge)


def is_repetitive(text: str) -> bool:
    """Whether ``text`` only goes round in circles: it compresses more than 2.4-fold. Short texts never do."""
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw) >= _TOO_SHORT_TO_TELL and len(raw) / len(zlib.compress(raw, 9)) > _COMPRESSED_TOO_WELL
