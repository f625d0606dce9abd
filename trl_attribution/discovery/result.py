"""What discovery found, and the two files that keep it: ``discovery.json`` and ``vectors.safetensors``.

Axis letters: M exemplars of a cluster, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as render_safetensors
from torch import Tensor

from trl_attribution.discovery.config import FILE, Mode
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.scoring import SourceRow
from trl_attribution.utils.json_file import DescribedFile
from trl_attribution.utils.text import printable

FORMAT = "trl-attribution discovery"
VERSION = 1
VECTORS = "vectors.safetensors"


@dataclass(frozen=True)
class TypicalPrompt:
    """A prompt close to the center of its cluster, with one response before and one after; RAW text, cut."""

    location: str
    closeness: float
    """Cosine of its row with the center of the cluster."""
    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class TopPair:
    """A pair that pushes towards what a cluster does; RAW text, cut, empty where texts were not read."""

    pair_id: str
    row: int
    source: str
    rank: int
    score: float
    q_value: float
    prompt: str = ""
    chosen: str = ""
    rejected: str = ""


@dataclass(frozen=True)
class Cluster:
    """One behavior that nobody named."""

    cluster: str
    """``b1``, ``b2``, ... for behaviors of prompts, ``p1``, ``p2``, ... for what pairs teach; largest effect first."""
    name: str
    """What the endpoint called it, RAW; empty without one."""
    words: tuple[str, ...]
    """Keywords of the responses after minus before, or of chosen minus rejected; RAW."""
    lost_words: tuple[str, ...]
    """The other way round: of the responses before minus after, or of rejected minus chosen; RAW."""
    prompt_words: tuple[str, ...]
    """Keywords of the members' prompts; RAW."""
    effect: float
    """``share * consistency``."""
    share: float
    """Of the held-out items, how many join the cluster."""
    consistency: float
    """Length of the mean of the members' unit vectors: 1 if all point the same way."""
    members: int
    fit: int
    """Members in the half that clusters were made from."""
    towards: int
    """Members in the held-out half."""
    against: int
    """Held-out items that would join it turned round."""
    p_value: float
    adjusted_p: float
    tightness: float
    """Mean cosine between the rows of the members that it was made from."""
    held_out_tightness: float | None
    vector_cosine: float
    """Mean cosine between the members' own vectors, not their rows, at ``layer``."""
    stability: float
    layer: int
    """Where pairs were scored."""
    kind: Literal["contextual", "response"]
    pairs_towards: int
    """Pairs that push towards it at a false discovery rate of 5%."""
    typical_prompts: tuple[TypicalPrompt, ...]
    """Empty without prompts."""
    top_pairs: tuple[TopPair, ...]
    sources: tuple[SourceRow, ...]
    """Where those pairs come from, strongest evidence first."""
    sources_by: str
    """Which pairs ``sources`` counts: ``fdr 0.05``, or the top ones (such as ``top_k 20``) where none passes that."""


@dataclass(frozen=True)
class Rejected:
    """A tight cluster that is not reported."""

    fault: str
    members: int
    tightness: float
    stability: float
    towards: int
    against: int
    adjusted_p: float


@dataclass(frozen=True)
class MapPoint:
    """One pair on the map."""

    pair_id: str
    row: int
    source: str
    flagged: bool
    """Listed by the audit's filter manifest."""
    cluster: str
    """The cluster that it pushes towards most, of those whose ``sources`` count it; empty for none."""
    x: float
    y: float


