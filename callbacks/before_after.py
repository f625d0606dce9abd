"""What the run itself changed: behaviors sampled before and after it, and the drift of each layer.

Axis letters: R responses, L layers, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from trl_attribution.activations import ActivationConfig, ActivationEngine, PromptGroup
from trl_attribution.activations.blocks import find_blocks
from trl_attribution.activations.config import Path as ForwardPath
from trl_attribution.behaviors import Judge, parse_rule, sample_responses
from trl_attribution.behaviors.responses import (
    Behavior,
    Responses,
    kept_responses,
    read_behaviors,
    sample_behaviors,
    save_on_main,
)
from trl_attribution.callbacks.config import CallbackConfig
from trl_attribution.callbacks.reference_model import reloaded
from trl_attribution.callbacks.reference_pass import ReferenceModel
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.evidence.readouts.behavior_change import (
    BehaviorChange,
    compare,
    probe_of_change,
    resolve_judges,
)
from trl_attribution.evidence.readouts.drift import LayerDrift, drift, mean_activations, save_drift
from trl_attribution.models import LoadedModel
from trl_attribution.models.fingerprint import unwrapped
from trl_attribution.pairs import EncodedPair, Encoding
from trl_attribution.probes import BuildConfig, Probe, ProbeRegistry
from trl_attribution.utils.atomic import write_json
from trl_attribution.utils.distributed import OutOfStepError, Ranks, is_sharded, root_gathered
from trl_attribution.utils.text import printable

logger = logging.getLogger(__name__)

T = TypeVar("T")
SUFFIX = "-changed"


@dataclass(frozen=True)
class RunChanges:
    """What the run changed."""

    changes: list[BehaviorChange] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    """One for each behavior that changed on some prompt, named after it."""
    drifts: list[LayerDrift] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was asked for and could not be measured, and why."""


class BeforeAfter:
    """Looks at M0 before the first step and at M1 after the last.

    Only the main rank has one. Where ranks share one model all of them do: they run both models together, and leave
    judging and writing to the main rank. M0 is looked at after training then, since a pass through a sharded policy
    would break its first step; so it is in a resumed run whose first attempt did not come to look at it.

    Made by :func:`compare_before_after`.
    """

    def __init__(
        self,
        config: CallbackConfig,
        m0: LoadedModel,
        layers: tuple[int, ...],
        encoding: Encoding,
        sample: Sequence[EncodedPair],
        reference: ReferenceModel,
        ranks: Ranks,
        behaviors: tuple[Behavior, ...],
        judges: dict[str, Judge],
    ) -> None:
        self._config, self._m0, self._reference = config, m0, reference
        self._layers, self._encoding, self._ranks = layers, encoding, ranks
        self._behaviors, self._judges = behaviors, judges
        self._is_shared = is_sharded(reference.model)
        self._folder = Path(config.output_dir) / "behaviors"
        self.measure_on(sample)
        self._m0_means: Tensor | None = None
        self._copy: LoadedModel | None = None
        self._sampling = config.sampling

    def measure_on(self, sample: Sequence[EncodedPair]) -> None:
        """Measure the drift on the first of ``sample``; where M0 stays, they need not be known before training."""
        self._groups = [
            PromptGroup(pair.chosen.prompt_ids, [pair.chosen.response_ids])
            for pair in sample[: self._config.drift_pairs]
        ]

    def before(self, *, is_resumed: bool) -> None:
        """Sample M0's responses and read its activations, where the policy still is M0 and can be run."""
        if self._is_shared or not self._reference.is_m0 or (is_resumed and not self._reference.stays):
            return
        with self._reference.as_m0():
            if self._behaviors:
                kept_responses(self._folder / "before.json", self._behaviors, self._m0, self._sampling)
            if self._groups and not self._reference.stays:
                self._m0_means = self._means(self._reference.model)

    def look_at(self, reference: ReferenceModel) -> None:
        """Take M0 from ``reference`` from here on."""
        self._reference = reference

    def after(self, policy: Any) -> RunChanges:
        """Sample the trained ``policy``, judge, and measure.

        What fails here is noted rather than raised: the training is done, and its model not saved yet.

        Raises:
            OutOfStepError: a pass through a model that ranks share failed.
        """
        m1 = LoadedModel(unwrapped(policy), self._m0.tokenizer, "M1", self._m0.fingerprint)
        notes: list[str] = []
        with root_gathered(policy):  # an adapter's wrapper may be the outermost module, and the passes begin below it
            drifts = self._noted(notes, "drift", lambda: self._drifts(m1)) or []
            changes = self._noted(notes, "behaviors", lambda: self._changes(m1)) or []
            probes = self._noted(notes, "behaviors", lambda: self._probes(changes, notes)) or []
        self._copy = None
        return RunChanges(changes, probes, drifts, notes)

    @staticmethod
    def _noted(notes: list[str], what: str, measure: Callable[[], T]) -> T | None:
        try:
            return measure()
        except OutOfStepError:
            raise
        except AttributionError as error:
            logger.error("%s: %s", what, error)
            notes.append(f"{what}: {error}")
        except Exception as error:  # a judge of the user's, a device without memory: told, not raised
            logger.exception("%s could not be measured", what)
            notes.append(f"{what}: {type(error).__name__}: {printable(error, 300)}")
        return None

    def _changes(self, m1: LoadedModel) -> list[BehaviorChange]:
        if not self._behaviors:
            return []
        before_path, after_path = self._folder / "before.json", self._folder / "after.json"
        if self._ranks.broadcast(not before_path.exists()):
            with self._m0_again() as m0:
                kept_responses(before_path, self._behaviors, m0, self._sampling, ranks=self._ranks)
        after = sample_behaviors(
            self._behaviors,
            lambda asked: sample_responses(m1, asked, self._sampling),
            made_with={"model": "M1", "sampling": asdict(self._sampling)},
            on_sampled=lambda found: save_on_main(found, after_path, self._ranks),
        )
        changes: list[BehaviorChange] = []
        with self._ranks.together():
            if self._ranks.is_main:
                before = Responses.load(before_path)
                changes = compare(self._behaviors, before, after, None, seed=self._config.seed, judges=self._judges)
                write_json(self._folder / "changes.json", {"changes": [change.to_json() for change in changes]})
        return self._ranks.broadcast(changes)

    def _probes(self, changes: Sequence[BehaviorChange], notes: list[str]) -> list[Probe]:
        """A probe of each behavior that changed, kept in the audit folder; both sides are read by M0."""
        config = BuildConfig(
            self._activations(self._layers),
            layer=self._layers[0] if len(self._layers) == 1 else "auto",
            encoding=self._encoding,
        )
        registry = ProbeRegistry(Path(self._config.output_dir) / "probes")
        found: list[Probe] = []
        if not changes:
            return found
        with self._m0_again() as m0:
            for change in changes:
                try:
                    probe = probe_of_change(change, m0, config)
                except OutOfStepError:
                    raise
                except AttributionError as error:
                    notes.append(f"behavior {change.behavior.name!r} gives no probe: {error}")
                    continue
                if probe is None:
                    notes.append(f"behavior {change.behavior.name!r} changed on no prompt: it gives no probe")
                    continue
                found.append(replace(probe, name=change.behavior.name + SUFFIX))
                with self._ranks.together():
                    if self._ranks.is_main:
                        registry.save(found[-1], overwrite=True)
        return found

    def _drifts(self, m1: LoadedModel) -> list[LayerDrift]:
        if not self._groups:
            return []
        if self._m0_means is None:
            with self._m0_again() as m0:
                self._m0_means = self._means(m0.model)
        drifts = drift(self._m0_means, self._means(m1.model), self._all_layers(m1.model))
        with self._ranks.together():
            if self._ranks.is_main:
                about = {"m0": self._m0.fingerprint.digest, "pairs": len(self._groups)}
                save_drift(self._config.output_dir, drifts, about)
        return drifts

    def _means(self, model: Any) -> Tensor:
        engine = ActivationEngine(model, self._activations(self._all_layers(model)))
        return mean_activations(engine, self._groups)

    def _activations(self, layers: tuple[int, ...]) -> ActivationConfig:
        # The packed path is tried out first, and a model that cannot take it would fail amid a pass of all ranks.
        path: ForwardPath = "plain" if self._is_shared else "auto"
        return self._config.activations(layers, path)

    def _all_layers(self, model: Any) -> tuple[int, ...]:
        return tuple(range(1, len(find_blocks(model, self._config.blocks_path)) + 1))

    @contextmanager
    def _m0_again(self) -> Iterator[LoadedModel]:
        """M0 after training."""
        if self._reference.stays:
            with self._reference.as_m0():
                yield self._m0
            return
        if self._copy is None:
            self._copy = _reloaded(self._m0, self._reference)
        yield self._copy


