"""Traits on one reference model: a direction for each, whether it tells the trait, and the prompts it is told on.

Axis letters: M examples, T traits, D hidden size, n pairs of a block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from trl_attribution.discovery.traits.measures import MEASURES, counts_of
from trl_attribution.discovery.traits.sampling import sampled_examples
from trl_attribution.discovery.traits.trait import Contrast, Trait
from trl_attribution.errors import SettingsError
from trl_attribution.models.source import cache_folder
from trl_attribution.probes.separability import FOLDS, auc, folds
from trl_attribution.utils.arrays import Doubles
from trl_attribution.utils.progress import OnProgress

if TYPE_CHECKING:
    from trl_attribution.audit.auditor import DataAuditor


RIDGE = 1.0
"""Of one trait against the others, in units of the mean square of the examples' vectors."""
_FEWEST = 4
_FEWEST_OTHERS = 8
_TOLD = 0.8
"""Share of held-out examples that a direction has to tell, and the chance to tell them from other traits' examples."""
_GATE_C = 1e-2


_BEFORE = (
    {"role": "user", "content": "Hello, can I ask you something?"},
    {"role": "assistant", "content": "Of course, go ahead."},
)
Part = Literal["example", "own", "control"]


@dataclass(frozen=True)
class Separability:
    """How well a trait's direction tells its own examples, questions held out."""

    trait: str
    examples: int
    sign: float
    """Share of held-out examples that point the right way."""
    specific: float | None
    """Chance that a held-out example lies further along it than one of another trait; None without others."""

    @property
    def tells(self) -> bool:
        """Whether the trait can be told on this model."""
        enough = self.examples >= _FEWEST and self.sign >= _TOLD
        return enough and (self.specific is None or self.specific >= _TOLD)


@dataclass(frozen=True, eq=False)
class Gate:
    """Which prompts a trait exists on: a logistic classifier of context vectors."""

    weight: Doubles
    """``[D]``."""
    bias: float

    def passes(self, contexts: Doubles) -> npt.NDArray[np.bool_]:
        """``[n]``."""
        found: npt.NDArray[np.bool_] = contexts @ self.weight + self.bias > 0
        return found


@dataclass(frozen=True, eq=False)
class Panel:
    """The traits that can be looked for in a dataset."""

    traits: tuple[Trait, ...]
    directions: Doubles
    """``[T, D]``, of length 1; zero for traits that only the text tells."""
    gates: Mapping[int, Gate]
    """By place on the T axis."""
    separability: tuple[Separability, ...]
    """Of every trait that has examples, told or not."""
    layer: int
    spread: Doubles
    """``[T]``: the trait's unit on M0: how far two responses of an example lie apart along it (root mean square, over
    all examples), or differ in what is counted; 1 where no examples differ."""

    @property
    def untold(self) -> tuple[Separability, ...]:
        """Traits that this model does not tell."""
        return tuple(one for one in self.separability if not one.tells)

    def scores(self, pairs: Doubles) -> Doubles:
        """``[n, T]``: cosines of pair vectors ``[n, D]`` with the directions."""
        found: Doubles = unit(pairs) @ self.directions.T
        return found

    def along(self, pairs: Doubles) -> Doubles:
        """``[n, T]``: how far pair vectors ``[n, D]`` reach along the directions."""
        found: Doubles = pairs @ self.directions.T
        return found

    def applies(self, contexts: Doubles) -> npt.NDArray[np.bool_]:
        """``[n, T]``: whether each trait exists on the prompts with these context vectors ``[n, D]``."""
        found = np.ones((len(contexts), len(self.traits)), dtype=bool)
        for place, gate in self.gates.items():
            found[:, place] = gate.passes(contexts)
        return found


@dataclass(frozen=True, eq=False)
class ExampleVectors:
    """Vectors of the examples and prompts of several traits."""

    owners: npt.NDArray[np.str_]
    """``[M]``: the trait's name."""
    parts: npt.NDArray[np.str_]
    """``[M]``: ``example``; ``own`` and ``control`` are prompts without responses of their own."""
    pairs: Doubles
    """``[M, D]``: positive minus negative."""
    contexts: Doubles
    """``[M, D]``."""


