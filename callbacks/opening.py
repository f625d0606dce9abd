"""Opens the audit of a training run: settings are checked, the dataset is read, the folder is claimed."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from trl_attribution.audit.claim import FolderClaim, check_folder
from trl_attribution.audit.finish import Stopwatch
from trl_attribution.audit.own_responses import bound_to, may_need
from trl_attribution.audit.setup import choose_layers, notes_on
from trl_attribution.behaviors import Judge
from trl_attribution.callbacks.before_after import compare_before_after
from trl_attribution.callbacks.config import CallbackConfig
from trl_attribution.callbacks.main_rank import MainRank
from trl_attribution.callbacks.online_scores import OnlineScores
from trl_attribution.callbacks.own_responses import own_responses
from trl_attribution.callbacks.pair_lookup import PairLookup
from trl_attribution.callbacks.passes import ReferencePasses
from trl_attribution.callbacks.recorder import Recorder
from trl_attribution.callbacks.reference_model import write_m0
from trl_attribution.callbacks.reference_pass import ReferenceModel
from trl_attribution.callbacks.session import TrainingAudit
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, PairReader, Survey
from trl_attribution.pairs.dataset_pass import pass_over, survey
from trl_attribution.probes import Probe
from trl_attribution.store import StoreSettings, VectorStore
from trl_attribution.store.merging import part_folder
from trl_attribution.utils.compat import keeps_whole_prompts
from trl_attribution.utils.distributed import ALONE, Ranks, is_sharded
from trl_attribution.utils.shared_storage import check_shared

logger = logging.getLogger(__name__)

_OTHER_FOLDER = (
    "Set output_dir to another folder. A model that was trained already is another M0, so a second train() without a "
    "reference model of its own needs a new one too."
)


def open_training_audit(
    config: CallbackConfig,
    probes: Sequence[Probe],
    reader: PairReader,
    encoding: Encoding,
    m0: LoadedModel,
    reference: ReferenceModel,
    compute_dtype: str,
    ranks: Ranks,
    judge: Judge | None = None,
    *,
    notes: Sequence[str] = (),
    is_resumed: bool = False,
) -> TrainingAudit:
    """Read the dataset, claim the audit folder, and be ready to read what M0 shows. A collective.

    Args:
        config: the settings.
        probes: the behaviors to score for.
        reader: the dataset's pairs, as the trainer was given them.
        encoding: the trainer's truncation.
        m0: M0 with the trainer's tokenizer.
        reference: which forward passes show M0.
        compute_dtype: what M0 computes in while training.
        ranks: this run's processes.
        judge: which responses show a behavior, where neither its file nor ``config.judge`` says so by a rule.
        notes: what a person should know of what the trainer learns.
        is_resumed: whether the model that is trained is M0 no longer.

    Raises:
        AttributionError: the dataset, a probe or the audit folder does not fit; nothing was written then but
            the claim of the folder, where own responses are drawn.
    """
    layers = layers_of(config, probes, m0)
    online = online_scores(config, probes, layers)
    if config.on_flag == "stop" and not reference.is_free:
        raise SettingsError(
            f"on_flag='stop' cannot act here: no pair is looked at while training ({reference.reason}). Use "
            "on_flag='log', and read the flagged share from the audit."
        )
    folder = Path(config.output_dir)
    check_folder(folder)
    stopwatch, start, lookup = Stopwatch(), time.perf_counter(), PairLookup()
    config.rule.check_probes(probes)
    unbound, own = store_settings(config, layers, m0, encoding, compute_dtype), None

    def claim_to_ask(digest: str) -> None:
        found = survey(reader.ending_with(m0.tokenizer.eos_token))  # own responses leave ids alone
        claim(folder, replace(unbound, own_responses=digest), found, reader.source.name, m0, reference, ranks)

    if may_need(reader):
        with stopwatch.timed("responses"):
            own = own_responses(config, reader, m0, reference, ranks, claim_to_ask, is_resumed=is_resumed)
    with stopwatch.timed("read"):
        data = pass_over(reader, m0.encoder, encoding, on_encoded=lookup.add)
    config.rule.check(len(data.index))
    told = (*notes, *notes_on(reader, len(data.index), probes, config.score, config.rule))
    for one in told if ranks.is_main else ():
        logger.warning(one)
    settings = bound_to(unbound, own)
    names = [probe.name for probe in probes]
    compare = partial(compare_before_after, config, judge, m0, layers, encoding, data.sample, names)
    is_shared = is_sharded(reference.model)
    with ranks.together():
        before_after = compare(reference, ranks if is_shared else ALONE) if ranks.is_main or is_shared else None
    claim(folder, settings, data.survey, reader.source.name, m0, reference, ranks)
    part = VectorStore.create(part_folder(folder, ranks.rank), settings)
    # TRL leaves long prompts out itself; on all other rows that make no pair it trains.
    unreadable = sum(row.reason != "prompt_too_long" for row in data.skipped)
    recorder = Recorder(lookup, part, part.writer(), unreadable, config.shard_size)
    return TrainingAudit(
        config=config,
        probes=tuple(probes),
        reader=reader,
        encoding=encoding,
        m0=m0,
        reference=reference,
        ranks=ranks,
        layers=layers,
        settings=settings,
        data=data,
        notes=told,
        online=online,
        recorder=recorder,
        passes=ReferencePasses(config, layers, recorder, online),
        compare=compare,
        before_after=before_after,
        stopwatch=stopwatch,
        start=start,
    )


def store_settings(
    config: CallbackConfig, layers: tuple[int, ...], m0: LoadedModel, encoding: Encoding, compute_dtype: str
) -> StoreSettings:
    """How the vectors of a run are made and stored."""
    return StoreSettings(
        model_fingerprint=m0.fingerprint.digest,
        layers=layers,
        hidden_size=m0.model.config.get_text_config().hidden_size,
        vector_dtype=config.vector_dtype,
        compute_dtype=compute_dtype,
        max_length=encoding.max_length,
        truncation_mode=encoding.truncation_mode,
        whole_prompts=keeps_whole_prompts(),
    )


def layers_of(config: CallbackConfig, probes: Sequence[Probe], m0: LoadedModel) -> tuple[int, ...]:
    """The layers to capture, each probe's own among them."""
    layers = choose_layers(config.layers, probes, config.score)
    for probe in probes:
        probe.check_model(m0.fingerprint)
        if probe.layer not in layers:
            raise SettingsError(
                f"layers: probe {probe.name!r} flags at layer {probe.layer}, which is not among "
                f"{list(layers)}; add it, or leave layers out to take those of the probes"
            )
    return layers


def online_scores(config: CallbackConfig, probes: Sequence[Probe], layers: tuple[int, ...]) -> OnlineScores:
    """The scores while training, once they are known to allow for ``on_flag``."""
    online = OnlineScores(probes, layers, config.score, config.flag_at)
    if config.on_flag != "log":
        online.require_limits(f"on_flag={config.on_flag!r}")
    if config.on_flag == "skip":
        online.require_fixed_scores("on_flag='skip'")
    return online


def claim(
    folder: Path,
    settings: StoreSettings,
    survey: Survey,
    name: str,
    m0: LoadedModel,
    reference: ReferenceModel,
    ranks: Ranks,
) -> None:
    """Bind the folder to this dataset and these settings, or find that it is bound to others."""
    fault = None
    if ranks.is_main:
        try:
            FolderClaim(folder, folder / "vectors", settings, survey, name, advice=_OTHER_FOLDER).bind()
            MainRank(folder / "parts", ranks).clear()
            write_m0(folder, m0, is_in_memory=reference.is_m0)
        except AttributionError as error:
            fault = str(error)
    # Told to all ranks rather than raised on one: the others would wait for it.
    fault = ranks.broadcast(fault)
    if fault is not None:
        raise SettingsError(fault)
    check_shared(folder, ranks)
