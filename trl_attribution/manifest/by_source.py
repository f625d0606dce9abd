"""Manifests cut by where pairs come from: only some sources, or at most a share of any."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trl_attribution.errors import ManifestError, SettingsError
from trl_attribution.manifest.combining import derived
from trl_attribution.manifest.manifest import Decision, Manifest
from trl_attribution.pairs import FingerprintBuilder, PairReader
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import printable

Share = Literal["source", "manifest"]
_SHOWN = 20


@dataclass(frozen=True)
class Sources:
    """Where the pairs of a dataset come from."""

    of: Mapping[str, str]
    """Source by ``pair_id``, every different pair once."""

    @classmethod
    def read(cls, place: str | Path, manifest: Manifest) -> Sources:
        """From an audit folder, its ``scores.parquet``, or the dataset itself.

        Args:
            place: any of the three.
            manifest: whose pairs have to be there; also says how the dataset is read.

        Raises:
            ManifestError: the audit or dataset is another one than the manifest's, or lacks pairs that it lists.
            StoreError, DataError: it cannot be read.
        """
        path = local_path(place)
        if path.is_dir() and (path / "scores.parquet").exists():
            _check_audit(path, manifest)
            path = path / "scores.parquet"
        found = cls(_of_scores(path) if _is_scores(path) else _of_dataset(place, manifest))
        lacking = [one.pair_id for one in manifest.decisions if one.pair_id not in found.of]
        if lacking:
            raise ManifestError(
                f"{printable(place, 400)}: lacks {len(lacking)} of the {len(manifest.decisions)} pairs that the "
                f"manifest lists, such as {lacking[0]}. Give the audit or the dataset that it was made from."
            )
        return found

    def counts(self) -> Counter[str]:
        """Different pairs of each source."""
        return Counter(self.of.values())


def restrict(manifest: Manifest, sources: Sources, only: Sequence[str] = (), without: Sequence[str] = ()) -> Manifest:
    """The decisions about pairs of the sources ``only``, or of all but ``without``.

    Raises:
        SettingsError: none or both are given, or a source is unknown.
    """
    if bool(only) == bool(without):
        raise SettingsError("name the sources to stay (--only) or those to leave out (--without), one of the two")
    known = sources.counts()
    unknown = [name for name in (*only, *without) if name not in known]
    if unknown:
        there = ", ".join(printable(name, 60) for name, _ in known.most_common(_SHOWN))
        raise SettingsError(f"no pair comes from source '{printable(unknown[0])}'. Sources there: {there}.")
    chosen = set(only) if only else known.keys() - set(without)
    left = [decision for decision in manifest.decisions if sources.of[decision.pair_id] in chosen]
    how = {"only_sources": sorted(only)} if only else {"without_sources": sorted(without)}
    return derived(manifest, left, how)


def cap(manifest: Manifest, sources: Sources, share: float, of: Share = "source") -> Manifest:
    """The best-ranked decisions, so that no source has more than its share.

    Args:
        manifest: the decisions; those to keep, and those of reviewers, stay and are not counted.
        sources: where the pairs come from.
        share: above 0, at most 1.
        of: ``source``: at most this share of each source's different pairs is filtered or flipped. ``manifest``: each
            source makes up at most this share of all that is filtered or flipped.

    Raises:
        SettingsError: the share is out of range, or there are too few sources for it to be possible.
    """
    if not 0 < share <= 1:
        raise SettingsError(f"the share is {share}: give a number above 0 and at most 1, such as 0.2")
    acting = [one for one in manifest.decisions if one.action != "keep" and one.reviewer is None]
    listed = Counter(sources.of[one.pair_id] for one in acting)
    if of == "source":
        total = sources.counts()
        room = {name: int(share * total[name] + 1e-9) for name in listed}
    elif of == "manifest":
        room = _room_of_the_manifest(listed, share)
    else:
        raise SettingsError(f"a share of '{of}' is unknown: choose source or manifest")
    dropped: set[str] = set()
    for decision in sorted(acting, key=_worth):
        name = sources.of[decision.pair_id]
        room[name] -= 1
        if room[name] < 0:
            dropped.add(decision.pair_id)
    left = [one for one in manifest.decisions if one.pair_id not in dropped]
    return derived(manifest, left, {"max_share": share, "max_share_of": of})


def _worth(decision: Decision) -> tuple[Any, ...]:
    rank = float("inf") if decision.rank is None else decision.rank
    return (rank, -(decision.score or 0.0), decision.pair_id)


def _room_of_the_manifest(listed: Counter[str], share: float) -> dict[str, int]:
    """How many pairs each source may have: the most for which no source has more than ``share`` of what is left."""
    total = listed.total()
    while True:
        room = {name: min(count, int(share * total + 1e-9)) for name, count in listed.items()}
        if sum(room.values()) == total:
            break
        total = sum(room.values())
    if listed and not total:
        raise SettingsError(
            f"{len(listed)} sources cannot each have at most {share:g} of the manifest: nothing would be left. Give a "
            f"share of at least {1 / len(listed):.3g}, or cap the share of each source's own pairs (--of source)."
        )
    return room


def _check_audit(folder: Path, manifest: Manifest) -> None:
    path = folder / "audit.json"
    try:
        fingerprint = json.loads(path.read_bytes())["dataset"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(
            f"there is no finished audit at {folder}: its audit.json cannot be read. Give its scores.parquet, or the "
            "dataset."
        ) from error
    _check_fingerprint(str(fingerprint), manifest, folder)


def _check_fingerprint(found: str, manifest: Manifest, place: str | Path) -> None:
    expected = manifest.header.dataset_fingerprint
    if found != expected:
        raise ManifestError(
            f"{printable(place, 400)}: another dataset than the one the manifest is about (fingerprint "
            f"{printable(found, 16)}, the manifest's {expected[:16]}). Give the audit or the dataset that it was made "
            "from."
        )


def _is_scores(path: Path) -> bool:
    if path.suffix != ".parquet" or not path.is_file():
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return b"trl_attribution" in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return False


def _of_scores(path: Path) -> dict[str, str]:
    from trl_attribution.scoring import ScoreTable

    table = ScoreTable.open(path)
    if not table.columns:
        raise ManifestError(f"{path}: holds no scores, so no sources either. Give the dataset instead.")
    rows = table.read(table.columns[0], ["pair_id", "source"])
    return dict(zip(rows["pair_id"].to_pylist(), rows["source"].to_pylist(), strict=True))


def _of_dataset(place: str | Path, manifest: Manifest) -> dict[str, str]:
    reader = PairReader(place, manifest.reading)
    fingerprint = FingerprintBuilder()
    found: dict[str, str] = {}
    for pair in reader:
        fingerprint.add(pair.pair_id)
        found.setdefault(pair.pair_id, pair.source)
    _check_fingerprint(fingerprint.hexdigest(), manifest, reader.source.name)
    return found
