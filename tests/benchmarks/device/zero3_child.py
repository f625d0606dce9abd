"""One rank of ZeRO-3: the vectors of a model in pieces against the whole one's, as JSON on stdout."""

from __future__ import annotations

import json
import sys

import torch
from accelerate import PartialState

from tests.benchmarks.device.shapes import Draw
from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.models import load_model
from trl_attribution.models.sharding import asked_sharding, whole_on_this_rank


def main(folder: str, layer: int, device: str) -> None:
    PartialState(cpu=device == "cpu")
    sharding = asked_sharding()
    if sharding != "zero3":
        raise RuntimeError(f"asked for ZeRO-3, got {sharding}")
    pairs, config = Draw(4, 60).pairs, ActivationConfig(layers=(layer,))
    pieces = load_model(folder, dtype="auto", device=device, sharding=sharding)
    engine = ActivationEngine(pieces.model, config)
    with engine.in_step(pairs):
        found = engine.pair_vectors(pairs)
    with whole_on_this_rank():
        whole = load_model(folder, dtype=pieces.dtype, device=device)
    expected = ActivationEngine(whole.model, config).pair_vectors(pairs)
    cosine = torch.nn.functional.cosine_similarity(found.pair.double(), expected.pair.double(), dim=-1)
    print("\n" + json.dumps({"pair vectors, least cosine": float(cosine.min()), "path": engine.path}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
