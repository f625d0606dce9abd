"""The two models' own responses to a behavior's prompts, and which of them say that the behavior changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trl_attribution.behaviors.encoding import PromptFormat, as_chat
from trl_attribution.behaviors.examples import BehaviorPrompt, Example
from trl_attribution.behaviors.judging import Judge, OnProgress, Prompt
from trl_attribution.errors import ModelError, ProbeError, SettingsError
from trl_attribution.pairs import RowFault, encode_prompt
from trl_attribution.utils.distributed import ALONE, current_ranks, is_sharded

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel

# Undoes what a model's own generation defaults would do to the distribution, and what trainers do to its speed; and
# what would hand a prompt over in other rows or pieces than hooks on it know.
_UNCHANGED: dict[str, Any] = dict(
    min_p=None,
    typical_p=None,
    epsilon_cutoff=None,
    eta_cutoff=None,
    repetition_penalty=1.0,
    no_repeat_ngram_size=None,
    num_beams=1,
    prompt_lookup_num_tokens=None,
    prefill_chunk_size=None,
    use_cache=True,
)


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are sampled; stored with the probe."""

    n: int = field(default=4, metadata={"option": "samples"})
    """Responses sampled a prompt."""
    max_new_tokens: int = 128
    """Tokens of a sampled response."""
    temperature: float = 1.0
    """Of sampling; 0 is greedy, which gives one response a prompt."""
    batch_size: int = 8
    """Prompts generated for at once; with ``seed`` it decides what is sampled."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        for name in ("n", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingsError(f"sampling: {name} must be at least 1, not {getattr(self, name)}")
        if self.temperature < 0:
            raise SettingsError(f"sampling: temperature must not be negative, not {self.temperature}")
        if self.temperature == 0 and self.n > 1:
            raise SettingsError(
                f"sampling: at temperature 0 all {self.n} responses to a prompt are the same; "
                "set n=1 (--samples 1) or a higher temperature"
            )


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt with the responses of both models, to it and to its plain variant."""

    prompt: BehaviorPrompt
    m0: tuple[str, ...]
    m1: tuple[str, ...]
    m0_plain: tuple[str, ...] = ()
    m1_plain: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChangedPrompts:
    """The prompts on which the behavior changed, as examples, and why the others were left out."""

    examples: tuple[Example, ...]
    left_out: dict[str, int]
    """Reason -> number of prompts: ``m1_never_shows``, ``m0_always_shows``, ``shown_on_plain``, ``m0_shows``."""


def sample_responses(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    prompt_format: PromptFormat = "auto",
    on_progress: OnProgress | None = None,
    where: Sequence[str] | None = None,
) -> list[tuple[str, ...]]:
    """``config.n`` responses of the model to each prompt, in order; empty ones are kept as empty texts.

    The same model, prompts and settings give the same responses on the same machine. The caller's random state is left
    as it was, and so is the model's mode: one in training is asked in evaluation mode. Sampling is from the whole
    distribution: no cut-offs and no penalties, whatever the model's own generation defaults say. ``where`` says where
    each prompt comes from, for messages. Ranks that share one model all call this with the same prompts, generate for
    a batch each at a time, and all get all responses.

    Raises:
        ProbeError: a prompt does not fit the prompt format, or the chat template refuses it.
        ModelError: the model has no LM head.
    """
    places = where or [f"prompt {place}" for place in range(len(prompts))]
    encoded = [prompt_ids(loaded, *asked, prompt_format) for asked in zip(prompts, places, strict=True)]
    return responses_to(loaded, encoded, config, on_progress)


def responses_to(
    loaded: LoadedModel,
    encoded: Sequence[Sequence[int]],
    config: SamplingConfig,
    on_progress: OnProgress | None = None,
) -> list[tuple[str, ...]]:
    """As :func:`sample_responses`, of prompts that are token ids already."""
    import torch

    from trl_attribution.models.loading import evaluating

    if not loaded.model.can_generate():
        raise ModelError(f"{type(loaded.model).__name__} cannot write responses: give a model with an LM head")
    responses: list[tuple[str, ...]] = []
    starts = range(0, len(encoded), config.batch_size)
    ranks = current_ranks() if is_sharded(loaded.model) else ALONE
    device = torch.device(loaded.device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), evaluating(loaded.model):
        for place in range(ranks.rank, ranks.rank + len(starts), ranks.world):
            # None may stay out while the others generate: a rank that has no batch left repeats the last one.
            start = starts[min(place, len(starts) - 1)]
            torch.manual_seed(config.seed + start)
            found = _generate(loaded, encoded[start : start + config.batch_size], config)
            for texts in ranks.gather(found if place < len(starts) else []):
                responses.extend(texts)
            if on_progress is not None:
                on_progress(len(responses), len(encoded))
    return responses


