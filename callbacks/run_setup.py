"""What the audit of any run begins with: its settings and M0, checked, and the folder that it claims."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from trl_attribution.audit.claim import FolderClaim, check_folder
from trl_attribution.audit.setup import choose_layers
from trl_attribution.behaviors import Judge
from trl_attribution.callbacks.before_after import BeforeAfter, compare_before_after
from trl_attribution.callbacks.config import CallbackConfig
from trl_attribution.callbacks.main_rank import MainRank
from trl_attribution.callbacks.online_scores import OnlineScores
from trl_attribution.callbacks.pair_lookup import PairLookup
from trl_attribution.callbacks.passes import ReferencePasses
from trl_attribution.callbacks.recorder import Recorder
from trl_attribution.callbacks.reference_model import write_m0
from trl_attribution.callbacks.reference_pass import ReferenceModel
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import EncodedPair, Encoding, Survey
from trl_attribution.probes import Probe
from trl_attribution.store import StoreSettings, VectorStore
from trl_attribution.store.merging import part_folder
from trl_attribution.utils.compat import keeps_whole_prompts
from trl_attribution.utils.distributed import Ranks
from trl_attribution.utils.shared_storage import check_shared

_OTHER_FOLDER = (
    "Set output_dir to another folder. A model that was trained already is another M0, so a second train() without a "
    "reference model of its own needs a new one too."
)
Compare = Callable[[ReferenceModel, Ranks], BeforeAfter]
"""Prepares the comparison of M0 with the trained model."""


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """What is known of a run before its data is looked at."""

    config: CallbackConfig
    probes: Sequence[Probe]
    """The behaviors to score for."""
    m0: LoadedModel
    """M0 with the trainer's tokenizer."""
    reference: ReferenceModel
    """Which forward passes show M0, and where it is."""
    compute_dtype: str
    """What M0 computes in while training."""
    ranks: Ranks
    judge: Judge | None = None
    """Which responses show a behavior, where neither its file nor ``config.judge`` says so by a rule."""
    start: float = field(default_factory=time.perf_counter)

    @property
    def folder(self) -> Path:
        """The audit folder."""
        return Path(self.config.output_dir)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers to capture, each probe's own among them.

        Raises:
            SettingsError, ProbeError: a probe flags at another layer, or was made with another M0.
        """
        layers = choose_layers(self.config.layers, self.probes, self.config.score)
        for probe in self.probes:
            probe.check_model(self.m0.fingerprint)
            if probe.layer not in layers:
                raise SettingsError(
                    f"layers: probe {probe.name!r} flags at layer {probe.layer}, which is not among "
                    f"{list(layers)}; add it, or leave layers out to take those of the probes"
                )
        return layers

    @cached_property
    def online(self) -> OnlineScores:
        """The scores while training, once they are known to allow for ``on_flag``."""
        online = OnlineScores(self.probes, self.layers, self.config.score, self.config.flag_at)
        if self.config.on_flag != "log":
            online.require_limits(f"on_flag={self.config.on_flag!r}")
        if self.config.on_flag == "skip":
            online.require_fixed_scores("on_flag='skip'")
        return online

    def check(self) -> None:
        """Tell what does not fit before a dataset is read or a model is loaded: nothing was written then.

        Raises:
            AttributionError: the layers, the scores while training, the rule or the folder.
        """
        _ = self.layers, self.online  # they check themselves
        self.config.rule.check_probes(self.probes)
        check_folder(self.folder)

    def store_settings(self, encoding: Encoding) -> StoreSettings:
        """How the vectors are made and stored."""
        return StoreSettings(
            model_fingerprint=self.m0.fingerprint.digest,
            layers=self.layers,
            hidden_size=self.m0.model.config.get_text_config().hidden_size,
            vector_dtype=self.config.vector_dtype,
            compute_dtype=self.compute_dtype,
            max_length=encoding.max_length,
            truncation_mode=encoding.truncation_mode,
            whole_prompts=keeps_whole_prompts(),
        )

    def compare(self, encoding: Encoding, sample: Sequence[EncodedPair]) -> Compare:
        """What compares M0 with the trained model, on a ``sample`` of the dataset among others."""
        names = [probe.name for probe in self.probes]
        return partial(compare_before_after, self.config, self.judge, self.m0, self.layers, encoding, sample, names)

    def claim(self, settings: StoreSettings, survey: Survey, name: str) -> None:
        """Bind the folder to this dataset and these settings, or find that it is bound to others. A collective."""
        folder, fault = self.folder, None
        if self.ranks.is_main:
            try:
                FolderClaim(folder, folder / "vectors", settings, survey, name, advice=_OTHER_FOLDER).bind()
                MainRank(folder / "parts", self.ranks).clear()
                write_m0(folder, self.m0, is_in_memory=self.reference.is_m0)
            except AttributionError as error:
                fault = str(error)
        # Told to all ranks rather than raised on one: the others would wait for it.
        fault = self.ranks.broadcast(fault)
        if fault is not None:
            raise SettingsError(fault)
        check_shared(folder, self.ranks)

    def fields(self, settings: StoreSettings, lookup: PairLookup, unreadable: int) -> dict[str, Any]:
        """What sessions of all kinds are made of; the folder has been claimed.

        Args:
            settings: of the store.
            lookup: which pair a forward pass shows.
            unreadable: rows that are trained on and make no pair.
        """
        part = VectorStore.create(part_folder(self.folder, self.ranks.rank), settings)
        recorder = Recorder(lookup, part, part.writer(), unreadable, self.config.shard_size)
        return {
            "config": self.config,
            "probes": tuple(self.probes),
            "m0": self.m0,
            "reference": self.reference,
            "ranks": self.ranks,
            "layers": self.layers,
            "settings": settings,
            "online": self.online,
            "recorder": recorder,
            "passes": ReferencePasses(self.config, self.layers, recorder, self.online),
            "start": self.start,
        }
