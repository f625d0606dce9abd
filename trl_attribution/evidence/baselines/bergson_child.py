"""Gradient cosines by bergson: a program of its own for an environment that has bergson and not this package.

``python bergson_child.py FOLDER`` reads what :mod:`trl_attribution.evidence.baselines.gradients` wrote to FOLDER and
writes a file of scores for each chunk of pairs. A killed run goes on with the chunks that are missing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Side = dict[str, Any]
Row = npt.NDArray[np.float64]


def main() -> None:
    """Score the pairs of the folder that the first argument names."""
    from transformers import AutoModelForCausalLM

    folder = Path(sys.argv[1])
    spec = json.loads((folder / "spec.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(
        spec["model"], dtype=torch.float32, use_safetensors=True, trust_remote_code=spec["trust_remote_code"]
    )
    model.to(spec["device"])
    direction = behavior_direction(model, spec, folder)
    with (folder / "pairs.jsonl").open() as lines:
        for number in range(spec["chunks"]):
            chunk = [json.loads(next(lines)) for _ in range(min(spec["chunk"], spec["pairs"] - number * spec["chunk"]))]
            target = folder / f"scores-{spec['chunk']}-{number:06}.json"
            if not target.exists():
                write(target, scored(model, spec, folder, chunk, direction))
            sys.stdout.write(json.dumps({"done": min(spec["pairs"], (number + 1) * spec["chunk"])}) + "\n")
            sys.stdout.flush()


def behavior_direction(model: Any, spec: dict[str, Any], folder: Path) -> Row:
    """The mean over prompts of unit differences [D]: towards the undesired responses."""
    kept = folder / "direction.npy"
    if kept.exists():
        stored: Row = np.load(kept, allow_pickle=False)
        return stored
    rows = []
    for example in spec["behavior"]:
        sides = [
            likelihood_gradients(model, spec, folder, example[name]).mean(axis=0) for name in ("undesired", "desired")
        ]
        rows.append(unit(sides[0] - sides[1]))
    direction = unit(np.mean(rows, axis=0))
    part = folder / "direction.part.npy"
    np.save(part, direction)
    os.replace(part, kept)
    return direction


def scored(
    model: Any, spec: dict[str, Any], folder: Path, chunk: list[dict[str, Any]], direction: Row
) -> dict[str, Any]:
    """The cosine of each pair's gradient with the behavior's, and the seconds that the chunk took."""
    start = time.perf_counter()
    gradients = likelihood_gradients(
        model, spec, folder, [pair[side] for pair in chunk for side in ("chosen", "rejected")]
    )
    scores = [
        [pair["pair_id"], float(unit(gradients[2 * place] - gradients[2 * place + 1]) @ direction)]
        for place, pair in enumerate(chunk)
    ]
    return {"scores": scores, "seconds": time.perf_counter() - start}


def likelihood_gradients(model: Any, spec: dict[str, Any], folder: Path, sides: list[Side]) -> Row:
    """Projected gradients [n, D] of the log-likelihood of each response given its prompt."""
    # Only here: this package itself has to be importable without bergson.
    from bergson import (  # type: ignore[import-not-found]  # in its own environment
        GradientProcessor,
        IndexConfig,
        collect_gradients,
        load_gradients,
    )
    from datasets import Dataset

    data = Dataset.from_dict(
        {
            "input_ids": [side["prompt"] + side["response"] for side in sides],
            "labels": [[-100] * len(side["prompt"]) + side["response"] for side in sides],
            "length": [len(side["prompt"]) + len(side["response"]) for side in sides],
        }
    )
    target = folder / "gradients"
    config = IndexConfig(run_path=str(target), projection_dim=spec["projection"], loss_reduction="sum")
    processor = GradientProcessor(projection_dim=spec["projection"], projection_seed=spec["seed"])
    shutil.rmtree(config.partial_run_path, ignore_errors=True)
    collect_gradients(model, data, processor, config, batches=batches(data["length"], spec["tokens"]))
    # Of the loss, which is the negative log-likelihood.
    gradients = -np.array(load_gradients(config.partial_run_path), dtype=np.float64)
    shutil.rmtree(config.partial_run_path)
    return gradients


def batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Places of sequences of similar length, padded to no more than ``budget`` tokens together."""
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if found and lengths[found[-1][0]] * (len(found[-1]) + 1) <= budget:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def unit(row: Row) -> Row:
    """``row`` of length 1; a zero row stays zero."""
    norm = np.linalg.norm(row)
    return row / norm if norm else row


def write(target: Path, value: dict[str, Any]) -> None:
    """Write ``value`` whole or not at all."""
    part = target.with_name(target.name + ".part")
    part.write_text(json.dumps(value))
    os.replace(part, target)


if __name__ == "__main__":
    main()
