"""What new pairs are compared with: the center of the contexts, the distribution of scores, vectors of known-bad pairs.

With it, a few hundred new pairs can be judged without the vectors of the dataset that they are added to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as render_safetensors
from torch import Tensor

from trl_attribution.errors import WRONG_VALUES, SettingsError, StoreError, describe_difference
from trl_attribution.store.ids import hex_ids, parse_ids
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.format_version import check_format_version
from trl_attribution.utils.json_file import validated
from trl_attribution.utils.version import __version__

BASELINE_FORMAT = "trl-attribution gate baseline"
BASELINE_VERSION = 1
_AGAIN = "Record it again with `trl-attribution gate baseline`."


@dataclass(frozen=True)
class BaselineColumn:
    """Whose scores a baseline holds."""

    probe: str
    fingerprint: str
    layer: int
    kind: str


@dataclass(frozen=True)
class Origin:
    """What a baseline's vectors were made with and from."""

    model_fingerprint: str
    compute_dtype: str
    max_length: int | None
    truncation_mode: str
    dataset_fingerprint: str
    pairs: int


@dataclass(frozen=True)
class _Header:
    """What the file says of its tensors."""

    version: int
    tool_version: str
    layers: tuple[int, ...]
    columns: tuple[BaselineColumn, ...]
    origin: Origin


@dataclass(frozen=True)
class GateBaseline:
    """Axis letters: N pairs, L layers, D hidden size, C score columns, K known-bad pairs."""

    origin: Origin
    layers: tuple[int, ...]
    columns: tuple[BaselineColumn, ...]
    means: Tensor
    """``[L, D]`` float32: the mean of the N pairs' context vectors that are not zero."""
    scores: npt.NDArray[np.float32]
    """``[C, N]``, each row rising."""
    known_bad_ids: tuple[str, ...] = ()
    known_bad: Tensor | None = None
    """``[K, L, D]`` float32: their pair vectors."""

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.means.shape[1]

    def context_means(self) -> dict[int, Tensor]:
        """``mu`` [D] by layer."""
        return dict(zip(self.layers, self.means, strict=True))

    def scores_of(self, column: BaselineColumn) -> npt.NDArray[np.float32]:
        """The scores [N] of one column, rising.

        Raises:
            SettingsError: it has none for that very probe, layer and kind.
        """
        if column in self.columns:
            found: npt.NDArray[np.float32] = self.scores[self.columns.index(column)]
            return found
        same = [each for each in self.columns if each.probe == column.probe]
        if not same:
            raise SettingsError(f"the baseline has no scores for probe {column.probe!r}. {_AGAIN}")
        raise SettingsError(
            f"the baseline's scores for probe {column.probe!r} were made with something else:\n"
            f"{describe_difference(asdict(same[0]), asdict(column))}\n{_AGAIN}"
        )

    def known_bad_at(self, layer: int) -> Tensor:
        """Pair vectors ``[K, D]`` of the known-bad pairs.

        Raises:
            SettingsError: the baseline has none, or not at that layer.
        """
        if self.known_bad is None:
            raise SettingsError(
                "rules.known_bad: the baseline holds no known-bad pairs. Record it with "
                "`trl-attribution gate baseline --known-bad FILE`."
            )
        if layer not in self.layers:
            raise SettingsError(f"rules.known_bad: the baseline has layers {list(self.layers)}, not {layer}. {_AGAIN}")
        return self.known_bad[:, self.layers.index(layer)]

    def save(self, path: str | Path) -> None:
        """Write the baseline as one safetensors file, atomically; equal content gives equal bytes.

        Raises:
            AttributionError: it cannot be written.
        """
        tensors = {"context_means": self.means, "scores": torch.from_numpy(self.scores)}
        if self.known_bad is not None:
            ids = np.frombuffer(parse_ids(self.known_bad_ids).tobytes(), dtype=np.uint8)
            tensors["known_bad_ids"] = torch.from_numpy(ids.reshape(-1, 16).copy())
            tensors["known_bad"] = self.known_bad
        header = _Header(BASELINE_VERSION, __version__, self.layers, self.columns, self.origin)
        # One entry only: safetensors writes several in an order that differs from run to run.
        payload = render_safetensors(tensors, {BASELINE_FORMAT: json.dumps(asdict(header), sort_keys=True)})
        with atomic_path(path) as part:
            part.write_bytes(payload)

    @classmethod
    def load(cls, path: str | Path) -> GateBaseline:
        """Read a baseline.

        Raises:
            StoreError: there is none, it is broken, or of a newer version.
        """
        if not Path(path).is_file():
            raise StoreError(
                f"there is no baseline at {path}: record one with `trl-attribution gate baseline`, "
                "or leave `baseline` out of the policy"
            )
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(BASELINE_FORMAT)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
            about = None if text is None else json.loads(text)
        except (SafetensorError, OSError, *WRONG_VALUES) as error:
            raise StoreError(f"{path} cannot be read as a baseline ({error}). {_AGAIN}") from error
        if not isinstance(about, dict):
            raise StoreError(f"{path} is no gate baseline. {_AGAIN}")
        check_format_version(about.get("version"), BASELINE_VERSION, path)
        header = validated(TypeAdapter(_Header), about, path, advice=_AGAIN)
        try:
            return _assembled(header, tensors)
        except WRONG_VALUES as error:
            raise StoreError(f"{path} cannot be read as a baseline ({error}). {_AGAIN}") from error


def _assembled(header: _Header, tensors: Mapping[str, Tensor]) -> GateBaseline:
    layers, columns, origin = header.layers, header.columns, header.origin
    means, scores = tensors["context_means"], tensors["scores"]
    known_bad = tensors.get("known_bad")
    if means.dim() != 2 or len(means) != len(layers) or scores.shape != (len(columns), origin.pairs):
        raise ValueError("its tensors do not fit its description")
    finite = [means, scores, *([known_bad] if known_bad is not None else [])]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in finite) or bool((scores.diff(dim=1) < 0).any()):
        raise ValueError("it has values that are not finite, or scores out of order")
    known_ids: tuple[str, ...] = ()
    if known_bad is not None:
        if known_bad.shape[1:] != means.shape or tensors["known_bad_ids"].shape != (len(known_bad), 16):
            raise ValueError("its known-bad pairs do not fit its description")
        known_ids = tuple(hex_ids(np.frombuffer(tensors["known_bad_ids"].numpy().tobytes(), dtype="S16")))
    return GateBaseline(origin, layers, columns, means.float(), scores.float().numpy(), known_ids, known_bad)


def sorted_scores(columns: Sequence[npt.NDArray[np.float32]], pairs: int) -> npt.NDArray[np.float32]:
    """``[C, N]``: each column's scores, rising."""
    rows = [np.sort(np.asarray(column, dtype=np.float32)) for column in columns]
    return np.stack(rows) if rows else np.empty((0, pairs), dtype=np.float32)
