"""The other side of examples that have one: M0's own responses, drawn before the dataset is read for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trl_attribution.behaviors.sampling import SamplingConfig, responses_to
from trl_attribution.errors import DataError, ModelError, SettingsError
from trl_attribution.pairs import PairReader, RowFault, encode_prompt
from trl_attribution.pairs.examples import OwnResponses, Question, questions_of
from trl_attribution.pairs.own_responses import FILE_NAME, OwnConfig, OwnFile, made_digest, own_at_hand
from trl_attribution.store import StoreSettings
from trl_attribution.utils.chunks import in_chunks
from trl_attribution.utils.text import counted, printable

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel

_CHUNK = 64
"""Prompts drawn for before their responses are written."""


@dataclass(frozen=True)
class _Assumed:
    """Responses as long as those drawn may become, for an estimate."""

    texts: tuple[str, ...]

    def of(self, key: bytes) -> Sequence[str]:  # noqa: ARG002  # the same for all
        return self.texts


def assumed(config: OwnConfig) -> OwnResponses:
    """Stand-ins for M0's own responses, or those given."""
    if config.file is not None:
        return OwnFile(Path(config.file))
    return _Assumed(tuple(f"{number}" + " word" * config.max_new_tokens for number in range(config.n)))


def may_need(reader: PairReader) -> bool:
    """Whether the dataset is of a kind whose examples may have one side alone."""
    return reader.kind in ("kto", "sft")


def with_own_responses(
    reader: PairReader,
    load: Callable[[], LoadedModel],
    config: OwnConfig,
    folder: Path,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    claim: Callable[[str], None] = lambda _digest: None,
) -> OwnFile | None:
    """Give ``reader`` M0's own responses to all prompts that need them; None where none does.

    Args:
        reader: the dataset; from here on its examples have both sides.
        load: gives M0, asked for only where responses have to be drawn.
        config: the file given, or how to draw.
        folder: the audit folder, which keeps what is drawn.
        on_progress: called with the prompts drawn for, and their number.
        claim: takes the folder for vectors with this digest of the responses, before hours are spent on drawing them.

    Raises:
        DataError: the file given lacks prompts; they are counted.
        SettingsError: the folder's file was drawn with something else.
    """
    if not may_need(reader):
        return None
    if config.file is not None:
        own = OwnFile(Path(config.file))
        missing = len({question.key for question in questions(reader) if question.key not in own})
        if missing:
            raise DataError(
                f"{config.file}: lacks responses to {counted(missing, 'prompt')} of {reader.source.name}. Add a line "
                "for each (the prompt exactly as in the dataset), or leave --own-responses out to have them drawn."
            )
        reader.own = own
        return own
    waiting = questions(reader)
    first = next(waiting, None)
    if first is None:
        return None
    total = len({question.key for question in questions(reader)})
    loaded = load()
    drawn_file(folder / FILE_NAME, loaded, config)  # refuses one of other settings with both, as no claim can
    claim(made_digest(config.made(loaded.fingerprint.digest)))
    reader.own = draw(questions(reader), loaded, config, folder / FILE_NAME, lambda done: on_progress(done, total))
    return reader.own


def draw(
    asked: Iterator[Question],
    loaded: LoadedModel,
    config: OwnConfig,
    path: Path,
    on_progress: Callable[[int], None] = lambda _done: None,
) -> OwnFile:
    """Draw what ``path`` lacks of the responses to ``asked``, and keep it there.

    Raises:
        DataError: the chat template refuses a prompt.
        SettingsError: the file was drawn with something else.
    """
    own = drawn_file(path, loaded, config)
    sampling = SamplingConfig(n=config.n, max_new_tokens=config.max_new_tokens, seed=config.seed)
    for chunk in in_chunks(_fresh(asked, own), _CHUNK):
        encoded = [_prompt_ids(question, loaded) for question in chunk]
        # Prompts of like lengths side by side waste little on padding.
        order = sorted(range(len(chunk)), key=lambda place: len(encoded[place]))
        # Each chunk draws otherwise, and a run that goes on draws as one that was not stopped.
        seeded = replace(sampling, seed=config.seed + len(own) * 1000)
        drawn = responses_to(loaded, [encoded[place] for place in order], seeded)
        own.add([(chunk[place], texts) for place, texts in zip(order, drawn, strict=True)])
        on_progress(len(own))
    return own


def drawn_file(path: Path, loaded: LoadedModel, config: OwnConfig) -> OwnFile:
    """What was drawn so far from ``loaded`` as ``config`` says.

    Raises:
        SettingsError: the file was drawn with something else.
    """
    return OwnFile(path, config.made(loaded.fingerprint.digest))


def kept_own(folder: Path, config: OwnConfig, digest: str) -> OwnFile | None:
    """The responses that the vectors of the audit in ``folder`` were made with; ``digest`` is the store's, if any.

    Raises:
        SettingsError: they are neither in the folder nor those that ``config`` gives.
    """
    own = own_at_hand(folder, config.file, digest)
    if own is not None or not digest:
        return own
    raise SettingsError(
        f"own_responses: the vectors in {printable(folder)} were made with responses of M0 that are not there. Give "
        "the same file again (--own-responses)."
    )


def bound_to(settings: StoreSettings, own: OwnFile | None) -> StoreSettings:
    """``settings`` of vectors whose other side ``own`` holds.

    Raises:
        ModelError: it was drawn from another model than M0.
    """
    if own is None:
        return settings
    made = (own.made or {}).get("model_fingerprint")
    if made not in (None, settings.model_fingerprint):
        raise ModelError(
            f"{own.path}: drawn from the model with the fingerprint {printable(made, 70)}, but M0 has "
            f"{settings.model_fingerprint}. Its own responses must be M0's: leave --own-responses out to draw them."
        )
    return replace(settings, own_responses=own.digest)


def questions(reader: PairReader) -> Iterator[Question]:
    """The prompts that M0's own responses are lacking for, once for each response to them."""
    return (question for pair in reader for question in questions_of(pair))


def _fresh(asked: Iterator[Question], own: OwnFile) -> Iterator[Question]:
    seen: set[bytes] = set()
    for question in asked:
        if question.key not in own and question.key not in seen:
            seen.add(question.key)
            yield question


def _prompt_ids(question: Question, loaded: LoadedModel) -> list[int]:
    try:
        ids = encode_prompt(question.prompt, loaded.encoder, question.tools, question.chat_template_kwargs)
    except RowFault as fault:
        raise DataError(f"a prompt that M0 is to answer: {fault.detail}") from fault
    if not ids:
        raise DataError(
            "a prompt that M0 is to answer is empty. Give its responses (--own-responses), or drop the row."
        )
    return ids
