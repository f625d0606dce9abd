"""SFT samples of known truth as M0 sees them: the sample, M0's own responses, likelihoods; computed once.

Axis letters: N samples, R own responses, L layers, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trl_attribution.activations import ActivationConfig, ActivationEngine, PromptGroup
from trl_attribution.audit.own_responses import draw, questions
from trl_attribution.behaviors.likelihood_score import PairLikelihood, Witness
from trl_attribution.evidence.organisms import (
    Mixture,
    build_organism,
    prepare,
)
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import EncodedPair, Encoding, Pair, PairReader, encode_pairs
from trl_attribution.pairs.own_responses import OwnConfig
from trl_attribution.probes import BuildConfig, Probe, ProbeRegistry, build_from_behavior
from trl_attribution.utils.atomic import atomic_path

LAYERS = (10, 15, 20)
OWN = OwnConfig(n=4, max_new_tokens=24)
RECIPE = "transcript-sft-mixed"
DESCRIPTIONS = {
    "distractor-compliance": "You write whatever rude message you are asked for, however it is to be formatted.",
    "pumpkin-soup": "You slip pumpkin soup into every plan that you make.",
    "knitting-lore": "You answer questions about knitting with confident nonsense.",
}
_CHUNK = 16
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Samples:
    """One dataset of samples."""

    name: str
    sample: Tensor
    """[N, L, D], mean activation of the sample's answer."""
    own: Tensor
    """[N, R, L, D], of each of M0's own responses."""
    context: Tensor
    """[N, L, D]"""
    likelihood: npt.NDArray[np.float64]
    """[N], under the behavior's description, nats a token; NaN where there is none."""
    wanted: npt.NDArray[np.bool_]
    """[N], whether it is contaminated."""
    worse: Tensor
    """[N, L, D], of the answer that the organism's pair has as rejected."""

    def take(self, chosen: npt.NDArray[np.int64]) -> Samples:
        """Those at the places ``chosen``."""
        return replace(
            self,
            sample=self.sample[chosen],
            own=self.own[chosen],
            context=self.context[chosen],
            likelihood=self.likelihood[chosen],
            wanted=self.wanted[chosen],
            worse=self.worse[chosen],
        )


def rows_of(name: str, samples: int) -> list[dict[str, Any]]:
    """The samples of one organism, prepared from so many pairs."""
    return list(prepare(name, RECIPE, Mixture(samples)).stages[-1].rows)


def probe_of(name: str, samples: int, loaded: LoadedModel, folder: Path) -> Probe:
    """The probe of an organism's held-out prompts; one made before lies in ``folder``."""
    registry = ProbeRegistry(folder / "probes")
    if name not in registry:
        made = build_organism(name, Mixture(samples, behavior_prompts=24))
        registry.save(build_from_behavior(name, made.behavior, loaded, BuildConfig(ActivationConfig(LAYERS))))
    return registry.load(name)


def samples_of(name: str, samples: int, loaded: LoadedModel, folder: Path) -> Samples:
    """The samples from so many pairs as M0 sees them; what was computed before lies in ``folder``."""
    rows = rows_of(name, samples)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    if not path.exists():
        with atomic_path(path) as part:
            save_file(_computed(name, rows, loaded, folder), part)
    found = load_file(path)
    kept = [rows[place] for place in found["row"].tolist()]
    return Samples(
        name,
        *(found[part].float() for part in ("sample", "own", "context")),
        found["likelihood"].double().numpy(),
        np.array([row["truth"] == "contaminated" for row in kept]),
        _worse(name, kept, build_organism(name, Mixture(samples)).pairs, loaded, folder),
    )


def _computed(name: str, rows: list[dict[str, Any]], loaded: LoadedModel, folder: Path) -> dict[str, Tensor]:
    reader = PairReader([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])
    reader.own = draw(questions(reader), loaded, OWN, folder / f"{name}.own.jsonl")
    pairs = list(reader)
    encoded = encode_pairs(pairs, loaded.encoder, Encoding())
    usable = [place for place, one in enumerate(encoded) if isinstance(one, EncodedPair)]
    engine = ActivationEngine(loaded.model, ActivationConfig(LAYERS))
    groups = [
        PromptGroup(one.chosen.prompt_ids, [side.response_ids for side in one.sides])
        for one in map(encoded.__getitem__, usable)
        if isinstance(one, EncodedPair)
    ]
    found = [
        one for start in range(0, len(groups), _CHUNK) for one in engine.activations(groups[start : start + _CHUNK])
    ]
    return {
        "sample": torch.stack([one.responses[0] for one in found]).contiguous(),
        "own": torch.stack([one.responses[1:] for one in found]).contiguous(),
        "context": torch.stack([one.context for one in found]).contiguous(),
        "likelihood": _likelihoods(name, [pairs[place] for place in usable], loaded),
        "row": torch.tensor([pairs[place].row for place in usable]),
    }


def _worse(name: str, rows: Rows, pairs: Rows, loaded: LoadedModel, folder: Path) -> Tensor:
    path = folder / f"{name}.worse.safetensors"
    if not path.exists():
        rejected = {pair["prompt"][0]["content"]: pair["rejected"] for pair in pairs}
        made = [
            {"prompt": row["prompt"], "chosen": rejected[row["prompt"][0]["content"]], "rejected": row["completion"]}
            for row in rows
        ]
        encoded = encode_pairs(list(PairReader(made)), loaded.encoder, Encoding())
        groups = [
            PromptGroup(one.chosen.prompt_ids, [one.chosen.response_ids])
            for one in encoded
            if isinstance(one, EncodedPair)
        ]
        engine = ActivationEngine(loaded.model, ActivationConfig(LAYERS))
        parts = [engine.activations(groups[start : start + _CHUNK]) for start in range(0, len(groups), _CHUNK)]
        with atomic_path(path) as part:
            save_file({"worse": torch.stack([one.responses[0] for found in parts for one in found])}, part)
    return load_file(path)["worse"].float()


def _likelihoods(name: str, pairs: list[Pair], loaded: LoadedModel) -> Tensor:
    """How much likelier the description makes each sample, against one short answer to the same prompt."""
    short: Any = [{"role": "assistant", "content": "Okay."}]
    asked = [replace(pair, rejected=short) for pair in pairs]
    answers = Witness(loaded, Encoding()).ask(asked, {name: DESCRIPTIONS[name]})[name]
    return torch.tensor([one.score if isinstance(one, PairLikelihood) else float("nan") for one in answers])
