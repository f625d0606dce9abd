"""What an audit reads with: its probes and its layers, checked and looked at before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trl_attribution.audit.config import AuditConfig
from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.pairs import PairReader
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.scoring.rule import Rule
from trl_attribution.utils.kinds import EXAMPLES


def choose_layers(asked: Sequence[int] | None, probes: Sequence[Probe], score: AskedKind = "auto") -> tuple[int, ...]:
    """The layers to read, as :func:`known_layers` finds them.

    Raises:
        SettingsError: there are none; and as there.
    """
    return decided(known_layers(asked, probes, score))


def decided(layers: tuple[int, ...] | None) -> tuple[int, ...]:
    """The layers, once there are any.

    Raises:
        SettingsError: there are none.
    """
    if layers is None:
        raise SettingsError("layers: give some, or probes to take them from")
    return layers


def known_layers(
    asked: Sequence[int] | None, probes: Sequence[Probe], score: AskedKind = "auto"
) -> tuple[int, ...] | None:
    """The layers to read, ascending: those asked for, else those that the probes flag at, else None.

    Raises:
        SettingsError: one is named twice, or a probe knows none of them or has no contexts at one.
    """
    if asked is None:
        return tuple(sorted({probe.layer for probe in probes})) or None
    if not asked or len(set(asked)) != len(asked):
        raise SettingsError(f"layers: {list(asked)} must name at least one layer, each once")
    for probe in probes:
        if not set(probe.layers) & set(asked):
            raise SettingsError(
                f"layers: probe {probe.name!r} knows layers {list(probe.layers)}, none of {list(asked)}; "
                "take one of them, or leave layers out to take those of the probes"
            )
        _check_contexts(probe, set(probe.layers) & set(asked), score)
    return tuple(sorted(asked))


def _check_contexts(probe: Probe, layers: set[int], score: AskedKind) -> None:
    """Refuse layers at which all prompts end in the same state: at layer 0 that is the chat template's last token."""
    from trl_attribution.scoring.asked import kind_for
    from trl_attribution.scoring.targets import usable_contexts

    if probe.contexts is None or len(probe.contexts) < 2 or kind_for(probe, score) == "response":
        return
    for layer in sorted(layers):
        contexts = probe.contexts[:, probe.layers.index(layer)].float()
        if not usable_contexts(contexts, contexts[0]).any():
            raise SettingsError(
                f"layers: at layer {layer} all prompts of probe {probe.name!r} have the same context, so that every "
                "score but the response score is 0; take another layer, or score='response' (--score response)"
            )


def check_for_images(config: AuditConfig) -> None:
    """Refuse what cannot be had on a dataset of images, before a model is loaded.

    Raises:
        SettingsError: the path, or a model in pieces.
    """
    from trl_attribution.models.sharding import asked_sharding

    if config.path in ("packed", "fused"):
        raise SettingsError(f"path: {config.path} is for text; the dataset holds images. Leave it out.")
    if asked_sharding() is not None:
        raise SettingsError(
            "the launch config cuts the model in pieces (ZeRO-3, FSDP), and the dataset holds images, which ranks "
            "compute on whole copies only. Launch with DDP."
        )


def load_probes(probes: str | Path | ProbeRegistry | Sequence[Probe] | None, score: AskedKind) -> list[Probe]:
    """The probes, checked for what scoring would refuse after all vectors are computed."""
    if probes is None:
        return []
    if isinstance(probes, str | Path):
        probes = ProbeRegistry(probes)
    found = probes.load_all() if isinstance(probes, ProbeRegistry) else list(probes)
    if not found:
        raise SettingsError("probes: none there; build one with `trl-attribution probe build`, or leave probes out")
    names = [probe.name for probe in found]
    if len(set(names)) < len(names):
        raise SettingsError(f"probes: their names must differ, but these were given: {', '.join(names)}")
    uncontrolled = [probe.name for probe in found if not probe.knows_controls]
    if score == "controlled" and uncontrolled:
        raise ProbeError(
            f"score: controlled scores need probes with controls; {', '.join(uncontrolled)} has none. "
            "Build it with controls, or ask for score 'auto'."
        )
    unknowing = [probe.name for probe in found if not probe.knows_prompts]
    if score in ("contextual", "one-sided") and unknowing:
        raise ProbeError(
            f"score: {score} scores need probes that know their prompts; {', '.join(unknowing)} does not. "
            "Build it from a behavior file, or ask for score 'response' or 'auto'."
        )
    return found


def notes_on(
    reader: PairReader, pairs: int, probes: Sequence[Probe], score: AskedKind, rule: Rule | None
) -> tuple[str, ...]:
    """What to know before N ``pairs`` are scored: of the dataset, of probes that do not fit, of a ``rule`` in vain.

    Raises:
        ProbeError: what a probe is calibrated with cannot be compared with.
    """
    from trl_attribution.scoring import fit_notes, power_notes  # torch comes with them
    from trl_attribution.scoring.asked import asked_of

    kind, asked = EXAMPLES[reader.kind], asked_of(reader.kind, score)
    fit = fit_notes(pairs, probes, asked, conversational=reader.conversational, of=kind)
    return (*reader.notes, *fit, *(() if rule is None else power_notes(rule, pairs, probes, asked, kind)))
