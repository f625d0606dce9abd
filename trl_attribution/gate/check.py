"""The gate itself: a policy and a dataset in, a verdict out."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trl_attribution.errors import SettingsError
from trl_attribution.gate.baseline.baseline import GateBaseline
from trl_attribution.gate.materials import load_materials
from trl_attribution.gate.policy.file import PolicyFile
from trl_attribution.gate.rows.changes import NewRows
from trl_attribution.gate.rows.inventory import Inventory, take_inventory
from trl_attribution.gate.rules.docket import AllowList, Docket, Outcome
from trl_attribution.gate.rules.hygiene import hygiene_outcomes
from trl_attribution.gate.rules.listing import cut_notes, listed
from trl_attribution.gate.rules.scored import judge, needs_whole_dataset, nothing_scored, score_pairs
from trl_attribution.gate.rules.scores import known_bad_outcome, probe_outcomes
from trl_attribution.gate.rules.statements import statement
from trl_attribution.gate.vectors.supply import Supplier, Supply
from trl_attribution.gate.verdict import Statement, Verdict, Violation, as_written
from trl_attribution.pairs import PairReader, Reading
from trl_attribution.scoring import fit_notes
from trl_attribution.scoring.asked import asked_of
from trl_attribution.utils.arrays import Integers
from trl_attribution.utils.kinds import EXAMPLES
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.progress import OnProgress, silent
from trl_attribution.utils.text import printable
from trl_attribution.utils.version import __version__


@dataclass(frozen=True)
class GateOptions:
    """What of a run is not the policy's to say."""

    today: datetime.date
    """The day that allow entries are valid on or not."""
    base_ref: str | None = None
    """Judge only what git says was added or changed since the branch left this reference."""
    download: bool = False
    """Fetch probes from a Hub repo."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    vectors: Path | None = None
    """An audit folder or vector store to take vectors from, in the place of the policy's ``vectors``."""


@dataclass(frozen=True)
class _Judged:
    """What the rules about vectors come to."""

    supply: Supply
    usable: Integers
    """The examined pairs that could be judged."""
    outcomes: list[Outcome]
    statements: list[Statement]


@dataclass(frozen=True)
class GateRun:
    """A verdict, and what is needed to act on it."""

    verdict: Verdict
    inventory: Inventory
    offenders: tuple[Violation, ...]
    """Every pair that a broken rule about scores or known-bad pairs objects to, once, worst first."""
    reading: Reading
    """How the dataset was read; its format is known by now."""


def run_gate(
    file: PolicyFile, dataset: str | Path, options: GateOptions, on_progress: OnProgress | None = None
) -> GateRun:
    """Judge ``dataset`` by a policy.

    Args:
        file: the policy, as :func:`load_policy` returns it.
        dataset: a file, a folder or a Hub id; with ``base_ref`` a path in a git working tree.
        options: see :class:`GateOptions`.
        on_progress: see :data:`OnProgress`.

    Raises:
        DataError: the dataset cannot be read, or has bad rows that the policy does not let pass.
        SettingsError: the policy, its baseline, stores and probes do not fit one another, or cannot decide.
        StoreError, ProbeError, ModelError: vectors, probes or model are missing or broken.
    """
    return _Gate(file, dataset, options, on_progress or silent).run()