@dataclass(frozen=True)
class Discovery:
    """Everything that one run of discovery found."""

    mode: Mode
    dataset: Mapping[str, Any]
    """``name``, ``fingerprint`` and ``pairs`` of what was audited."""
    model: Mapping[str, Any]
    """M0: ``name`` and ``digest``."""
    settings: Mapping[str, Any]
    layers: tuple[int, ...]
    kind: Literal["contextual", "response"]
    items: int
    """Prompts, or pairs in their place, that were clustered or held out."""
    fit: int
    held_out: int
    left_out: Mapping[str, int]
    """Reason -> prompts or pairs."""
    clusters: tuple[Cluster, ...]
    """Largest effect first."""
    rejected: tuple[Rejected, ...]
    heatmap: tuple[str, ...]
    """The cluster (or an empty text) of each item of the tensor ``heatmap``."""
    map: tuple[MapPoint, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    vectors_sha256: str = ""

    def of(self, cluster: str) -> Cluster:
        """The cluster with that id.

        Raises:
            SettingsError: there is none; those that there are, are listed.
        """
        for one in self.clusters:
            if one.cluster == cluster:
                return one
        there = ", ".join(one.cluster for one in self.clusters) or "none"
        raise SettingsError(f"cluster {printable(cluster, 40)!r} was not found; clusters there are: {there}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for strict JSON."""
        values = {"format": FORMAT, "format_version": VERSION, **asdict(self)}
        for one, plain in zip(self.clusters, values["clusters"], strict=True):
            plain["sources"] = [row.as_json() for row in one.sources]
        return values


@dataclass(frozen=True, eq=False)
class ClusterVectors:
    """What a probe of a cluster needs."""

    vector: Tensor
    """``[L, D]``: mean of the exemplars' vectors."""
    prompt_vectors: Tensor
    """``[M, L, D]``."""
    contexts: Tensor | None
    """``[M, L, D]``; None where responses alone were compared."""


@dataclass(frozen=True, eq=False)
class StoredDiscovery:
    """A discovery with its vectors."""

    discovery: Discovery
    vectors: Mapping[str, ClusterVectors]
    """By cluster."""
    heatmap: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """``[n, n]``: cosines between the rows of up to 300 items, members of clusters first."""

    def save(self, folder: str | Path) -> Path:
        """Write both files into ``folder``; the JSON comes last, with the checksum of the other. Gives its path.

        Raises:
            AttributionError: the folder cannot be written.
        """
        files = _files(folder)
        files.save(self.discovery.to_json(), render_safetensors(self._tensors()))
        return files.description

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            StoreError: a file is missing, broken, foreign, of a newer version, or belongs to another.
        """
        files = _files(folder)
        try:
            stored = files.load()
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise StoreError(f"there is no discovery in {folder}: run `trl-attribution discover` first") from error
        try:
            found = TypeAdapter(Discovery).validate_python(stored.values)
            tensors = parse_safetensors(stored.payload)
            vectors = {one.cluster: _vectors_of(one.cluster, tensors) for one in found.clusters}
            if tensors["heatmap"].shape != (len(found.heatmap),) * 2:
                raise ValueError(f"heatmap: {len(found.heatmap)} labels for {list(tensors['heatmap'].shape)} cosines")
            return cls(found, vectors, tensors["heatmap"])
        except (KeyError, ValueError, SafetensorError) as error:  # a ValidationError is a ValueError
            raise StoreError(f"{files.description} is broken ({printable(error)}). {files.advice}") from error

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"heatmap": self.heatmap.float().contiguous()}
        for name, one in self.vectors.items():
            tensors[f"{name}.vector"] = one.vector.float().contiguous()
            tensors[f"{name}.prompt_vectors"] = one.prompt_vectors.float().contiguous()
            if one.contexts is not None:
                tensors[f"{name}.contexts"] = one.contexts.float().contiguous()
        return tensors


def _vectors_of(cluster: str, tensors: Mapping[str, Tensor]) -> ClusterVectors:
    return ClusterVectors(
        tensors[f"{cluster}.vector"], tensors[f"{cluster}.prompt_vectors"], tensors.get(f"{cluster}.contexts")
    )


def _files(folder: str | Path) -> DescribedFile:
    return DescribedFile(
        Path(folder, FILE), Path(folder, VECTORS), FORMAT, VERSION, "Run discovery again.", "vectors_sha256"
    )
