"""The probes that a policy asks for: from a folder or a Hub repo, pinned, each with its rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.gate.policy.file import PolicyFile
from trl_attribution.gate.policy.rules import EVERY_PROBE, ProbeRules
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.scoring.held_out import knows_pairs, why_no_pairs
from trl_attribution.utils.text import printable

_HUB = re.compile(
    r"hf://(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<folder>[\w./-]+))?/?"
)


@dataclass(frozen=True)
class RuledProbe:
    """A probe and what is asked of the scores for it."""

    probe: Probe
    rules: ProbeRules

    @property
    def name(self) -> str:
        """The behavior's name."""
        return self.probe.name

    @property
    def layer(self) -> int:
        """The layer it is scored at."""
        return self.probe.layer if self.rules.layer is None else self.rules.layer

    @property
    def recall(self) -> float | None:
        """The recall that a decision is made at; None where no rule asks for one, or the probe keeps no pairs."""
        wanted = self.rules.flags or self.rules.estimates
        return self.rules.flagging.recall if wanted and knows_pairs(self.probe) else None

    @property
    def flags_by_recall(self) -> bool:
        """Whether pairs are flagged where the decision says so."""
        return self.rules.flags and self.rules.flagging.recall is not None and knows_pairs(self.probe)

    @property
    def rate(self) -> float | None:
        """The false discovery rate to flag at; None where something else decides, or nothing is flagged."""
        return self.rules.flagging.fdr if self.rules.flags and not self.flags_by_recall else None


@dataclass(frozen=True)
class PolicyProbes:
    """All probes that have rules, in order of name, and what to say about the others."""

    ruled: tuple[RuledProbe, ...]
    notes: tuple[str, ...] = ()

    @property
    def probes(self) -> list[Probe]:
        """The probes alone."""
        return [each.probe for each in self.ruled]


def load_policy_probes(file: PolicyFile, download: bool = False) -> PolicyProbes:
    """Load and check the probes that the policy has rules for.

    Args:
        file: the policy.
        download: whether a Hub repo may be fetched; otherwise it has to be in the local cache of the Hub.

    Raises:
        ProbeError: a probe is missing, broken, not the pinned one, made with another M0 than the others, or cannot be
            scored as the policy asks.
        SettingsError: the Hub repo cannot be had, or a pin names no probe of the registry.
    """
    policy = file.policy
    if not policy.rules.probes or policy.probes is None:
        return PolicyProbes(())
    registry = ProbeRegistry(_registry_folder(file, policy.probes, download))
    there = registry.names()
    wanted = {name: rules for name, rules in policy.rules.probes.items() if name != EVERY_PROBE}
    others = policy.rules.probes.get(EVERY_PROBE)
    if others is not None:
        wanted |= {name: others for name in there if name not in wanted}
    lost = sorted(policy.pins.keys() - set(there))
    if lost:
        raise SettingsError(
            f"pins: there is no probe {', '.join(printable(name, 80) for name in lost)} in {policy.probes}. "
            "Remove the pin, or bring the probe back."
        )
    ruled = tuple(RuledProbe(probe, wanted[probe.name]) for probe in registry.load_all(sorted(wanted)))
    for each in ruled:
        _check(each, ruled[0].probe, policy.pins.get(each.name), policy.score)
    unruled = [name for name in there if name not in wanted]
    notes = [f"probes without rules, which are not scored: {printable(', '.join(unruled), 400)}"] if unruled else []
    return PolicyProbes(ruled, tuple(notes))


def choose_layers(asked: Sequence[int] | None, ruled: Sequence[RuledProbe]) -> tuple[int, ...]:
    """The layers that vectors are needed at: those of the policy, else those that the probes are scored at.

    Raises:
        SettingsError: the policy's layers lack one that a probe is scored at.
    """
    scored = sorted({each.layer for each in ruled})
    if asked is None:
        return tuple(scored)
    lacking = [each for each in ruled if each.layer not in asked]
    if lacking:
        raise SettingsError(
            f"layers: {list(asked)} lacks layer {lacking[0].layer}, which probe {lacking[0].name!r} is scored at. "
            "Add it, or set rules.probes.NAME.layer."
        )
    return tuple(sorted(asked))


def _check(each: RuledProbe, first: Probe, pin: str | None, score: str) -> None:
    probe = each.probe
    probe.row_of(each.layer)
    if probe.model != first.model:
        raise ProbeError(
            f"probes {first.name!r} and {probe.name!r} were built on different models ({first.model.digest} and "
            f"{probe.model.digest}). One policy has one M0: give each model a policy of its own."
        )
    if pin is not None and not probe.fingerprint.startswith(pin):
        raise ProbeError(
            f"probe {probe.name!r} is not the pinned one: its fingerprint is {probe.fingerprint}, pinned is {pin}. "
            "If it was rebuilt on purpose, change the pin and record the baseline again."
        )
    rules = each.rules
    needs_pairs = rules.recall is not None or rules.max_reaching_count is not None or rules.estimates
    if needs_pairs and not knows_pairs(probe):
        raise ProbeError(f"rules.probes.{each.name}: {why_no_pairs(repr(each.name))}")
    if score in ("contextual", "one-sided") and not probe.knows_prompts:
        raise ProbeError(
            f"score: {score} scores need probes that know their prompts; {probe.name!r} does not. "
            "Build it from a behavior file, or ask for score response or auto."
        )


def _registry_folder(file: PolicyFile, name: str, download: bool) -> Path:
    if not name.startswith("hf://"):
        return file.path(name)
    found = _HUB.fullmatch(name)
    if found is None or ".." in name:
        raise SettingsError(f"probes: {printable(name)} is not of the form hf://owner/repo@revision/folder")
    return _snapshot(found, name, download) / (found["folder"] or "")


def _snapshot(found: re.Match[str], name: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    prefix = f"{found['folder']}/" if found["folder"] else ""
    try:
        folder = snapshot_download(
            found["repo"],
            repo_type="dataset" if found["kind"] else "model",
            revision=found["revision"],
            allow_patterns=[f"{prefix}*/probe.json", f"{prefix}*/probe.safetensors"],
            local_files_only=not download,
        )
    except Exception as error:
        hint = "" if download else " Allow it to be fetched with --download, or fetch it before (hf download)."
        raise SettingsError(f"probes: {name} cannot be had ({printable(error, 300)}).{hint}") from error
    return Path(folder)
