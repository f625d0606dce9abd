"""Probes by logistic regression on labelled preference pairs: 1 teaches the behavior, 0 does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trl_attribution.activations import ActivationEngine
from trl_attribution.behaviors.names import check_name
from trl_attribution.errors import ProbeError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import EncodedPair, Pair, PairReader, Reading, RowFault
from trl_attribution.pairs.dataset_pass import encoded_pairs
from trl_attribution.pairs.rows import Row
from trl_attribution.probes.assembly import assemble
from trl_attribution.probes.config import BuildConfig
from trl_attribution.probes.probe import Probe
from trl_attribution.probes.separability import FOLDS, auc
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from datasets import Dataset

_FEWEST_OF_A_LABEL = 3


def build_from_labels(
    name: str,
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]],
    loaded: LoadedModel,
    config: BuildConfig,
    *,
    label_column: str = "label",
    reading: Reading | None = None,
    strength: float = 1.0,
) -> Probe:
    """A probe from preference pairs with a ``label`` of 1 (teaches the behavior) or 0 (does not).

    The direction is that of ``fit_direction`` on the pair vectors. Such a probe does not know its prompts.

    Raises:
        DataError: the dataset cannot be read as preference pairs.
        ProbeError: a label is missing or neither 0 nor 1, or only one of them occurs.
    """
    check_name(name)
    reader = PairReader(dataset, reading or Reading())
    read = list(reader.rows_and_pairs())
    labels = [_label(row, label_column) for row, _ in read]
    check_labels(labels, reader.source.name)
    encoded = [_checked(*one) for one in encoded_pairs((pair for _, pair in read), loaded.encoder, config.encoding)]
    config = config.on(loaded.model)
    engine = ActivationEngine(loaded.model, config.activations)
    vectors = engine.pair_vectors(encoded).pair
    rows = range(len(engine.layers))
    built = {
        "method": "labels",
        "source": reader.source.name,
        "label_column": label_column,
        "strength": strength,
        "counts": {"pairs": len(labels), "label_1": sum(labels), "label_0": len(labels) - sum(labels)},
    }
    return assemble(
        name,
        loaded,
        layers=engine.layers,
        layer=config.layer,
        vector=torch.stack([fit_direction(vectors[:, row], labels, strength) for row in rows]),
        separability=labelled_auc(vectors, labels, engine.layers, strength),
        built={**built, "settings": config.described()},
        top_tokens=config.top_tokens,
        blocks_path=engine.blocks.path,
    )


def fit_direction(vectors: Tensor, labels: Sequence[int], strength: float = 1.0) -> Tensor:
    """The direction ``[D]`` along which label 1 becomes likelier, by L2-regularized logistic regression.

    The vectors ``[N, D]`` are standardized for the fit; the coefficient is mapped back, so that the direction is
    one of the raw residual stream. ``strength`` is scikit-learn's ``C``: smaller regularizes more.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    raw: npt.NDArray[np.float64] = vectors.double().numpy()
    scaler = StandardScaler().fit(raw)
    model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced")
    model.fit(scaler.transform(raw), np.asarray(labels))
    return torch.from_numpy(model.coef_[0] / scaler.scale_).float()


def labelled_auc(
    vectors: Tensor, labels: Sequence[int], layers: Sequence[int], strength: float = 1.0
) -> dict[int, float]:
    """Layer -> AUC of label 1 against label 0 on held-out pairs, averaged over stratified folds.

    ``vectors`` is ``[N, L, D]``. Empty when a label has fewer than three pairs.
    """
    from sklearn.model_selection import StratifiedKFold

    target = torch.tensor(labels)
    fewest = min(int((target == 1).sum()), int((target == 0).sum()))
    if fewest < _FEWEST_OF_A_LABEL:
        return {}
    splitter = StratifiedKFold(n_splits=min(FOLDS, fewest), shuffle=True, random_state=0)
    splits = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in splitter.split(np.zeros(len(target)), target)]
    found = {}
    for row, layer in enumerate(layers):
        scores = [_held_out_auc(vectors[:, row], target, train, test, strength) for train, test in splits]
        found[layer] = sum(scores) / len(scores)
    return found


def check_labels(labels: Sequence[int], source: str) -> None:
    """Make sure that both labels occur.

    Raises:
        ProbeError: only one of them does.
    """
    if len(set(labels)) < 2:
        raise ProbeError(
            f"{source}: all {len(labels)} pairs have label {labels[0]}; "
            "logistic regression needs pairs of both labels, 1 and 0"
        )


def _held_out_auc(vectors_ND: Tensor, target: Tensor, train: Tensor, test: Tensor, strength: float) -> float:
    direction = fit_direction(vectors_ND[train], target[train].tolist(), strength)
    scores = vectors_ND[test].double() @ direction.double()
    return auc(scores[target[test] == 1], scores[target[test] == 0])


def _label(row: Row, column: str) -> int:
    label = row.values.get(column)
    if label is None:
        listed = ", ".join(printable(key, 40) for key in row.values)
        raise ProbeError(f"{row.location}: field `{column}` is missing. Fields there: {listed}.")
    if label not in (0, 1, "0", "1"):
        raise ProbeError(
            f"{row.location}: field `{column}` must be 1 (teaches the behavior) or 0 (does not), "
            f"not {printable(repr(label), 60)}"
        )
    return int(label)


def _checked(pair: Pair, encoded: EncodedPair | RowFault) -> EncodedPair:
    if isinstance(encoded, RowFault):
        raise ProbeError(f"{pair.location}: field `{encoded.field}`: {encoded.detail}") from encoded
    return encoded
