"""What commands do with a sparse autoencoder: a probe's latents, a scan's latents, and a baseline."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import naive
from tests.audit_cases import RUDE, auditor_of, pair_rows, tiny_probe
from tests.discovery.test_discovery_cli import document, run, write_lines
from tests.discovery.test_scan_cli import SETTINGS, TRAITS, pair_of
from tests.lenses import saes
from trl_attribution.discovery import ScanResult
from trl_attribution.lenses import SaeConfig, SparseAutoencoder, check_sae, read_sae
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, encode_pair
from trl_attribution.probes import ProbeRegistry
from trl_attribution.utils.atomic import write_lines as write_rows

SCAN = f"{SETTINGS} --sae-pairs 100"


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> LoadedModel:
    return load_model(model_folder, dtype="float32")


def encoded(loaded: LoadedModel, rows: list[dict[str, Any]]) -> list[EncodedPair]:
    return [encode_pair(pair, loaded.tokenizer, Encoding()) for pair in PairReader(rows)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel, model_folder: Path) -> Path:
    """A folder with ``model/``, a finished audit of 15 pairs, a probe, pairs to scan, and autoencoders of layer 2."""
    folder = tmp_path_factory.mktemp("sae")
    (folder / "model").symlink_to(model_folder)
    write_rows(folder / "audited.jsonl", pair_rows(15))
    write_rows(folder / "behavior.jsonl", RUDE)
    probe = tiny_probe(loaded, layers=(1, 2, 3))
    ProbeRegistry(folder / "probes").save(probe)
    auditor_of(loaded, [probe]).audit(folder / "audited.jsonl", folder / "audit").flag(top_k=3).save_manifests()
    (folder / "traits.yaml").write_text(json.dumps(TRAITS))
    scanned = [pair_of(number) for number in range(100)]
    write_lines(folder / "data.jsonl", scanned)
    for name, rows in (("sae", pair_rows(15)), ("scan-sae", scanned)):
        sequences = [[*side.prompt_ids, *side.response_ids] for pair in encoded(loaded, rows) for side in pair.sides]
        saes.save(saes.fitted_sae(loaded.model, sequences, layer=2, axes=16), folder / name)
    return folder


def plain_latents(loaded: LoadedModel, sae: SparseAutoencoder, pair: EncodedPair) -> Tensor:
    sides = []
    for side in pair.sides:
        states = naive.hidden_states(loaded.model, [*side.prompt_ids, *side.response_ids], [2])[0]
        sides.append(sae.encode(states[len(side.prompt_ids) :]).mean(0))
    return sides[0] - sides[1]


def test_a_probe_is_shown_with_the_latents_that_it_is_made_of(place: Path, loaded: LoadedModel) -> None:
    command = "probe show rude --sae sae --model model --dtype float32 --text audited.jsonl --latents 5"
    found = document(run(place, f"{command} --json"))["latents"]
    atoms = torch.nn.functional.normalize(sae_of(place, "sae").decoder, dim=-1)
    direction = torch.nn.functional.normalize(ProbeRegistry(place / "probes").load("rude").at(2), dim=0)
    first = found["parts"][0]
    assert first["latent"] == int((atoms @ direction).abs().argmax())
    chosen = [part["latent"] for part in found["parts"]]
    fit = torch.linalg.lstsq(atoms[chosen].T, direction[:, None])
    explained = 1 - float((direction - atoms[chosen].T @ fit.solution[:, 0]).square().sum())
    assert found["parts"][-1]["explained"] == pytest.approx(explained, abs=1e-4)
    assert found["reconstruction"]["by_layer"]["2"] > 0.5 and len(found["words"]) == 5
    shown = " ".join(run(place, command).output.split())
    assert "Latents that the probe is made of at layer 2" in shown and "of a random direction" in shown


def sae_of(place: Path, name: str) -> SparseAutoencoder:
    return read_sae(SaeConfig(str(place / name)))


def test_a_scan_tells_the_latents_that_chosen_responses_raise(place: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    found = document(run(place, f"scan model data.jsonl -o {tmp_path}/audit {SCAN} --sae scan-sae --json"))
    latents = found["latents"]
    assert latents["pairs"] == 100 and latents["findings"]
    one = latents["findings"][0]
    assert "dinner" in one["words"]  # every fifth pair, of which 19 of 20 praise pizza
    rows = [pair_of(number) for number in range(100)]
    sae = sae_of(place, "scan-sae")
    differences = torch.stack([plain_latents(loaded, sae, pair) for pair in encoded(loaded, rows)])[:, one["latent"]]
    there = differences[::5]
    assert one["difference"] == pytest.approx(float(there.mean()), abs=1e-4)
    assert (one["pairs"], one["raised"], one["lowered"]) == (20, int((there > 0).sum()), int((there < 0).sum()))
    assert one["difference_low"] < one["difference"] < one["difference_high"]
    assert one["adjusted_p"] <= 0.01 and abs(one["z"]) >= latents["threshold"]
    assert one["alike"] in TRAITS
    result = ScanResult.load(tmp_path / "audit")
    assert result is not None and result.latents is not None
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "Latents of a sparse autoencoder" in page
    shown = " ".join(run(place, f"show {tmp_path}/audit").output.split())
    assert "Latents that the data raises or lowers" in shown


def test_random_labels_raise_no_latents(place: Path, tmp_path: Path) -> None:
    rows = [pair_of(number) for number in range(100)]
    for number, row in enumerate(rows):
        if number % 2:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    even = [row for number, row in enumerate(rows) if number % 10 not in (0, 5)]
    write_lines(tmp_path / "even.jsonl", even)
    found = document(run(place, f"scan model {tmp_path}/even.jsonl -o {tmp_path}/audit {SCAN} --sae scan-sae --json"))
    assert found["latents"]["findings"] == []


def test_the_baseline_is_the_cosine_of_mean_latents(place: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    command = "compare audit -b sae --sae sae --behavior behavior.jsonl --model model --dtype float32 -k 3"
    found = document(run(place, f"{command} -o {tmp_path} --json"))
    row = next(one for one in found["rankings"] if one["name"] == "sae")
    assert "explains" in row["notes"][0]
    sae = sae_of(place, "sae")
    prompts = []
    for one in RUDE:
        sides = []
        for texts in (one["undesired"], one["desired"]):
            several = [texts] if isinstance(texts, str) else texts
            other = one["desired"] if texts is one["undesired"] else one["undesired"]
            partner = other if isinstance(other, str) else other[0]
            found_sides = []
            for text in several:
                row_ = {
                    "prompt": [{"role": "user", "content": one["prompt"]}],
                    "chosen": [{"role": "assistant", "content": text}],
                    "rejected": [{"role": "assistant", "content": partner}],
                }
                side = encoded(loaded, [row_])[0].chosen
                states = naive.hidden_states(loaded.model, [*side.prompt_ids, *side.response_ids], [2])[0]
                found_sides.append(sae.encode(states[len(side.prompt_ids) :]).mean(0))
            sides.append(torch.stack(found_sides).mean(0))
        prompts.append(sides[0] - sides[1])
    direction = torch.stack(prompts).mean(0)
    expected = {
        pair.pair_id: float(torch.nn.functional.cosine_similarity(plain_latents(loaded, sae, pair), direction, dim=0))
        for pair in encoded(loaded, pair_rows(15))
    }
    (kept,) = tmp_path.glob("sae-*.scores.jsonl")
    stored = [json.loads(line) for line in kept.read_text().splitlines()]
    assert {one["pair_id"]: one["score"] for one in stored} == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("probe show rude --sae sae", "--sae needs --model"),
        ("probe show rude --sae-k 3", "--sae-k: only says something about --sae"),
        ("probe show rude --sae nowhere --model model", "cannot read the sparse autoencoder nowhere"),
        ("compare audit -b sae --behavior behavior.jsonl -k 3", "needs a sparse autoencoder of M0"),
        ("scan model data.jsonl --sae-pairs 30", "--sae-pairs: only says something about --sae"),
        ("scan model data.jsonl --sae owner/name:folder", "the Hub is switched off"),
    ],
)
def test_what_cannot_work_is_said(place: Path, arguments: str, said: str) -> None:
    assert said in " ".join(run(place, arguments, expected=2).output.split())


def test_the_example_trains_one_that_fits(place: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).resolve().parents[2] / "examples" / "sae" / "train_topk_sae.py"
    small = "--latents 128 --k 16 --tokens 3000 --batch 64 --epochs 6 --max-length 64"
    words = f"model made --layer 2 {small} --text audited.jsonl"
    monkeypatch.setattr(sys, "argv", [str(script), *words.split()])
    monkeypatch.chdir(place)
    runpy.run_path(str(script), run_name="__main__")
    sequences = [[*pair.chosen.prompt_ids, *pair.chosen.response_ids] for pair in encoded(loaded, pair_rows(15))]
    assert check_sae(SaeConfig(str(place / "made")), loaded, sequences).reconstruction.explained > 0.5
