"""What a job leaves for a reviewer: the verdict, manifests of the offending pairs, and the dataset without them."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trl_attribution.errors import AttributionError, SettingsError, StoreError
from trl_attribution.gate.check import GateRun
from trl_attribution.gate.formats import render
from trl_attribution.gate.policy.file import PolicyFile
from trl_attribution.gate.rules.scores import KNOWN_BAD
from trl_attribution.gate.verdict import VERDICT_FORMAT, Violation
from trl_attribution.manifest import Decision, Manifest, ManifestHeader
from trl_attribution.scoring.kinds import Action, actions_by, why_no_flip
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.json_file import read_json
from trl_attribution.utils.kinds import EXAMPLES
from trl_attribution.utils.paths import local_path

_VERDICT = "verdict.json"
_MANIFESTS: dict[Action, str] = {"filter": "manifest.filter.jsonl", "flip": "manifest.flip.jsonl"}
_REPORTS = {"junit": "verdict.junit.xml", "sarif": "verdict.sarif", "markdown": "verdict.md"}
_CLEANED = "cleaned"


@dataclass(frozen=True)
class Artifacts:
    """What was written into the output folder."""

    folder: Path
    manifests: tuple[Path, ...]
    """Empty where no rule about scores objects to a pair."""
    cleaned: Path | None
    """The dataset with the offending pairs filtered or flipped."""
    pairs: int
    """How many pairs the manifests list."""


def write_artifacts(
    run: GateRun, file: PolicyFile, dataset: str | Path, folder: Path, action: Action = "filter"
) -> Artifacts:
    """Write verdict, reports, manifests and the cleaned dataset; those of an earlier run in ``folder`` are replaced.

    Args:
        run: what the gate came to.
        file: the policy.
        dataset: what was judged.
        folder: made if need be; one that holds something else is refused.
        action: what the cleaned dataset has done to the offending pairs.

    Raises:
        SettingsError: the folder holds something else than an earlier run of the gate.
        ManifestError, DataError: the dataset cannot be cleaned.
        AttributionError: the folder cannot be written.
    """
    check_output(folder, dataset)
    _remove_earlier(folder)
    # First: by it a folder is known as one of the gate's. The cleaned dataset comes last, for it alone can be refused.
    for name, target in {"json": _VERDICT, **_REPORTS}.items():
        with atomic_path(folder / target) as part:
            part.write_text(render(run.verdict, name), encoding="utf-8")
    listed = [violation for violation in run.offenders if _acted_on(violation)]
    if not listed:
        return Artifacts(folder, (), None, 0)
    kind = EXAMPLES[run.reading.kind]
    actions = actions_by([file.policy.score], kind)
    if action not in actions:
        raise SettingsError(f"--clean flip: {why_no_flip(kind)}; leave it out")
    manifests = {each: _manifest(run, file, each, listed) for each in actions}
    for each, manifest in manifests.items():
        manifest.save(folder / _MANIFESTS[each])
    cleaned = folder / _CLEANED / _name(dataset)
    manifests[action].apply_file(dataset, cleaned, reading=run.reading)
    return Artifacts(folder, tuple(folder / _MANIFESTS[each] for each in actions), cleaned, len(listed))


def check_output(folder: Path, dataset: str | Path) -> None:
    """Refuse a folder that holds something else than an earlier run of the gate, before any work is done.

    Raises:
        SettingsError: it does, it is a file, it lies in the dataset, whose next reader would read it as well, or the
            dataset lies in it, where it would be removed as the cleaned one of an earlier run.
    """
    target, given = local_path(folder).resolve(), local_path(dataset).resolve()
    if target.is_relative_to(given):
        raise SettingsError(f"--output {folder}: lies in the dataset {dataset}. Name a folder outside of it.")
    if given.is_relative_to(target) and given.exists():
        raise SettingsError(f"--output {folder}: the dataset {dataset} lies in it. Name another folder.")
    if folder.is_dir():
        if any(folder.iterdir()):
            _refuse_others_work(folder)
        return
    if folder.exists():
        raise SettingsError(f"--output {folder}: a file is in the way. Name a new folder.")


def _refuse_others_work(folder: Path) -> None:
    """By its verdict, of whatever version, a folder is known as one of the gate's."""
    try:
        read_json(folder / _VERDICT, VERDICT_FORMAT, sys.maxsize)
    except StoreError as error:
        raise SettingsError(
            f"--output {folder}: the folder holds something else than an earlier run of the gate. Name a new folder."
        ) from error


def _remove_earlier(folder: Path) -> None:
    try:
        for name in (*_MANIFESTS.values(), *_REPORTS.values()):
            (folder / name).unlink(missing_ok=True)
        if (folder / _CLEANED).exists():
            shutil.rmtree(folder / _CLEANED)
    except OSError as error:
        raise AttributionError(f"cannot write {folder}: {error.strerror or error}. Name another folder.") from error


def _manifest(run: GateRun, file: PolicyFile, action: Action, listed: Sequence[Violation]) -> Manifest:
    verdict, inventory = run.verdict, run.inventory
    broken = [rule.rule for rule in verdict.rules if not rule.passed]
    header = ManifestHeader(
        action=action,
        dataset_fingerprint=inventory.fingerprint,
        model_fingerprint=verdict.model_fingerprint,
        probe_fingerprints=dict(verdict.probe_fingerprints),
        rule={"gate": broken, "policy": file.policy.digest},
        counts={"pairs": len(inventory), "examined": verdict.examined, **_by_probe(listed)},
        kind=run.reading.kind,
        reading=asdict(run.reading),
    )
    return Manifest(
        header, tuple(_decision(violation, action, place) for place, violation in enumerate(listed, start=1))
    )


def _by_probe(listed: Sequence[Violation]) -> dict[str, int]:
    return {f"by_{name}": count for name, count in sorted(Counter(each.probe or KNOWN_BAD for each in listed).items())}


def _acted_on(violation: Violation) -> bool:
    """Pairs that do not push towards the behavior are left alone: flipping them would teach it."""
    return violation.score is not None and violation.score > 0


def _decision(violation: Violation, action: Action, place: int) -> Decision:
    assert violation.pair_id is not None  # it is one of those that _acted_on lets through
    assert violation.place is not None
    assert violation.score is not None
    return Decision(
        pair_id=violation.pair_id,
        row=violation.place.row,
        action=action,
        probe=violation.probe or KNOWN_BAD,
        score=violation.score,
        rank=place if violation.rank is None else violation.rank,
        q_value=violation.q_value,
    )


def _name(dataset: str | Path) -> str:
    """The dataset's own name, by which the output has its format; a folder's or Hub id's has no suffix."""
    path = local_path(dataset)
    name = path.name if path.name not in ("", "..") else path.resolve().name or "dataset"
    return name if path.is_file() else name.replace(".", "-")
