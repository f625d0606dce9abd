"""``audit.json``: what was audited, with what, and what it cost."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, PlainSerializer

from trl_attribution.errors import DataError, StoreError, describe_difference
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.pairs import Encoding, Reading
from trl_attribution.pairs.dataset_pass import Duplicate
from trl_attribution.pairs.formats import KINDS
from trl_attribution.pairs.own_responses import OwnFile, own_at_hand
from trl_attribution.store import StoreSettings
from trl_attribution.utils.compat import version_of
from trl_attribution.utils.json_file import JsonFile
from trl_attribution.utils.kinds import EXAMPLES, ExampleKind
from trl_attribution.utils.text import is_hub_id
from trl_attribution.utils.version import __version__

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel
    from trl_attribution.store import VectorStore

Fingerprint = Annotated[ModelFingerprint, PlainSerializer(ModelFingerprint.to_json)]
"""As files show it."""
_PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate", "safetensors")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class DatasetInfo(_Part):
    """The dataset that was audited."""

    name: str
    """What the user gave."""
    path: str | None = None
    """Where the file or folder lay, absolute; None for what is none, and in audits of older releases."""
    format: str = "auto"
    eos_token: str | None = None
    fingerprint: str
    rows: int
    pairs: int
    """Different pairs that were audited."""
    duplicate_rows: int
    most_repeated: tuple[Duplicate, ...] = ()
    contradictions: int
    """Pairs that stand there the other way round too."""
    skipped: Mapping[str, int]
    """Rows left out, by reason."""
    truncated_pairs: int
    alike: Mapping[str, int] = {}
    """Pairs whose responses come to the same tokens, by cause; older releases have not counted them."""
    tokens: int
    sources: Mapping[str, int] = {}
    """Rows of each source."""

    @property
    def argument(self) -> str:
        """What a command takes for it: its name, or DATASET where it was in memory or is no longer where it was."""
        name = self.name if str(Path(self.name).absolute()) == self.path else self.found_at
        return name if is_hub_id(name) or Path(name).exists() else "DATASET"

    @property
    def found_at(self) -> str:
        """What to open it by: its path, so that it is found from any folder, or its name where that is gone."""
        return self.path if self.path is not None and Path(self.path).exists() else self.name

    @property
    def kind(self) -> ExampleKind:
        """What its examples are, and what they are called."""
        return EXAMPLES[KINDS.get(self.format, "pair")]


class ModelInfo(_Part):
    """M0."""

    name: str
    fingerprint: Fingerprint
    digest: str
    dtype: str
    """What it computed in."""
    device: str

    @classmethod
    def of(cls, model: LoadedModel, dtype: str) -> Self:
        """``model``, which computed in ``dtype``."""
        identity = model.fingerprint
        return cls(name=model.name, fingerprint=identity, digest=identity.digest, dtype=dtype, device=str(model.device))


class VectorsInfo(_Part):
    """The vectors, and how they came to be."""

    store: str
    """Where they lie: relative to the audit folder if they are inside of it, else absolute."""
    settings: StoreSettings
    computed: int
    reused: int
    path: str | None
    """How they were computed; None where none had to be."""
    path_reason: str


class ComputeCost(_Part):
    """What computing vectors took on one process, or on several together, and how they were computed."""

    path: str | None
    path_reason: str | None
    seconds: float
    tokens_computed: int
    tokens_in_sequences: int
    flops: int
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    device_name: str | None = None
    threads: int | None = None
    parts: int | None = None
    device_seconds: float | None = None


class CostInfo(_Part):
    """What the audit cost."""

    seconds: Mapping[str, float] = {}
    """By stage."""
    pairs_per_second: float | None = None
    training_seconds: float | None = None
    """Of the whole training run; None outside of one."""
    tokens_computed: int | None = None
    tokens_in_sequences: int | None = None
    flops: int | None = None
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    device_name: str | None = None
    threads: int | None = None
    parts: int | None = None
    """How many ranks and jobs computed vectors; None where one process did."""
    device_seconds: float | None = None
    """Of all of them together."""


class TrainingInfo(_Part):
    """How vectors were read while training."""

    rows: int
    """All rows seen, each pair as often as it was trained on."""
    captured: int
    repeats: int
    unaudited: int
    pairs_in_dataset: int
    never_seen: int
    ranks: int
    windows: int = 0
    flag_at: Mapping[str, float | None] = {}
    """The score that each probe flagged at; None where it could not."""
    on_flag: str = "log"
    stopped_at_step: int | None = None
    skipped_rows: int = 0
    behaviors: tuple[Mapping[str, Any], ...] = ()
    drift: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    """What was asked for and could not be measured, and why."""


class AuditInfo(JsonFile):
    """The content of ``audit.json``."""

    FORMAT = "trl-attribution audit"
    ADVICE = "Choose another folder, or run the audit again into an empty one."

    dataset: DatasetInfo
    model: ModelInfo
    probes: Mapping[str, str]
    """Fingerprint of each probe by name."""
    settings: Mapping[str, Any]
    """The settings of an audit (:class:`AuditConfig`) or of a training run (:class:`CallbackConfig`)."""
    vectors: VectorsInfo
    cost: CostInfo
    versions: Mapping[str, str]
    training: TrainingInfo | None = None
    """None for an audit of a dataset by itself."""
    notes: tuple[str, ...] = ()
    """What the rule that was asked for cannot flag."""

    @property
    def reading(self) -> Reading:
        """How the dataset's rows became pairs."""
        stored = self.settings.get("reading")
        known = self.dataset.model_dump(include={"format", "eos_token"}, exclude_unset=True)
        return Reading(**{**(stored if isinstance(stored, dict) else {}), **known})

    @property
    def encoding(self) -> Encoding:
        """How pairs were truncated."""
        made = self.vectors.settings
        return Encoding(made.max_length, made.truncation_mode)

    def open_store(self, folder: str | Path, repeats: bool = False) -> VectorStore:
        """The vectors of the audit in ``folder``; ``repeats`` as for :meth:`VectorStore.open`.

        Raises:
            StoreError: there are none, they are broken, or others lie in their place.
        """
        from trl_attribution.store import VectorStore

        path = Path(folder, self.vectors.store)
        try:
            store = VectorStore.open(path, repeats)
        except StoreError as error:
            raise StoreError(f"the vectors of the audit in {folder}: {error}") from error
        made = self.vectors.settings
        if store.settings != made:
            raise StoreError(
                f"{path} does not hold the vectors of the audit in {folder}: they were made with other settings:\n"
                f"{describe_difference(made.as_dict(), store.settings.as_dict())}\nRun the audit again."
            )
        return store

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)

    def save(self, folder: Path) -> None:
        """Write ``audit.json``, atomically."""
        self.write(folder / "audit.json")

    def own_responses(self, folder: Path) -> OwnFile | None:
        """M0's own responses that the vectors of the audit in ``folder`` were made with, if they are still there."""
        own = self.settings.get("own")
        given = own.get("file") if isinstance(own, Mapping) else self.settings.get("own_responses")
        try:
            file = given if isinstance(given, str) else None  # of a file that anyone may have written
            return own_at_hand(folder, file, self.vectors.settings.own_responses)
        except DataError:  # whoever only shows texts does without
            return None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read ``audit.json``.

        Raises:
            StoreError: there is no finished audit, it is broken, or a newer version wrote it.
        """
        found = cls.read(Path(folder, "audit.json"))
        if found is None:
            raise StoreError(
                f"there is no finished audit at {folder}: it has no audit.json. Run `trl-attribution audit`."
            )
        return found


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    found = {package: version_of(package) for package in _PACKAGES}
    known = {package: str(version) for package, version in found.items() if version is not None}
    return {"python": platform.python_version(), "trl-attribution": __version__, **known}


def machine() -> dict[str, Any]:
    """The machine, and the most memory that this process has used."""
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cuda = torch.cuda.is_available()
    return {
        "peak_memory_bytes": peak,
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "device_name": torch.cuda.get_device_name() if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
    }
