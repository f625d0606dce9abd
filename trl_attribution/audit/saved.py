"""The one way to open a finished audit: what its folder says, and where its scores and vectors lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from trl_attribution.audit.info import AuditInfo
from trl_attribution.errors import ModelError, StoreError
from trl_attribution.manifest import Manifest
from trl_attribution.pairs import Reading
from trl_attribution.scoring import ScoreTable

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel
    from trl_attribution.models.config import LoadConfig
    from trl_attribution.store import VectorStore


@dataclass(frozen=True)
class SavedAudit:
    """A finished audit on disk; scores and vectors are opened when they are asked for."""

    folder: Path
    info: AuditInfo
    manifest: Manifest | None
    """Its filter manifest; None where none was written."""
    reading: Reading
    """How its dataset was read."""

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open the audit in ``folder``.

        Raises:
            StoreError: there is no finished audit, it is of a newer version, or its manifest is about another dataset.
            ManifestError: its manifest cannot be read.
        """
        place = Path(folder)
        info = AuditInfo.load(place)
        path = place / "manifest.filter.jsonl"
        manifest = Manifest.load(path) if path.exists() else None
        if manifest is not None and manifest.header.dataset_fingerprint != info.dataset.fingerprint:
            raise StoreError(f"{path} is about another dataset than {place}/audit.json. Run the audit again.")
        return cls(place, info, manifest, _reading(info, manifest))

    @property
    def scores_path(self) -> Path:
        """Where the scores lie, if there are any."""
        return self.folder / "scores.parquet"

    def table(self) -> ScoreTable:
        """Its scores.

        Raises:
            StoreError: it has none, or they are broken.
        """
        return ScoreTable.open(self.scores_path)

    def store(self) -> VectorStore:
        """Its vectors, also while another job adds to them.

        Raises:
            StoreError: they are gone or broken, or others lie in their place.
        """
        return self.info.open_store(self.folder, repeats=True)


def load_m0(info: AuditInfo, loading: LoadConfig, model: str | None = None) -> LoadedModel:
    """M0 as it was audited, with its adapter and in its bits; ``model`` says where it is, if not where it was then.

    Raises:
        ModelError: it is not there, or another model is.
    """
    from trl_attribution.models import load_model

    made = {name: info.settings.get(name) for name in ("adapter", "quantization")}
    try:
        found = load_model(model or info.model.name, **{**vars(loading), **made})
    except ModelError as error:
        raise error if model else ModelError(f"{error}. Give M0 with --model.") from error
    differing = info.model.fingerprint.differences(found.fingerprint)
    if differing:
        raise ModelError(
            f"{found.name} is not the M0 of this audit ({info.model.name}): {', '.join(differing)} differ. Give the "
            "model that was audited (--model)."
        )
    return found


def _reading(info: AuditInfo, manifest: Manifest | None) -> Reading:
    if manifest is not None and manifest.header.reading:
        return manifest.reading
    return info.reading
