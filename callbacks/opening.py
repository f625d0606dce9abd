"""Opens the audit of a training run: settings are checked, the dataset is read, the folder is claimed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from trl_attribution.audit.own_responses import bound_to, may_need
from trl_attribution.audit.setup import notes_on
from trl_attribution.callbacks.own_responses import own_responses
from trl_attribution.callbacks.pair_lookup import PairLookup
from trl_attribution.callbacks.run_setup import RunSetup
from trl_attribution.callbacks.session import TrainingAudit
from trl_attribution.errors import SettingsError
from trl_attribution.pairs import Encoding, PairReader
from trl_attribution.pairs.dataset_pass import pass_over, survey
from trl_attribution.utils.distributed import ALONE, is_sharded
from trl_attribution.utils.progress import Stopwatch

logger = logging.getLogger(__name__)
_NO_DRIFT = "the drift of the layers is not measured on pairs with images"


def open_training_audit(
    setup: RunSetup, reader: PairReader, encoding: Encoding, *, notes: Sequence[str] = (), is_resumed: bool = False
) -> TrainingAudit:
    """Read the dataset, claim the audit folder, and be ready to read what M0 shows. A collective.

    Args:
        setup: the run.
        reader: the dataset's pairs, as the trainer was given them.
        encoding: the trainer's truncation.
        notes: what a person should know of what the trainer learns.
        is_resumed: whether the model that is trained is M0 no longer.

    Raises:
        AttributionError: the dataset, a probe or the audit folder does not fit; nothing was written then but
            the claim of the folder, where own responses are drawn.
    """
    config, m0, reference, ranks = setup.config, setup.m0, setup.reference, setup.ranks
    setup.check()
    if config.on_flag == "stop" and not reference.is_free:
        raise SettingsError(
            f"on_flag='stop' cannot act here: no pair is looked at while training ({reference.reason}). Use "
            "on_flag='log', and read the flagged share from the audit."
        )
    stopwatch, lookup = Stopwatch(), PairLookup()
    unbound, own = setup.store_settings(encoding), None

    def claim_to_ask(digest: str) -> None:
        found = survey(reader.ending_with(m0.tokenizer.eos_token))  # own responses leave ids alone
        setup.claim(replace(unbound, own_responses=digest), found, reader.source.name)

    if may_need(reader):
        with stopwatch.timed("responses"):
            own = own_responses(config, reader, m0, reference, ranks, claim_to_ask, is_resumed=is_resumed)
    with stopwatch.timed("read"):
        data = pass_over(reader, m0.encoder, encoding, on_encoded=lookup.add)
    config.rule.check(len(data.index))
    told = (*notes, *notes_on(reader, len(data.index), setup.probes, config.score, config.rule))
    told = (*told, _NO_DRIFT) if reader.has_images and config.drift_pairs else told
    for one in told if ranks.is_main else ():
        logger.warning(one)
    settings = bound_to(unbound, own)
    if reader.has_images:
        settings = replace(settings, vision=m0.vision_digest)
    # What M0 and the trained model make of token ids without the pixels says nothing of either.
    compare = setup.compare(encoding, [pair for pair in data.sample if pair.collate is None])
    is_shared = is_sharded(reference.model)
    with ranks.together():
        before_after = compare(reference, ranks if is_shared else ALONE) if ranks.is_main or is_shared else None
    setup.claim(settings, data.survey, reader.source.name)
    # TRL leaves long prompts out itself, without images; on all other rows that make no pair it trains.
    unreadable = sum(row.reason != "prompt_too_long" or reader.has_images for row in data.skipped)
    return TrainingAudit(
        **setup.fields(settings, lookup, unreadable),
        reader=reader,
        encoding=encoding,
        data=data,
        notes=told,
        compare=compare,
        before_after=before_after,
        stopwatch=stopwatch,
    )