class _Gate:
    """One run under way."""

    def __init__(self, file: PolicyFile, dataset: str | Path, options: GateOptions, on_progress: OnProgress) -> None:
        self.file, self.policy = file, file.policy
        self.dataset, self.options, self.on_progress = dataset, options, on_progress
        self.materials = load_materials(file, options.download)
        self.notes: list[str] = [*self.materials.probes.notes]

    def run(self) -> GateRun:
        policy = self.policy
        inventory = self._read()
        docket = Docket(
            inventory,
            inventory.examined_positions,
            AllowList(policy.allow, self.options.today),
            "pairs" if self.options.base_ref is None else "new pairs",
        )
        judged = _Judged(Supply(), docket.examined, [], [])
        if policy.rules.need_vectors:
            judged = self._judge_vectors(docket)
        supply = judged.supply
        outcomes = [*judged.outcomes, *hygiene_outcomes(docket, policy.rules.hygiene, supply.unusable)]
        self.notes += [*cut_notes(outcomes, policy.max_findings), *docket.allow.notes(inventory)]
        skipped = Counter(row.reason for row in [*inventory.bad_rows, *(row for _, row in supply.unusable)])
        shown = listed(outcomes, judged.statements, docket, policy.max_findings)
        verdict = Verdict(
            dataset=shown_name(self.dataset),
            base_ref=None if self.options.base_ref is None else printable(self.options.base_ref),
            pairs=len(inventory),
            examined=len(judged.usable),
            computed=supply.computed,
            cached=supply.cached,
            skipped=dict(sorted(skipped.items())),
            model_fingerprint=self.materials.model_fingerprint if policy.rules.need_vectors else "",
            probe_fingerprints={each.name: each.probe.fingerprint for each in self.materials.probes.ruled},
            policy_digest=policy.digest,
            tool_version=__version__,
            rules=shown.rules,
            notes=tuple(dict.fromkeys(self.notes)),
            reused=supply.reused,
            statements=shown.statements,
        )
        return GateRun(verdict, inventory, tuple(_offenders(outcomes)), self._reading(inventory))

    def _reading(self, inventory: Inventory) -> Reading:
        """How the dataset is read again: bad rows that got this far are tolerated, and stay where they are."""
        resolved = inventory.reader.resolved
        return replace(resolved, on_bad_row="skip") if inventory.bad_rows else resolved

    def _read(self) -> Inventory:
        reading, base_ref = self.policy.reading, self.options.base_ref
        reader = PairReader(self.dataset, reading)
        if reader.has_images and (base_ref is not None or self.policy.rules.need_vectors):
            what = "--base-ref" if base_ref is not None else "rules about scores and known-bad pairs"
            raise SettingsError(
                f"{reader.source.name}: holds images, and the gate judges the rows of such a dataset without {what}. "
                "Leave them out here, and audit the dataset: trl-attribution audit"
            )
        new = None if base_ref is None else NewRows(self.dataset, base_ref, reading)
        examine = None if new is None else new.among
        tolerated = self.policy.rules.hygiene.tolerated
        inventory = take_inventory(reader, examine, tolerated, self.on_progress)
        self.notes += new.notes if new is not None else ()
        return inventory

    def _judge_vectors(self, docket: Docket) -> _Judged:
        ruled, baseline = self.materials.probes.ruled, self.materials.baseline
        kind = asked_of(docket.inventory.reader.kind, self.policy.score)
        supply, usable, judged = Supply(), docket.examined, [nothing_scored(each, kind) for each in ruled]
        wanted = np.arange(len(docket.inventory)) if needs_whole_dataset(ruled, kind, baseline) else usable
        if len(usable):
            supplier = Supplier(
                self.materials, self.options.trust_remote_code, self.on_progress, vectors=self.options.vectors
            )
            supply = supplier.supply(docket.inventory, wanted)
            wanted, usable = supply.usable(wanted), supply.usable(usable)
            self.notes += [*supply.notes, *_precision_note(supply, baseline)]
        docket = replace(docket, examined=usable)
        if ruled and len(usable):
            view = supply.view(docket.inventory.ids_at(wanted))
            asked, reader = [each.probe for each in ruled], docket.inventory.reader
            centered = len(wanted) if baseline is None else baseline.origin.pairs
            of = EXAMPLES[reader.kind]
            self.notes += fit_notes(centered, asked, kind, conversational=reader.conversational, of=of)
            scores = score_pairs(view, ruled, kind, baseline, self.on_progress)
            places = np.searchsorted(wanted, usable)
            judged = [judge(scores, places, each, kind, baseline) for each in ruled]
        self.notes += [note for found in judged for note in found.notes]
        outcomes = [outcome for found in judged for outcome in probe_outcomes(docket, found)]
        said = [statement(docket, found, self.policy.max_findings) for found in judged]
        return _Judged(supply, usable, outcomes + self._known_bad(docket, supply), said)

    def _known_bad(self, docket: Docket, supply: Supply) -> list[Outcome]:
        rule, baseline = self.policy.rules.known_bad, self.materials.baseline
        if rule is None or baseline is None:
            return []
        view = supply.view(docket.inventory.ids_at(docket.examined)) if len(docket.examined) else None
        return [known_bad_outcome(docket, rule, view, baseline, max(self.materials.layers))]


def shown_name(dataset: str | Path) -> str:
    """The dataset as reports call it: a path relative to the working directory, or a Hub id."""
    path = local_path(dataset)
    return printable(as_written(path) if path.exists() else dataset, 400)


def _precision_note(supply: Supply, baseline: GateBaseline | None) -> list[str]:
    found = {store.settings.compute_dtype for store in supply.stores}
    if baseline is None or found <= {baseline.origin.compute_dtype}:
        return []
    computed, recorded = ", ".join(sorted(found)), baseline.origin.compute_dtype
    return [
        f"vectors were computed in {computed}, the baseline's in {recorded}: that alone makes scores differ a little"
    ]


def _offenders(outcomes: Sequence[Outcome]) -> list[Violation]:
    """The pairs that rules about scores and known-bad pairs object to, each once."""
    found: dict[str, Violation] = {}
    for violation in (pair for outcome in outcomes for pair in outcome.pairs):
        if violation.pair_id is not None and violation.score is not None:
            found.setdefault(violation.pair_id, violation)
    return list(found.values())
