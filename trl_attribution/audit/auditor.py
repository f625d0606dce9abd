"""DataAuditor: the one object that ties pairs, activations, store, scoring and manifests together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trl_attribution.activations.config import PassConfig
from trl_attribution.audit.config import AuditConfig, WitnessConfig
from trl_attribution.audit.setup import decided, known_layers, load_probes
from trl_attribution.audit.shares import Share
from trl_attribution.errors import ModelError, SettingsError, describe_difference
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.store import StoreSettings
from trl_attribution.utils.compat import check_versions, keeps_whole_prompts
from trl_attribution.utils.distributed import Ranks, current_ranks
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_attribution.activations import ActivationConfig, ActivationEngine
    from trl_attribution.audit.estimate import Estimate
    from trl_attribution.audit.folder import Audit, Flagged
    from trl_attribution.audit.shared_run import ShareReport
    from trl_attribution.audit.witness import Witnessed
    from trl_attribution.behaviors.encoding import PromptFormat
    from trl_attribution.callbacks import AttributionCallback
    from trl_attribution.discovery import Change, ScanResult
    from trl_attribution.lenses import SaeConfig
    from trl_attribution.models import LoadedModel
    from trl_attribution.models.identity import ModelFingerprint
    from trl_attribution.pairs import Encoder
    from trl_attribution.scoring import Rule
    from trl_attribution.utils.progress import OnProgress


class DataAuditor:
    """Audits preference datasets against registered probes on one M0.

    Example:
        >>> auditor = DataAuditor("path/to/sft-model", probes="probes/", layers=[20])  # doctest: +SKIP
        >>> audit = auditor.audit("data.jsonl", output_dir="audit/")  # doctest: +SKIP
        >>> audit.flag(top_k=500).to_manifest(action="flip").save("flip.jsonl")  # doctest: +SKIP

    Args:
        model: M0: a Hub id, a local folder, a GGUF file, or a model that :func:`load_model` returned; None for
            :meth:`attach`, where the trainer has it.
        probes: a registry folder, a registry, or probes; None computes vectors without scoring them.
        config: the settings; single ones can be given by name instead.
        ranks: the processes that share the work; None takes those of the launcher, if there is one.
        **settings: fields of :class:`AuditConfig`, over those of ``config``.

    Raises:
        SettingsError: an unknown setting, or one that comes too late for a loaded model.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel | None = None,
        *,
        probes: str | Path | ProbeRegistry | Sequence[Probe] | None = None,
        config: AuditConfig | None = None,
        ranks: Ranks | None = None,
        **settings: Any,
    ) -> None:
        check_versions()
        known = AuditConfig.__dataclass_fields__
        unknown = sorted(settings.keys() - known.keys())
        if unknown:
            raise SettingsError(f"unknown setting {', '.join(unknown)}; choose from {', '.join(known)}")
        self.config = replace(config or AuditConfig(), **settings)
        changes = [name for name in ("adapter", "quantization") if getattr(self.config, name) is not None]
        if changes and not isinstance(model, str | Path | None):
            raise SettingsError(f"{' and '.join(changes)}: the model given is loaded already; give them to load_model")
        given = self.config.own.file
        if given is not None and not Path(given).is_file():
            raise SettingsError(f"own responses: no such file: {printable(given, 300)}. Check --own-responses.")
        self.probes = load_probes(probes, self.config.score)
        self.chosen_layers = known_layers(self.config.layers, self.probes, self.config.score)
        """The layers asked for, else those of the probes; None where neither says."""
        self.ranks = ranks
        self._model = model

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers to read, ascending.

        Raises:
            SettingsError: there are neither layers nor probes to take them from.
        """
        return decided(self.chosen_layers)

    @property
    def model(self) -> LoadedModel:
        """M0, loaded on first use and checked against the probes.

        Raises:
            ModelError: it cannot be loaded.
            SettingsError: a loaded model was given, of another dtype than was asked for.
            ProbeError: a probe was made with another M0.
        """
        from trl_attribution.models import LoadedModel, load_model
        from trl_attribution.models.sharding import asked_sharding

        config = self.config
        given = self._given_model()
        if not isinstance(given, LoadedModel):
            given = load_model(
                given,
                config.dtype,
                config.device,
                config.trust_remote_code,
                asked_sharding(),
                adapter=config.adapter,
                quantization=config.quantization,
            )
            self._model = given
        if config.dtype not in ("auto", given.dtype):
            raise SettingsError(f"dtype: asked for {config.dtype!r}, but the model given is {given.dtype}")
        for probe in self.probes:
            probe.check_model(given.fingerprint)
        return given

    def audit(
        self,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        *,
        vectors: str | Path | None = None,
        rule: Rule | None = None,
        sample: int | None = None,
        results: bool = True,
        on_progress: OnProgress | None = None,
    ) -> Audit:
        """Compute, store and score the vectors of ``dataset``; a killed audit goes on where it was.

        Args:
            dataset: a Hub id, a local file or folder, a ``Dataset``, or a list of rows.
            output_dir: the audit folder. One that holds an audit of another dataset or model is refused.
            vectors: a vector store to use and add to, instead of ``output_dir/vectors``: pairs that it holds
                already, from whatever dataset, are not computed again.
            rule: how pairs will be flagged; one that cannot work on this dataset is refused before the work starts.
            sample: audit about so many pairs, drawn by their ids; a later audit of all of them goes on from there.
            results: write manifests of what ``rule``, or the default one, flags, and the report, as the command does.
            on_progress: see :data:`OnProgress`.

        Raises:
            DataError: the dataset cannot be read as pairs; nothing is written then.
            SettingsError: the folder was made with other settings (the difference is printed), or ``rule`` asks for
                more pairs than there are.
            ModelError, ProbeError, StoreError: as their parts raise them.
        """
        from trl_attribution.audit.run import AuditRun
        from trl_attribution.audit.shared_run import SharedRun

        ranks = self.ranks or current_ranks()
        folder = Path(output_dir)
        _ = self.layers  # without any, now and not when M0 is loaded
        if ranks.world == 1 and not (folder / "parts").exists():
            found = AuditRun(self, dataset, folder, vectors, on_progress).audit(rule, sample)
            return _with_results(found, rule) if results else found
        if sample is not None:
            raise SettingsError("sample: several processes or jobs audit the whole dataset; leave it out, or use one")
        with ranks.together():
            run = SharedRun(self, dataset, folder, vectors, on_progress)
        found = run.audit_on(ranks, rule)
        return _with_results(found, rule) if results else found

    def audit_share(
        self,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        share: Share | str,
        *,
        vectors: str | Path | None = None,
        on_progress: OnProgress | None = None,
    ) -> ShareReport:
        """Compute the vectors of one share of ``dataset``, as one of several independent jobs; see :meth:`merge`.

        Args:
            dataset: as for :meth:`audit`; every job reads the whole of it and tokenizes its own share.
            output_dir: the audit folder, on storage that all jobs see.
            share: ``"3/8"`` for the third of eight.
            vectors: as for :meth:`audit`; nothing is written to it before the merge.
            on_progress: see :data:`OnProgress`.

        Raises:
            DataError, SettingsError, ModelError, ProbeError, StoreError: as for :meth:`audit`.
        """
        from trl_attribution.audit.shared_run import SharedRun

        _ = self.layers
        wanted = Share.parse(share) if isinstance(share, str) else share
        ranks = self.ranks or current_ranks()
        with ranks.together():
            run = SharedRun(self, dataset, Path(output_dir), vectors, on_progress)
        return run.compute_share(wanted, ranks)

    def merge(
        self,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        *,
        vectors: str | Path | None = None,
        rule: Rule | None = None,
        results: bool = True,
        on_progress: OnProgress | None = None,
    ) -> Audit:
        """Finish an audit of which all shares are computed: merge, score, write; M0's weights are not loaded.

        Args:
            dataset: as given to the shares.
            output_dir: as given to the shares.
            vectors: as given to the shares.
            rule: as for :meth:`audit`.
            results: as for :meth:`audit`.
            on_progress: see :data:`OnProgress`.

        Raises:
            StoreError: shares are missing, the message says which; or there is nothing to merge.
            ModelError, SettingsError: the model or a setting is not what the shares were computed with.
            DataError, ProbeError: as for :meth:`audit`.
        """
        from trl_attribution.audit.shared_run import SharedRun

        _ = self.layers
        found = SharedRun(self, dataset, Path(output_dir), vectors, on_progress).merge(rule)
        return _with_results(found, rule) if results else found

    def scan(
        self,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]],
        output_dir: str | Path = "audit",
        *,
        changes: Sequence[Change] | None = None,
        prompt_format: PromptFormat = "auto",
        sae: SaeConfig | None = None,
        results: bool = True,
        on_progress: OnProgress | None = None,
        **settings: Any,
    ) -> ScanResult:
        """What ``dataset`` would teach the model: findings, without probes and before anything is trained.

        Args:
            dataset: as for :meth:`audit`.
            output_dir: the audit folder; vectors that an audit there holds are used, and an audit uses those made here.
            changes: held-out prompts with responses before and after training, which the prediction is compared with.
            prompt_format: of those prompts: ``chat`` makes a text a user message, ``auto`` does if there is a template.
            sae: a sparse autoencoder whose latents are looked at beside the traits.
            results: write ``report.html``, unless the folder holds an audit with a report of its own.
            on_progress: see :data:`OnProgress`.
            **settings: fields of :class:`~trl_attribution.discovery.ScanConfig`.

        Raises:
            DataError, SettingsError, ModelError, StoreError: as for :meth:`audit`.
            ProbeError: none of the prompts of ``changes`` has responses of both that fit.
        """
        from trl_attribution.discovery.scan import scan_dataset
        from trl_attribution.discovery.scan_config import ScanConfig
        from trl_attribution.report.page import write_scan_report

        config = ScanConfig.of(settings)
        found = scan_dataset(self, dataset, output_dir, config, on_progress, changes, prompt_format, sae)
        if results:
            write_scan_report(output_dir)
        return found

    def estimate(self, dataset: str | Path | Dataset | Sequence[Mapping[str, Any]]) -> Estimate:
        """Read the whole dataset, run a sample of it, and say what the audit would take; nothing is written.

        Where M0's own responses would be drawn, they count as long as they may become; drawing them comes on top.

        Raises:
            DataError: the dataset cannot be read as pairs.
            ModelError, ProbeError: as for :meth:`audit`.
        """
        from trl_attribution.audit.estimate import estimate
        from trl_attribution.audit.own_responses import assumed
        from trl_attribution.pairs import PairReader
        from trl_attribution.pairs.dataset_pass import pass_over

        _ = self.layers
        engine = self.new_engine()
        reader = PairReader(dataset, self.config.reading)
        reader.own = assumed(self.config.own)
        data = pass_over(reader, self.model.encoder, self.config.encoding)
        engine.limits.check(data.highest_token, data.longest)
        return estimate(engine, data, self.config.vector_dtype)

    def witness(
        self, flagged: Flagged, pairs: Literal["near", "all"] = "near", *, on_progress: OnProgress | None = None
    ) -> Witnessed:
        """Ask M0 about ``flagged``'s audit, under a description of each behavior; writes ``witness.parquet`` beside it.

        Raises:
            SettingsError: ``pairs`` is unknown.
            ProbeError: a description holds a special token of the model.
            ModelError: the model lies in pieces on several ranks, or cannot run.
        """
        from trl_attribution.audit.witness import hear

        return hear(self, flagged, WitnessConfig(pairs), on_progress)

    def attach(self, trainer: Any, output_dir: str | Path = "audit", **settings: Any) -> AttributionCallback:
        """Audit a run of ``trainer`` while it trains: an ``AttributionCallback`` with this auditor's settings.

        What the trainer decides is the trainer's: the model and its dtype, truncation, and how rows are read.

        Args:
            trainer: a trainer of TRL, as :class:`AttributionCallback` takes it.
            output_dir: the audit folder.
            **settings: further arguments of :class:`AttributionCallback`.

        Raises:
            SettingsError: this auditor was given a model, or settings that a trainer decides, or the trainer cannot be
                audited.
        """
        from trl_attribution.callbacks import AttributionCallback, CallbackConfig

        defaults = AuditConfig()
        of_trainer = ("adapter", "quantization", "dtype", "device", "encoding", "reading", "path", "trust_remote_code")
        decided = [name for name in of_trainer if getattr(self.config, name) != getattr(defaults, name)]
        decided += ["model"] if self._model is not None else []
        if decided:
            raise SettingsError(f"attach: the trainer decides on {', '.join(decided)}; make a DataAuditor without")
        shared = {one.name for one in fields(self.config)} & {one.name for one in fields(CallbackConfig)}
        own = {one.metadata["option"]: getattr(self.config.own, one.name) for one in fields(self.config.own)}
        mine = {**{name: getattr(self.config, name) for name in shared}, **own, "layers": list(self.layers)}
        twice = sorted(settings.keys() & {"config", "probes", *mine})
        if twice:
            raise SettingsError(f"attach: {', '.join(twice)} cannot be given here; they are this DataAuditor's")
        callback = AttributionCallback(trainer, probes=self.probes or None, output_dir=output_dir, **mine, **settings)
        trainer.add_callback(callback)
        return callback

    def new_engine(self) -> ActivationEngine:
        """An engine that reads this auditor's layers of M0."""
        from trl_attribution.activations import ActivationEngine

        return ActivationEngine(self.model.model, self.activations(self.layers))

    def activations(self, layers: tuple[int, ...]) -> ActivationConfig:
        """How this auditor's settings read ``layers`` of M0."""
        from trl_attribution.activations import ActivationConfig

        return ActivationConfig(layers, **{one.name: getattr(self.config, one.name) for one in fields(PassConfig)})

    def store_settings(self, engine: ActivationEngine) -> StoreSettings:
        """What the vectors of this auditor's audits are bound to."""
        return StoreSettings(
            model_fingerprint=self.model.fingerprint.digest,
            layers=self.layers,
            hidden_size=engine.hidden_size,
            vector_dtype=self.config.vector_dtype,
            compute_dtype=self.model.dtype,
            max_length=self.config.encoding.max_length,
            truncation_mode=self.config.encoding.truncation_mode,
            whole_prompts=keeps_whole_prompts(),
        )

    def check_stored(self, stored: StoreSettings, path: Path) -> None:
        """Refuse vectors that this auditor would have computed in another way.

        Raises:
            SettingsError: the difference is printed.
        """
        config = self.config
        asked = replace(
            stored,
            layers=self.layers,
            vector_dtype=config.vector_dtype,
            compute_dtype=stored.compute_dtype if config.dtype == "auto" else config.dtype,
            max_length=config.encoding.max_length,
            truncation_mode=config.encoding.truncation_mode,
            whole_prompts=keeps_whole_prompts(),
        )
        if asked != stored:
            raise SettingsError(
                f"{path} was computed with other settings:\n{describe_difference(stored.as_dict(), asked.as_dict())}\n"
                "Give the settings that the shards were computed with."
            )

    def encoder_for(self, known: ModelFingerprint, *, images: bool = False) -> Encoder:
        """M0's tokenizer, or with ``images`` its processor, without M0's weights where they are not loaded yet.

        Raises:
            ModelError: the model is not the one whose fingerprint is ``known``, as far as can be told.
        """
        from trl_attribution.models import LoadedModel, load_tokenizer
        from trl_attribution.models.fingerprint import tokenizer_digest
        from trl_attribution.models.loading import load_processor

        model = self._given_model()
        if isinstance(model, LoadedModel):
            tokenizer = model.tokenizer
            changed = known.differences(model.fingerprint)
        else:
            tokenizer = load_tokenizer(model, self.config.trust_remote_code)
            changed = [] if tokenizer_digest(tokenizer) == known.chat_template else ["chat_template"]
        if changed:
            raise ModelError(
                f"the model given is not the one that the shards were computed with: another {', '.join(changed)}. "
                "Give the same model as to the shards."
            )
        if not images:
            return tokenizer
        given = (
            model.processor if isinstance(model, LoadedModel) else load_processor(model, self.config.trust_remote_code)
        )
        return given or tokenizer

    def _given_model(self) -> str | Path | LoadedModel:
        if self._model is None:
            raise SettingsError("model: give M0, a Hub id, a local folder or a GGUF file: DataAuditor(MODEL, ...)")
        return self._model


def _with_results(found: Audit, rule: Rule | None) -> Audit:
    """``found``, with the manifests of what is flagged and the report in its folder."""
    from trl_attribution.report.ending import write_results
    from trl_attribution.scoring import DEFAULT_RULE

    if found.is_main:
        write_results(found, rule or DEFAULT_RULE)
    return found