@dataclass(frozen=True)
class _Rows:
    """Examples and prompts as the rows of a preference dataset."""

    rows: list[dict[str, Any]]
    owners: list[str]
    parts: list[str]

    def add(self, owner: str, part: Part, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.owners.append(owner)
        self.parts.append(part)


def build_panel(
    traits: Sequence[Trait], auditor: DataAuditor, layer: int, on_progress: OnProgress, cache: Path | None = None
) -> Panel:
    """Read the examples of ``traits`` with the auditor's model, or take what was read before from the cache.

    The examples are pairs (positive chosen, negative rejected), so that their vectors are made as a dataset's are.

    Args:
        traits: what to look for.
        auditor: whose model reads, as its settings say.
        layer: where the directions are taken.
        on_progress: called with (stage, done, in all).
        cache: where vectors and sampled answers are kept; None takes the user's cache folder.

    Raises:
        SettingsError: a trait of some prompts only has nothing to tell them from.
        StoreError: another process fills the cache now.
    """
    loaded = auditor.model
    folder = (cache or cache_folder() / "traits") / loaded.fingerprint.digest[:16]
    filled = [_filled(one, auditor, folder, on_progress) for one in traits]
    asked = _rows(filled, chat=bool(loaded.encoder.chat_template))
    rows = asked.rows
    reader = _reader(auditor, layer)
    engine = reader.new_engine()
    if not rows:
        return fit_panel(filled, _no_vectors(engine.hidden_size), layer)
    settings = reader.store_settings(engine).as_dict()
    key = hashlib.sha256(json.dumps([rows, settings], sort_keys=True, default=str).encode()).hexdigest()[:16]
    made = reader.audit(rows, folder / key, on_progress=_traits_stage(on_progress))
    place_of = {pair_id: place for place, pair_id in enumerate(made.index.pair_ids)}
    view = made.store.select(made.index.pair_ids)
    places = [place_of[pair_id] for pair_id in _pair_ids(rows)]
    vectors = ExampleVectors(
        np.array(asked.owners),
        np.array(asked.parts),
        view.layer(layer).double().numpy()[places],
        view.context(layer).double().numpy()[places],
    )
    return fit_panel(filled, vectors, layer)


def fit_panel(traits: Sequence[Trait], examples: ExampleVectors, layer: int) -> Panel:
    """The panel from the vectors of its examples.

    A trait's direction is the ridge regression of "is one of its examples" on all traits' examples, each at length 1:
    what its examples have in common and those of other traits have not. Traits that it does not tell are left out.

    Raises:
        SettingsError: as for :func:`build_panel`.
    """
    own = examples.parts == "example"
    vectors, owners = unit(examples.pairs[own]), examples.owners[own]
    told = [_separability(one.name, vectors, owners) for one in traits if (owners == one.name).any()]
    usable = {one.trait for one in told if one.tells}
    kept = [one for one in traits if one.measure or one.name in usable]
    directions = np.zeros((len(kept), vectors.shape[1]))
    for place, one in enumerate(kept):
        if one.name in usable:
            directions[place] = _direction(vectors, owners == one.name)
    gates = {place: _gate(one, examples) for place, one in enumerate(kept) if one.only_on_prompts}
    spread = _spread(kept, examples.pairs[own] @ directions.T, [one for trait in traits for one in trait.examples])
    return Panel(tuple(kept), directions, gates, tuple(told), layer, spread)


def _spread(traits: Sequence[Trait], along: Doubles, examples: Sequence[Contrast]) -> Doubles:
    """``[T]``: root mean squares of the M examples' projections ``[M, T]``, and of their counts where those count."""
    counts = np.array([counts_of(one.positive) - counts_of(one.negative) for one in examples])
    counts = counts.reshape(-1, len(MEASURES))
    found = np.zeros(len(traits))
    for place, one in enumerate(traits):
        values = counts[:, MEASURES.index(one.measure)] if one.measure else along[:, place]
        found[place] = np.sqrt(np.mean(values**2)) if len(values) else 0.0
    return np.where(found > 0, found, 1.0)


def unit(rows: Doubles) -> Doubles:
    """Rows at length 1; zero rows stay."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    found: Doubles = rows / np.where(lengths > 0, lengths, 1.0)
    return found


def _direction(vectors: Doubles, own: npt.NDArray[np.bool_]) -> Doubles:
    gram = vectors @ vectors.T
    penalty = RIDGE * np.trace(gram) / max(1, len(gram))
    weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), own.astype(np.float64))
    return unit(vectors.T @ weights)


def _separability(name: str, vectors: Doubles, owners: npt.NDArray[np.str_]) -> Separability:
    import torch

    places = np.flatnonzero(owners == name)
    if len(places) < _FEWEST:
        return Separability(name, len(places), 0.0, None)
    others = np.flatnonzero(owners != name)
    held_out, against = [], []
    for fold in folds(len(places), min(FOLDS, len(places))):
        kept = np.delete(np.arange(len(owners)), places[fold])
        direction = _direction(vectors[kept], owners[kept] == name)
        held_out.append(vectors[places[fold]] @ direction)
        # Other traits' examples in both ways round: the direction should not care for them.
        against.append(np.abs(vectors[others] @ direction))
    scores = torch.from_numpy(np.concatenate(held_out))
    specific = auc(scores, torch.from_numpy(np.concatenate(against))) if len(others) >= _FEWEST_OTHERS else None
    return Separability(name, len(places), float((scores > 0).double().mean()), specific)


def _gate(trait: Trait, examples: ExampleVectors) -> Gate:
    from sklearn.linear_model import LogisticRegression

    mine = examples.owners == trait.name
    own = mine & (examples.parts == "own")
    controls = mine & (examples.parts == "control")
    if controls.sum() < _FEWEST:
        raise SettingsError(
            f"trait {trait.name!r}: with `only_on_prompts` it needs at least {_FEWEST} `controls`: prompts to tell its "
            "own from."
        )
    used = own | controls
    contexts = examples.contexts[used]
    mean, spread = contexts.mean(axis=0), contexts.std(axis=0)
    scale = 1 / np.where(spread > 0, spread, np.inf)
    found = LogisticRegression(C=_GATE_C, class_weight="balanced", max_iter=2000)
    found.fit((contexts - mean) * scale, own[used])
    weight = found.coef_[0] * scale
    return Gate(weight, float(found.intercept_[0] - mean @ weight))


def _filled(trait: Trait, auditor: DataAuditor, folder: Path, on_progress: OnProgress) -> Trait:
    if trait.examples or not (trait.instruction and trait.questions):
        return trait
    stage = f"Sampling responses for {trait.name}"
    sampled = sampled_examples(
        trait, auditor.model, folder / "responses", lambda done, total: on_progress(stage, done, total)
    )
    return trait.model_copy(update={"examples": sampled})


def _rows(traits: Sequence[Trait], chat: bool) -> _Rows:
    rows = _Rows([], [], [])
    for trait in traits:
        for one in trait.examples:
            rows.add(trait.name, "example", _row(one, chat))
        if not trait.only_on_prompts:
            continue
        own = trait.own_prompts or [one.prompt for one in trait.examples]
        prompts: list[tuple[Part, str]] = [("own", prompt) for prompt in own]
        prompts += [("control", prompt) for prompt in trait.controls]
        for part, prompt in prompts:
            # A context does not depend on what follows it, but the forward pass needs responses.
            asked = Contrast(prompt=prompt, positive="Yes.", negative="No.")
            rows.add(trait.name, part, _row(asked, chat))
            if chat:  # late in a conversation a prompt looks different
                rows.add(trait.name, part, _row(asked, chat, _BEFORE))
    return rows


def _row(one: Contrast, chat: bool, before: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    if not chat:
        return {"prompt": f"{one.prompt}\n", "chosen": one.positive, "rejected": one.negative}
    return {
        "prompt": [*before, {"role": "user", "content": one.prompt}],
        "chosen": [{"role": "assistant", "content": one.positive}],
        "rejected": [{"role": "assistant", "content": one.negative}],
    }


def _pair_ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    from trl_attribution.pairs import PairReader

    return [pair.pair_id for pair in PairReader(rows)]


def _reader(auditor: DataAuditor, layer: int) -> DataAuditor:
    """An auditor of the examples: with the model and the settings that make vectors, at one layer."""
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.pairs import Reading

    changes: dict[str, Any] = {"layers": (layer,), "reading": Reading(), "adapter": None, "quantization": None}
    return DataAuditor(auditor.model, config=replace(auditor.config, **changes))


def _traits_stage(on_progress: OnProgress) -> OnProgress:
    return lambda stage, done, total: on_progress("traits", done, total) if stage == "vectors" else None


def _no_vectors(hidden_size: int) -> ExampleVectors:
    nothing = np.zeros((0, hidden_size))
    return ExampleVectors(np.array([], dtype=np.str_), np.array([], dtype=np.str_), nothing, nothing)
