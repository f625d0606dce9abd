"""M0's own responses in a training run: drawn before its first step, by the main rank alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from trl_attribution.audit.own_responses import (
    draw,
    drawn_file,
    questions,
    with_own_responses,
)
from trl_attribution.callbacks.config import CallbackConfig
from trl_attribution.callbacks.dedicated import m0_to_run
from trl_attribution.callbacks.main_rank import MainRank
from trl_attribution.callbacks.reference_pass import ReferenceModel
from trl_attribution.errors import SettingsError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import PairReader
from trl_attribution.pairs.own_responses import FILE_NAME, OwnFile, made_digest
from trl_attribution.utils.distributed import Ranks, is_sharded, random_state_kept
from trl_attribution.utils.shared_storage import check_shared
from trl_attribution.utils.text import counted

logger = logging.getLogger(__name__)


def own_responses(
    config: CallbackConfig,
    reader: PairReader,
    m0: LoadedModel,
    reference: ReferenceModel,
    ranks: Ranks,
    claim: Callable[[str], None],
    *,
    is_resumed: bool,
) -> OwnFile | None:
    """Give ``reader`` M0's own responses, where examples need them: those given, or drawn now. A collective.

    A resumed run finds what was drawn in its audit folder. Before any are drawn, ``claim``, which is a collective too,
    takes that folder for vectors made with them; it is given their digest.

    Raises:
        AttributionError: the file given lacks prompts, or M0 cannot be asked now.
    """
    folder, own = Path(config.output_dir), config.own
    if own.file is None:
        if not any(pair.lacks_own for pair in reader):
            return None
        _check_can_be_asked(reader, reference)
        claim(made_digest(own.made(m0.fingerprint.digest)))
        _on_main_rank(partial(_complete, config, reader, m0, reference, is_resumed=is_resumed), folder, ranks)
        own = replace(own, file=str(folder / FILE_NAME))
    return with_own_responses(reader, lambda: m0, own, folder)


def _check_can_be_asked(reader: PairReader, reference: ReferenceModel) -> None:
    if is_sharded(reference.model):
        raise SettingsError(
            f"own_responses: {reader.source.name} needs M0's own responses, and where processes share one model it "
            "cannot be asked before its first step. Give them (own_responses=FILE): an audit of the dataset by itself "
            f"leaves them in {FILE_NAME} of its folder."
        )


def _on_main_rank(draw_missing: Callable[[], None], folder: Path, ranks: Ranks) -> None:
    """The other ranks wait, however long it takes."""
    if ranks.world == 1:
        draw_missing()
        return
    main_rank = MainRank(folder / "parts", ranks)
    if ranks.is_main:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        main_rank.clear()
    check_shared(folder, ranks)
    with main_rank.first() as is_mine:
        if is_mine:
            draw_missing()


def _complete(
    config: CallbackConfig, reader: PairReader, m0: LoadedModel, reference: ReferenceModel, *, is_resumed: bool
) -> None:
    """Draw what the file of the audit folder lacks."""
    path = Path(config.output_dir) / FILE_NAME
    there = drawn_file(path, m0, config.own)
    missing = len({question.key for question in questions(reader) if question.key not in there})
    if not missing:
        return
    need = f"{counted(missing, 'prompt')} of {reader.source.name} need M0's own responses"
    logger.warning("%s: they are drawn before training, unless own_responses=FILE gives them", need)
    with random_state_kept(), m0_to_run(m0, reference, need, is_resumed=is_resumed) as model:
        draw(questions(reader), replace(m0, model=model), config.own, path)