def compare_before_after(
    config: CallbackConfig,
    judge: Judge | None,
    m0: LoadedModel,
    layers: tuple[int, ...],
    encoding: Encoding,
    sample: Sequence[EncodedPair],
    taken: Sequence[str],
    reference: ReferenceModel,
    ranks: Ranks,
) -> BeforeAfter:
    """Read the behaviors to compare, and make sure that they can be: M0 is needed again after training.

    Args:
        config: the settings.
        judge: which responses show a behavior, where its file does not say; None takes ``config.judge``.
        m0: M0 with the trainer's tokenizer.
        layers: the layers captured.
        encoding: the trainer's truncation.
        sample: pairs to measure the drift on.
        taken: names of the registered probes.
        reference: where M0 is, now and after training.
        ranks: those that share one model, or this one alone.

    Raises:
        AttributionError: the behaviors, the judge or the layers do not fit, or M0 could not be had after training.
    """
    behaviors: tuple[Behavior, ...] = ()
    judges: dict[str, Judge] = {}
    if config.behaviors is not None:
        behaviors = read_behaviors(config.behaviors)
        clashing = [one.name + SUFFIX for one in behaviors if one.name + SUFFIX in taken]
        if clashing:
            raise SettingsError(
                f"behaviors: what changes becomes a probe named {', '.join(clashing)}, but a probe of that name is "
                "given. Give the behavior another name, or leave the probe out."
            )
        if ranks.is_main:
            judges = resolve_judges(behaviors, judge or parse_rule(config.judge))
        if not reference.stays:
            _reloaded(m0, reference)
    return BeforeAfter(config, m0, layers, encoding, sample, reference, ranks, behaviors, judges)


def _reloaded(m0: LoadedModel, reference: ReferenceModel) -> LoadedModel:
    """M0 by its name.

    Raises:
        SettingsError: there is no such model any more, or it is another one.
    """
    return reloaded(m0, m0.device, f"M0 is needed again after training, but {reference.reason}")
