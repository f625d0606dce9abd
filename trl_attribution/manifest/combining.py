"""Manifests made from manifests: merged, with what people decided above all else, or with pairs taken out."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from trl_attribution.errors import ManifestError
from trl_attribution.manifest.config import MergeRules, Precedence
from trl_attribution.manifest.decisions import Action, ReviewDecision, ReviewDecisions
from trl_attribution.manifest.manifest import Decision, Manifest, ManifestHeader
from trl_attribution.pairs import Reading
from trl_attribution.utils.text import MOST_SHOWN, counted, printable, some_lines
from trl_attribution.utils.version import __version__

_STRICTNESS = {"keep": 0, "flip": 1, "filter": 2}
_NAME = re.compile(r'(?:\A|, )(?:"((?:[^"]|"")*)"(?=, |\Z)|((?:(?!, ).)*))', re.DOTALL)


@dataclass(frozen=True)
class Conflict:
    """A pair about which manifests, or reviewers, decided differently."""

    pair_id: str
    actions: tuple[tuple[str, Action], ...]
    """Who (the place of a manifest from 1, or a reviewer's name) decided what, in order."""
    chosen: Action


@dataclass(frozen=True)
class Merged:
    """A merged manifest, and what had to be settled."""

    manifest: Manifest
    conflicts: tuple[Conflict, ...]
    overridden: int
    """Pairs for which a reviewer's decision replaced that of the scores."""
    added: int
    """Pairs that only reviewers decided about."""


@dataclass(frozen=True)
class Difference:
    """Where two manifests decide differently."""

    only_first: tuple[Decision, ...]
    only_second: tuple[Decision, ...]
    changed: tuple[tuple[Decision, Decision], ...]
    """The first's and the second's decision, where both list a pair and the action differs."""
    same: int
    """Pairs with the same action in both."""


def merge(
    manifests: Sequence[Manifest], rules: MergeRules | None = None, reviews: Iterable[ReviewDecisions] = ()
) -> Merged:
    """One manifest that lists every pair that any of ``manifests`` lists, or that a reviewer decided about.

    What reviewers decided counts for more than any score, also what they decided about a merged manifest's parents;
    otherwise ``rules.precedence`` settles what differs. Decisions come in row order.

    Raises:
        ManifestError: nothing is given, the manifests or reviews are about different datasets, models, probes or ways
            of reading (unless the rules allow it), or decisions differ and the precedence is ``refuse``.
    """
    rules = rules or MergeRules()
    if not manifests:
        raise ManifestError("there is nothing to merge: give at least one manifest")
    _check_alike(manifests, rules)
    reviewed = list(reviews)
    _check_reviews(manifests[0], reviewed, rules)
    settled = _Settled(rules.precedence)
    by_pair: dict[str, list[tuple[str, Decision]]] = {}
    for place, manifest in enumerate(manifests, start=1):
        for decision in manifest.decisions:
            by_pair.setdefault(decision.pair_id, []).append((f"manifest {place}", decision))
    # One who decided in several files has decided what the last of them says.
    spoken = tuple(decision for review in reviewed for decision in review.decisions)
    judged = ReviewDecisions(manifests[0].header.dataset_fingerprint, spoken).by_pair()
    decisions = {pair_id: settled.of_manifests(pair_id, found, pair_id in judged) for pair_id, found in by_pair.items()}
    for pair_id, opinions in judged.items():
        decisions[pair_id] = settled.of_reviewers(pair_id, opinions, decisions.get(pair_id))
    settled.refuse_conflicts()
    return Merged(
        _combined(manifests, reviewed, rules, list(decisions.values())),
        tuple(settled.conflicts),
        settled.overridden,
        settled.added,
    )


def subtract(manifest: Manifest, others: Sequence[Manifest], allow_other_datasets: bool = False) -> Manifest:
    """``manifest`` without the pairs that any of ``others`` lists, whatever is decided about them there.

    Raises:
        ManifestError: they are about different datasets (unless that is allowed).
    """
    _check_datasets([manifest, *others], allow_other_datasets)
    taken = {decision.pair_id for other in others for decision in other.decisions}
    left = [decision for decision in manifest.decisions if decision.pair_id not in taken]
    return derived(manifest, left, {"subtracted": [other.digest for other in others]}, others)


def diff(first: Manifest, second: Manifest) -> Difference:
    """Where two manifests decide differently; scores are not compared."""
    ours = {decision.pair_id: decision for decision in first.decisions}
    theirs = {decision.pair_id: decision for decision in second.decisions}
    both = [(ours[pair_id], theirs[pair_id]) for pair_id in ours if pair_id in theirs]
    changed = tuple(pair for pair in both if pair[0].action != pair[1].action)
    return Difference(
        tuple(decision for pair_id, decision in ours.items() if pair_id not in theirs),
        tuple(decision for pair_id, decision in theirs.items() if pair_id not in ours),
        changed,
        len(both) - len(changed),
    )


def derived(
    manifest: Manifest, decisions: Sequence[Decision], how: Mapping[str, Any], others: Sequence[Manifest] = ()
) -> Manifest:
    """A manifest with some of the decisions of ``manifest``; ``how`` joins its rule, and its parents are named."""
    header = dataclasses.replace(
        manifest.header,
        rule={**manifest.header.rule, **how},
        parents=(manifest.digest, *(other.digest for other in others)),
        tool_version=__version__,
    )
    return Manifest(header, tuple(decisions))


class _Settled:
    """Settles what differs, and remembers it."""

    def __init__(self, precedence: Precedence) -> None:
        self._precedence = precedence
        self.conflicts: list[Conflict] = []
        self.overridden = 0
        self.added = 0

    def of_manifests(self, pair_id: str, found: list[tuple[str, Decision]], is_judged: bool) -> Decision:
        human = [(place, decision) for place, decision in found if decision.reviewer is not None]
        heard = human or found
        # What scores say of a pair is no conflict where reviewers have decided about it.
        note = bool(human) or not is_judged
        action = self._action(pair_id, [(place, decision.action) for place, decision in heard], note)
        if self._precedence in ("first", "last"):
            return heard[0 if self._precedence == "first" else -1][1]
        # The same decision whatever the order and grouping: the strongest evidence for the action that won.
        return max((decision for _, decision in heard if decision.action == action), key=_evidence)

    def of_reviewers(self, pair_id: str, opinions: Sequence[ReviewDecision], listed: Decision | None) -> Decision:
        said = [(one.reviewer, one.action) for one in opinions]
        # Whom the manifest names has decided too, unless the same person did so again.
        named = [] if listed is None or listed.reviewer is None else _names_in(listed.reviewer)
        before = [name for name in named if name not in dict(said)]
        if listed is not None and any(before):
            said = [*((name, listed.action) for name in before), *said]
        action = self._action(pair_id, [(who or "unnamed reviewer", one) for who, one in said])
        reviewer = _names_joined(sorted({who for who, one in said if one == action}))
        if listed is None:
            self.added += 1
            return Decision(pair_id, None, action, "", None, None, None, reviewer)
        self.overridden += listed.action != action
        return dataclasses.replace(listed, action=action, reviewer=reviewer)

    def refuse_conflicts(self) -> None:
        """Raise if decisions differ and nothing says who wins."""
        if self._precedence != "refuse" or not self.conflicts:
            return
        lines = [
            f"{one.pair_id}: " + ", ".join(f"{printable(who, 60)} says {action}" for who, action in one.actions[:5])
            for one in self.conflicts[:MOST_SHOWN]
        ]
        shown = some_lines(lines, len(self.conflicts))
        last = f"Say who wins with --precedence: {', '.join(get_args(Precedence)[1:])}."
        raise ManifestError(
            "\n".join([f"decisions differ about {counted(len(self.conflicts), 'pair')}:", *shown, last])
        )

    def _action(self, pair_id: str, opinions: list[tuple[str, Action]], note: bool = True) -> Action:
        """Who wins; that they differ is to be noted unless it no longer matters."""
        actions = [action for _, action in opinions]
        if self._precedence in ("strictest", "gentlest"):
            ranked = sorted(actions, key=_STRICTNESS.__getitem__)
            chosen = ranked[-1 if self._precedence == "strictest" else 0]
        else:
            chosen = actions[-1 if self._precedence == "last" else 0]
        if note and len(set(actions)) > 1:
            self.conflicts.append(Conflict(pair_id, tuple(opinions), chosen))
        return chosen


def _names_joined(names: Iterable[str]) -> str:
    """Reviewers' names side by side; one that could be taken for several stands in quotes, as in a CSV file."""
    return ", ".join(
        '"' + name.replace('"', '""') + '"' if ", " in name or name.startswith('"') else name for name in names
    )


def _names_in(text: str) -> list[str]:
    """The names that :func:`_names_joined` has put together."""
    return [quoted.replace('""', '"') or plain for quoted, plain in _NAME.findall(text)]


def _evidence(decision: Decision) -> tuple[Any, ...]:
    """A total order of the decisions about one pair, the best-founded last."""
    score = float("-inf") if decision.score is None else decision.score
    rank = 0 if decision.rank is None else -decision.rank
    known = (decision.q_value is not None, decision.q_value or 0.0, decision.row is not None, -(decision.row or 0))
    return (decision.reviewer is not None, score, decision.probe, rank, *known, decision.reviewer or "")


def _combined(
    manifests: Sequence[Manifest], reviews: Sequence[ReviewDecisions], rules: MergeRules, decisions: list[Decision]
) -> Manifest:
    headers = [manifest.header for manifest in manifests]
    decisions.sort(key=lambda one: (one.row is None, one.row or 0, one.pair_id))
    pairs = {header.counts.get("pairs") for header in headers}
    shared = pairs.pop() if len(pairs) == 1 else None
    header = ManifestHeader(
        action=_action_of(headers, decisions),
        dataset_fingerprint=headers[0].dataset_fingerprint,
        model_fingerprint=_joined(header.model_fingerprint for header in headers),
        probe_fingerprints=_joined_probes(headers),
        rule=_joined_rule(headers, rules),
        counts={} if shared is None else {"pairs": shared},
        kind=headers[0].kind,
        reading=headers[0].reading,
        parents=tuple(manifest.digest for manifest in manifests),
        reviews=tuple(dict.fromkeys((*(one for header in headers for one in header.reviews), *_digests(reviews)))),
    )
    return Manifest(header, tuple(decisions))


def _digests(reviews: Sequence[ReviewDecisions]) -> list[str]:
    return [review.digest for review in reviews]


def _action_of(headers: Sequence[ManifestHeader], decisions: Sequence[Decision]) -> Literal["filter", "flip", "mixed"]:
    acting = Counter(decision.action for decision in decisions if decision.action != "keep")
    if acting:
        return "mixed" if len(acting) > 1 else "filter" if acting["filter"] else "flip"
    stated = {header.action for header in headers}
    return stated.pop() if len(stated) == 1 else "mixed"


def _joined_rule(headers: Sequence[ManifestHeader], rules: MergeRules) -> dict[str, Any]:
    if len(headers) == 1:
        return headers[0].rule
    return {"merged": len(headers), "precedence": rules.precedence, "rules": [header.rule for header in headers]}


def _joined_probes(headers: Sequence[ManifestHeader]) -> dict[str, str]:
    names = sorted({name for header in headers for name in header.probe_fingerprints})
    return {
        name: _joined(header.probe_fingerprints[name] for header in headers if name in header.probe_fingerprints)
        for name in names
    }


def _joined(fingerprints: Iterable[str]) -> str:
    """Different fingerprints side by side, in an order that does not depend on who came first."""
    return " + ".join(sorted({one for text in fingerprints for one in text.split(" + ")}))


def _columns_read(manifest: Manifest) -> Reading:
    """Without the end of text: manifests from before it was kept are still about the same pairs."""
    return dataclasses.replace(manifest.reading, eos_token=None)


def _check_alike(manifests: Sequence[Manifest], rules: MergeRules) -> None:
    _check_datasets(manifests, rules.allow_other_datasets)
    if not rules.allow_other_datasets and len({_columns_read(manifest) for manifest in manifests}) > 1:
        raise ManifestError(
            "the manifests read their datasets differently (columns, format or split), so one of them cannot be "
            "applied where the other can. Audit with the same options, or merge them all the same with "
            "--allow-other-datasets; the first manifest's way of reading then counts."
        )
    if rules.allow_other_models:
        return
    models = dict.fromkeys(manifest.header.model_fingerprint for manifest in manifests)
    if len(models) > 1:
        raise ManifestError(
            f"the manifests were made with different models (fingerprints {_short(models)}), whose scores cannot be "
            "compared. Merge them all the same with --allow-other-models."
        )
    for name, prints in _probe_prints(manifests).items():
        if len(prints) > 1:
            raise ManifestError(
                f"the manifests were made with different probes of the name '{printable(name)}' (fingerprints "
                f"{_short(prints)}). Merge them all the same with --allow-other-models."
            )


def _probe_prints(manifests: Sequence[Manifest]) -> dict[str, dict[str, None]]:
    prints: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        for name, fingerprint in manifest.header.probe_fingerprints.items():
            prints.setdefault(name, {})[fingerprint] = None
    return prints


def _check_datasets(manifests: Sequence[Manifest], allowed: bool) -> None:
    datasets = dict.fromkeys(manifest.header.dataset_fingerprint for manifest in manifests)
    if len(datasets) > 1 and not allowed:
        raise ManifestError(
            f"the manifests are about different datasets (fingerprints {_short(datasets)}). Pairs are the same "
            "wherever they stand, so --allow-other-datasets may be what you want."
        )


def _check_reviews(manifest: Manifest, reviews: Sequence[ReviewDecisions], rules: MergeRules) -> None:
    about = dict.fromkeys((manifest.header.dataset_fingerprint, *(one.dataset_fingerprint for one in reviews)))
    if len(about) > 1 and not rules.allow_other_datasets:
        raise ManifestError(
            f"the reviewers' decisions are about another dataset than the manifest (fingerprints {_short(about)}). "
            "Give those about this dataset, or use them all the same with --allow-other-datasets."
        )


def _short(fingerprints: Iterable[str]) -> str:
    return ", ".join(f"{printable(one, 16)}" for one in fingerprints)
