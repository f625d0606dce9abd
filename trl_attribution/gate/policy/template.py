"""The policy that ``gate init`` writes: every rule is there, with what it is for."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from trl_attribution.errors import SettingsError
from trl_attribution.gate.policy.file import PolicyFile
from trl_attribution.gate.policy.rules import PLACEHOLDER
from trl_attribution.gate.policy.schema import POLICY_VERSION, Policy
from trl_attribution.probes import Probe
from trl_attribution.scoring import DEFAULT_RULE
from trl_attribution.scoring.held_out import knows_pairs
from trl_attribution.utils.text import counted, printable

if TYPE_CHECKING:
    from trl_attribution.gate.proposal import Proposal

_LONGEST = 110


@dataclass(frozen=True)
class Trusted:
    """What a dataset that is trusted says of the probes."""

    dataset: str
    baseline: str
    """Where its scores are kept, as the policy names it."""
    proposals: Mapping[str, Proposal]
    """By probe."""


@dataclass(frozen=True)
class _Ruled:
    """The rules of one probe, as the policy writes them."""

    name: str
    notes: tuple[str, ...]
    lines: tuple[str, ...]


def policy_template(
    model: str | None, registry: str | None, probes: Sequence[Probe], trusted: Trusted | None = None
) -> str:
    """A commented policy.

    Args:
        model: M0; a placeholder if None.
        registry: where the probes are.
        probes: those to give rules to and to pin; none leaves the rules about probes as comments.
        trusted: what a trusted dataset says; without it, rules are what the probes alone tell.
    """
    environment = Environment(
        loader=PackageLoader("trl_attribution.gate", "policy"),
        autoescape=False,  # YAML, whose strings are written as JSON
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["json"] = json.dumps
    ruled = [_ruled(probe, trusted) for probe in probes] or [_Ruled("NAME-OF-A-PROBE", (), _by_recall(0.9))]
    return environment.get_template("policy.yaml.j2").render(
        model=model,
        registry=registry,
        probes=probes,
        ruled=ruled,
        baseline=None if trusted is None else trusted.baseline,
        mark="" if probes else "#   ",
    )


def draft(model: str | None, registry: str, probes: Sequence[Probe], folder: Path) -> PolicyFile:
    """The policy without its rules: what it takes to score a dataset with ``probes`` as the policy will.

    Raises:
        SettingsError: there are no probes.
    """
    if not probes:
        raise SettingsError(f"--from: there are no probes in {registry} to propose rules for. Build one first.")
    values = {
        "version": POLICY_VERSION,
        "probes": registry,
        "pins": {probe.name: probe.fingerprint for probe in probes},
        "rules": {"probes": {probe.name: {"max_score": 1} for probe in probes}},
    }
    return PolicyFile(Policy.model_validate(values if model is None else {**values, "model": model}), folder)


def _ruled(probe: Probe, trusted: Trusted | None) -> _Ruled:
    name = json.dumps(probe.name)
    if trusted is not None:
        return _Ruled(name, *_by_trusted(probe.name, trusted.proposals[probe.name], printable(trusted.dataset, 200)))
    if knows_pairs(probe):
        assert DEFAULT_RULE.recall is not None  # it is what the default rule is about
        return _Ruled(name, (), _by_recall(DEFAULT_RULE.recall))
    notes = ("The probe keeps no pairs of its own, so no threshold can be taken from it: `gate init --from TRUSTED`.",)
    return _Ruled(name, notes, (f"threshold: {PLACEHOLDER}        # pairs that score at least this are flagged", _NONE))


_NONE = "max_flagged_count: 0"


def _by_recall(recall: float) -> tuple[str, ...]:
    return (
        f"recall: {recall:g}  # flag what {recall:.0%} of pairs like the examples reach, where there is evidence",
        _NONE,
    )


def _by_trusted(name: str, found: Proposal, dataset: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Comments and rules."""
    pairs = counted(found.pairs, "pair")
    if found.decision is None:
        note = f"No threshold can be taken from a probe that keeps no pairs: none of the {pairs} of {dataset}"
        return (note, "scores as high as this one. How much it catches is not known."), (
            f"threshold: {found.threshold:g}",
            _NONE,
        )
    said = textwrap.wrap(f"{dataset}: {found.decision.sentence(name)}", _LONGEST)
    if found.reaching is None:
        return (*said, f"More than 1% of the {pairs} score as the examples do: no single pair is stopped for that."), (
            *_by_recall(found.recall),
        )
    single = f"limit: 0, recall: {found.reaching:g}, most_pairs: {found.most_pairs}"
    stopped = f"max_reaching_count: {{{single}}}  # {found.reached:,} of the {pairs} reach it"
    return tuple(said), (*_by_recall(found.recall), stopped)
