"""The gate itself: a policy and a dataset in, a verdict out."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trl_attribution.errors import DataError, SettingsError, describe_difference
from trl_attribution.gate.baseline.baseline import Baseline
from trl_attribution.gate.policy.file import PolicyFile
from trl_attribution.gate.policy.probes import PolicyProbes, choose_layers, load_policy_probes
from trl_attribution.gate.rows.changes import NewRows
from trl_attribution.gate.rows.inventory import BadRow, Integers, Inventory, take_inventory
from trl_attribution.gate.rows.places import Places, as_written
from trl_attribution.gate.rules.drafts import AllowList, Draft, Offense
from trl_attribution.gate.rules.hygiene import hygiene_drafts, tolerated_reasons
from trl_attribution.gate.rules.listing import finished
from trl_attribution.gate.rules.scored import judge, needs_whole_dataset, nothing_scored, score_pairs
from trl_attribution.gate.rules.scores import Docket, known_bad_draft, probe_drafts
from trl_attribution.gate.vectors.supply import Needed, OnProgress, Supplier, Supply
from trl_attribution.gate.verdict import Verdict
from trl_attribution.pairs import PairReader, Reading
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import counted, printable
from trl_attribution.utils.version import __version__

_SHOWN = 10


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


@dataclass(frozen=True)
class GateRun:
    """A verdict, and what is needed to act on it."""

    verdict: Verdict
    inventory: Inventory
    offenders: tuple[Offense, ...]
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
    return _Gate(file, dataset, options, on_progress or (lambda _stage, _done, _total: None)).run()


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
        allow = AllowList(policy.allow, self.options.today, inventory)
        everything = Docket(
            inventory, inventory.examined_positions, allow, "pairs" if self.options.base_ref is None else "new pairs"
        )
        supply, usable = None, everything.examined
        drafts: list[Draft] = []
        if policy.rules.need_vectors:
            supply, usable, drafts = self._judge_vectors(everything)
        unusable = supply.unusable if supply is not None else ()
        drafts += hygiene_drafts(everything, policy.rules.hygiene, unusable)
        results = finished(drafts, inventory, Places(inventory.reader.source), policy.max_findings)
        skipped = Counter(row.reason for row in [*inventory.bad_rows, *(row for _, row in unusable)])
        probes = self.materials.probes.ruled
        verdict = Verdict(
            dataset=shown_name(self.dataset),
            base_ref=None if self.options.base_ref is None else printable(self.options.base_ref),
            pairs=len(inventory),
            examined=len(usable),
            computed=supply.computed if supply is not None else 0,
            cached=supply.cached if supply is not None else 0,
            skipped=dict(sorted(skipped.items())),
            model_fingerprint=self.materials.model_fingerprint if policy.rules.need_vectors else "",
            probe_fingerprints={each.name: each.probe.fingerprint for each in probes},
            policy_digest=policy.digest,
            tool_version=__version__,
            rules=results.rules,
            notes=tuple(dict.fromkeys([*self.notes, *results.notes, *allow.notes()])),
        )
        reading = replace(inventory.reader.reading, format=inventory.reader.format)
        return GateRun(verdict, inventory, tuple(_offenders(drafts)), reading)

    def _read(self) -> Inventory:
        reading, base_ref = Reading(**self.policy.reading.model_dump()), self.options.base_ref
        new = None if base_ref is None else NewRows(self.dataset, base_ref, reading)
        reader = PairReader(self.dataset, reading)
        total = reader.source.num_rows or 0
        inventory = take_inventory(
            reader,
            None if new is None else new.among,
            tolerated_reasons(self.policy.rules.hygiene),
            lambda done: self.on_progress("read", done, total),
        )
        self.notes += new.notes if new is not None else ()
        return inventory

    def _judge_vectors(self, docket: Docket) -> tuple[Supply | None, Integers, list[Draft]]:
        """The results of the rules about vectors, where these come from, and the pairs that could be judged."""
        materials, policy = self.materials, self.policy
        ruled, baseline = materials.probes.ruled, materials.baseline
        if not len(docket.examined):
            empty = [nothing_scored(each, policy.score) for each in ruled]
            drafts = [draft for found in empty for draft in probe_drafts(docket, found)]
            return None, docket.examined, drafts + self._known_bad(docket, None)
        whole = needs_whole_dataset(ruled, policy.score, baseline)
        wanted = np.arange(len(docket.inventory)) if whole else docket.examined
        supply = materials.supplier(self.options.trust_remote_code, self.on_progress).supply(docket.inventory, wanted)
        self._refuse_unusable(docket.inventory, supply.unusable)
        lost = np.array([position for position, _ in supply.unusable], dtype=np.int64)
        wanted, usable = np.setdiff1d(wanted, lost), np.setdiff1d(docket.examined, lost)
        docket = replace(docket, examined=usable)
        self.notes += _precision_note(supply, baseline)
        drafts = []
        if ruled and len(usable):
            scored = score_pairs(
                supply,
                docket.inventory,
                wanted,
                ruled,
                policy.score,
                baseline,
                lambda done, total: self.on_progress("scores", done, total),
            )
            judged = [judge(scored, usable, each, policy.score, baseline) for each in ruled]
        else:
            judged = [nothing_scored(each, policy.score) for each in ruled]
        for found in judged:
            self.notes += found.notes
            drafts += probe_drafts(docket, found)
        return supply, usable, drafts + self._known_bad(docket, supply)

    def _known_bad(self, docket: Docket, supply: Supply | None) -> list[Draft]:
        rule, baseline = self.policy.rules.known_bad, self.materials.baseline
        if rule is None or baseline is None:
            return []
        view = None
        if supply is not None and len(docket.examined):
            view = supply.view(docket.inventory.ids_at(docket.examined))
        return [known_bad_draft(docket, rule, view, baseline, max(self.materials.layers))]

    def _refuse_unusable(self, inventory: Inventory, unusable: Sequence[tuple[int, BadRow]]) -> None:
        if inventory.reader.reading.on_bad_row == "skip":
            return
        tolerated = tolerated_reasons(self.policy.rules.hygiene)
        bad = [row for _, row in unusable if row.reason not in tolerated]
        if not bad:
            return
        lines = [f"  {printable(row.location)}: {row.sentence}" for row in bad[:_SHOWN]]
        lines += [f"  and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        head = f"{inventory.reader.source.name}: {counted(len(bad), 'pair')} cannot be encoded."
        fix = (
            "Mend these rows, raise encoding.max_length, give the rule hygiene.long_prompts (it judges over-long "
            "prompts), or leave them out with `reading: {on_bad_row: skip}` in the policy."
        )
        raise DataError("\n".join([head, *lines, fix]))


@dataclass(frozen=True)
class Materials:
    """What a policy names: probes and baseline, known to fit one another."""

    file: PolicyFile
    probes: PolicyProbes
    baseline: Baseline | None
    layers: tuple[int, ...]

    @property
    def model_fingerprint(self) -> str:
        """Of the M0 that all vectors have to be of."""
        if self.probes.ruled:
            return self.probes.ruled[0].probe.model.digest
        return self.baseline.origin.model_fingerprint if self.baseline is not None else ""

    def supplier(self, trust_remote_code: bool, on_progress: OnProgress) -> Supplier:
        """What finds or computes vectors."""
        hidden = self.probes.ruled[0].probe.hidden_size if self.probes.ruled else 0
        if self.baseline is not None and not hidden:
            hidden = self.baseline.hidden_size
        needed = Needed(tuple(self.probes.probes), self.model_fingerprint, hidden, self.layers)
        return Supplier(self.file, needed, trust_remote_code, on_progress)


def load_materials(file: PolicyFile, download: bool, with_baseline: bool = True) -> Materials:
    """Load what the policy names; nothing where no rule is about vectors.

    Raises:
        SettingsError: the baseline was recorded with another M0 or another truncation.
        ProbeError, StoreError: a probe or the baseline is missing or broken.
    """
    policy = file.policy
    probes = load_policy_probes(file, download)
    baseline = None
    if with_baseline and policy.baseline is not None and policy.rules.need_vectors:
        baseline = Baseline.load(file.path(policy.baseline))
    layers = choose_layers(policy.layers, probes.ruled)
    if not layers and baseline is not None:
        layers = baseline.layers
    found = Materials(file, probes, baseline, layers)
    if baseline is not None:
        _check_baseline(found, baseline)
    return found


def shown_name(dataset: str | Path) -> str:
    """The dataset as reports call it: a path relative to the working directory, or a Hub id."""
    path = local_path(dataset)
    return printable(as_written(path) if path.exists() else dataset, 400)


def _check_baseline(materials: Materials, baseline: Baseline) -> None:
    encoding, origin = materials.file.policy.encoding, baseline.origin
    recorded: dict[str, object] = {
        "model_fingerprint": origin.model_fingerprint,
        "max_length": origin.max_length,
        "truncation_mode": origin.truncation_mode,
    }
    asked: dict[str, object] = {
        "model_fingerprint": materials.model_fingerprint,
        "max_length": encoding.max_length,
        "truncation_mode": encoding.truncation_mode,
    }
    lacking = sorted(set(materials.layers) - set(baseline.layers))
    if recorded != asked or lacking:
        recorded["layers"], asked["layers"] = list(baseline.layers), list(materials.layers)
        raise SettingsError(
            f"baseline: {materials.file.policy.baseline} was recorded with something else than the policy and its "
            f"probes:\n{describe_difference(recorded, asked)}\nRecord it again with `trl-attribution gate baseline`."
        )


def _precision_note(supply: Supply, baseline: Baseline | None) -> list[str]:
    found = {store.settings.compute_dtype for store in supply.stores}
    if baseline is None or found <= {baseline.origin.compute_dtype}:
        return []
    computed, recorded = ", ".join(sorted(found)), baseline.origin.compute_dtype
    return [
        f"vectors were computed in {computed}, the baseline's in {recorded}: that alone makes scores differ a little"
    ]


def _offenders(drafts: Sequence[Draft]) -> Iterator[Offense]:
    seen: set[int] = set()
    for draft in drafts:
        for offense in draft.pairs if not draft.passed else ():
            if offense.position is not None and offense.position not in seen:
                seen.add(offense.position)
                yield offense