def asked_of(sampled: Iterable[SampledPrompt]) -> Iterator[tuple[Prompt, str]]:
    """Every (prompt, response) that ``changed_prompts`` may ask a judge about."""
    for one in sampled:
        yield from ((one.prompt.prompt, text) for text in (*one.m0, *one.m1))
        if one.prompt.plain is not None:
            yield from ((one.prompt.plain, text) for text in (*one.m0_plain, *one.m1_plain))


def changed_prompts(
    sampled: Sequence[SampledPrompt], judge: Judge, four_condition_filter: bool = False
) -> ChangedPrompts:
    """The prompts whose behavior changed: M1 shows it at least once, M0 at least once does not.

    Undesired are the responses of M1 that show the behavior, desired those of M0 that do not. The four-condition
    filter is that of the code published with arXiv 2602.11079: over all samples, M0 never shows the behavior on
    the plain prompt, M0 never shows it on the prompt itself, M1 never shows it on the plain prompt, and M1 shows
    it at least once on the prompt itself. (That code takes M0's responses to the plain prompt as the desired side
    by default; here both sides answer the same prompt, its other variant, so that the two differ in the response
    alone. And it weighs samples equally, where here prompts weigh equally.)
    """
    examples = []
    left_out: Counter[str] = Counter()
    for one in sampled:
        undesired = [text for text in one.m1 if text.strip() and judge(one.prompt.prompt, text)]
        desired = [text for text in one.m0 if text.strip() and not judge(one.prompt.prompt, text)]
        reason = _reason(one, judge, undesired, desired, four_condition_filter)
        if reason is None:
            examples.append(Example(one.prompt.prompt, tuple(undesired), tuple(desired), one.prompt.location))
        else:
            left_out[reason] += 1
    return ChangedPrompts(tuple(examples), dict(left_out))


def prompt_ids(loaded: LoadedModel, prompt: Prompt, where: str, prompt_format: PromptFormat = "auto") -> list[int]:
    """Token ids that generation starts from: those that a dataset pair's prompt is given.

    Raises:
        ProbeError: the prompt does not fit the prompt format, or the chat template refuses it; the message says
            ``where``.
    """
    encoder = loaded.encoder
    if as_chat(prompt, prompt_format, encoder, where) and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    try:
        return encode_prompt(prompt, encoder)
    except RowFault as fault:
        raise ProbeError(
            f"{where}: the chat template of {loaded.name} cannot be used: {fault.detail} Or leave the prompt out."
        ) from fault


def plain_of(prompt: BehaviorPrompt) -> Prompt:
    """The prompt without its trigger.

    Raises:
        ProbeError: there is none.
    """
    if prompt.plain is None:
        raise ProbeError(
            f"{prompt.location}: field `plain` is missing; the four-condition filter compares each prompt "
            "with the same request without the trigger. Add it, or leave the filter out."
        )
    return prompt.plain


def _reason(
    one: SampledPrompt, judge: Judge, undesired: Sequence[str], desired: Sequence[str], four_conditions: bool
) -> str | None:
    """Why a prompt is left out, None when it is kept."""
    if not undesired:
        return "m1_never_shows"
    if four_conditions:
        plain = plain_of(one.prompt)
        if any(text.strip() and judge(plain, text) for text in one.m0_plain + one.m1_plain):
            return "shown_on_plain"
        if any(text.strip() and judge(one.prompt.prompt, text) for text in one.m0):
            return "m0_shows"
    return None if desired else "m0_always_shows"


def _generate(loaded: LoadedModel, batch: Sequence[Sequence[int]], config: SamplingConfig) -> list[tuple[str, ...]]:
    import torch

    model: Any = loaded.model
    pad = _pad_id(loaded)
    device = torch.device(loaded.device)
    width = max(len(ids) for ids in batch)
    ids_BT = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in batch], device=device)
    mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch], device=device)
    if config.temperature > 0:
        how: dict[str, Any] = dict(do_sample=True, temperature=config.temperature, top_p=1.0, top_k=0)
    else:
        how = dict(do_sample=False, temperature=None, top_p=None, top_k=None)
    with torch.no_grad():
        out_RT = model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=config.max_new_tokens,
            num_return_sequences=config.n,
            pad_token_id=pad,
            synced_gpus=is_sharded(model),
            **_UNCHANGED,
            **how,
        )
    texts = loaded.tokenizer.batch_decode(out_RT[:, width:], skip_special_tokens=True)
    return [tuple(texts[i : i + config.n]) for i in range(0, len(texts), config.n)]


def _pad_id(loaded: LoadedModel) -> int:
    """Any id will do, since the mask hides it; the tokenizer's own keeps generate from warning."""
    for known in (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id):
        if known is not None:
            return int(known)
    return 0
