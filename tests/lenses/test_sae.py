"""A sparse autoencoder is read from every form people have, says what the formula says, and fits only its own layer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import naive
from tests.audit_cases import pair_rows, tiny_loaded
from tests.lenses import saes
from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.lenses import SaeConfig, SparseAutoencoder, check_sae, compose, describe_latents, latents_of_pairs
from trl_attribution.lenses import read_sae as read
from trl_attribution.lenses.latents import latent_engine
from trl_attribution.lenses.reconstruction import explained_variance
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, encode_pair

KINDS = ("relu", "jumprelu", "topk")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def pairs(loaded: LoadedModel) -> list[EncodedPair]:
    return [encode_pair(pair, loaded.tokenizer, Encoding()) for pair in PairReader(pair_rows(12))]


@pytest.fixture(scope="module")
def sequences(pairs: list[EncodedPair]) -> list[list[int]]:
    return [[*side.prompt_ids, *side.response_ids] for pair in pairs for side in pair.sides]


def plain_latents(sae: SparseAutoencoder, token: Tensor) -> list[float]:
    """One token, one latent at a time."""
    scaled = token.clone()
    if sae.norm == "layer_norm":
        scaled = (token - token.mean()) / ((token - token.mean()).std() + 1e-5)
    if sae.norm == "constant_norm_rescale":
        scaled = token * len(token) ** 0.5 / token.norm()
    if sae.centered:
        scaled = scaled - sae.decoder_bias
    found = [float(scaled @ sae.encoder[:, one] + sae.encoder_bias[one]) for one in range(sae.width)]
    if sae.by_decoder_norm:
        found = [value * float(sae.decoder[one].norm()) for one, value in enumerate(found)]
    if sae.kind == "topk":
        kept = sorted(range(sae.width), key=lambda one: -found[one])[: sae.k]
        found = [value if one in kept else 0.0 for one, value in enumerate(found)]
    if sae.kind == "jumprelu":
        assert sae.threshold is not None
        found = [value if value > sae.threshold[one] else 0.0 for one, value in enumerate(found)]
    return [max(0.0, value) for value in found]


def plain_reconstruction(sae: SparseAutoencoder, token: Tensor) -> Tensor:
    total = sae.decoder_bias.clone()
    for one, value in enumerate(plain_latents(sae, token)):
        total += value / (float(sae.decoder[one].norm()) if sae.by_decoder_norm else 1.0) * sae.decoder[one]
    if sae.norm == "layer_norm":
        return total * (token - token.mean()).std() + token.mean()
    return total * token.norm() / len(token) ** 0.5 if sae.norm == "constant_norm_rescale" else total


@pytest.mark.parametrize(
    "sae",
    [
        *map(saes.random_sae, KINDS),
        saes.random_sae("relu", norm="layer_norm"),
        saes.random_sae("relu", norm="constant_norm_rescale", centered=False),
        saes.random_sae("topk", by_decoder_norm=True),
    ],
    ids=lambda sae: f"{sae.kind}-{sae.norm}-{sae.by_decoder_norm}",
)
def test_latents_and_reconstructions_are_those_of_the_formula(sae: SparseAutoencoder) -> None:
    tokens = torch.randn(7, saes.HIDDEN)
    expected = torch.tensor([plain_latents(sae, token) for token in tokens])
    assert 0 < int((expected > 0).sum()) < expected.numel()
    torch.testing.assert_close(sae.encode(tokens), expected, rtol=1e-4, atol=1e-4)
    rebuilt = torch.stack([plain_reconstruction(sae, token) for token in tokens])
    torch.testing.assert_close(sae.reconstruct(tokens), rebuilt, rtol=1e-4, atol=1e-4)
    share = 1 - (rebuilt - tokens).square().sum() / (tokens - tokens.mean(0)).square().sum()
    assert explained_variance(sae, tokens) == pytest.approx(float(share), rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("relu", saes.save),
        ("jumprelu", saes.save),
        ("topk", saes.save),
        ("topk", saes.save_old_sae_lens),
        ("jumprelu", saes.save_gemma_scope),
        ("jumprelu", saes.save_gemma_scope_2),
        ("topk", saes.save_sparsify),
    ],
)
def test_every_form_is_read_to_the_same_autoencoder(
    kind: str, write: Callable[[SparseAutoencoder, Path], Path], tmp_path: Path
) -> None:
    sae = saes.random_sae(kind)
    found = read(SaeConfig(str(write(sae, tmp_path / "sae"))))
    tokens = torch.randn(5, saes.HIDDEN)
    assert (found.layer, found.kind, found.k) == (sae.layer, sae.kind, sae.k)
    torch.testing.assert_close(found.encode(tokens), sae.encode(tokens))
    torch.testing.assert_close(found.reconstruct(tokens), sae.reconstruct(tokens))


def test_plain_tensors_take_layer_and_k_from_the_options(tmp_path: Path) -> None:
    sae = saes.random_sae("topk")
    saes.save(sae, tmp_path)
    (tmp_path / "cfg.json").unlink()
    file = tmp_path / "sae_weights.safetensors"
    with pytest.raises(ModelError, match="--sae-layer"):
        read(SaeConfig(str(file), k=5))
    found = read(SaeConfig(str(file), layer=2, k=5))
    torch.testing.assert_close(found.encode(torch.ones(1, 32)), sae.encode(torch.ones(1, 32)))


def test_a_k_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leave out --sae-k"):
        read(SaeConfig(str(saes.save(saes.random_sae("jumprelu"), tmp_path)), k=5))


def test_a_hub_id_is_read_from_the_cache_with_the_folder_behind_its_colon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--owner--saes"
    saes.save(saes.random_sae("relu"), repository / "snapshots" / "c0ffee" / "layer_1")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert read(SaeConfig("owner/saes:layer_1")).width == saes.LATENTS
    with pytest.raises(ModelError, match="holds no sparse autoencoder"):
        read(SaeConfig("owner/saes"))
    with pytest.raises(ModelError, match="cannot fetch"):
        read(SaeConfig("owner/others"))


def changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def pickled(folder: Path) -> None:
    (folder / "sae_weights.safetensors").unlink()
    np.savez(folder / "params.npz", W_enc=np.array([{"a": print}], dtype=object))


def resized(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "sae_weights.safetensors"
        save_file(load_file(path) | {name: torch.ones(shape)}, path)
        if name == "threshold":
            changed(architecture="jumprelu")(folder)

    return change


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (changed(architecture="gated"), "gated is no architecture"),
        (changed(normalize_activations="expected_average_only_in"), "fold it into the weights"),
        (changed(metadata={"hook_name": "blocks.1.hook_mlp_out"}), "not of the residual stream"),
        (changed(architecture="topk"), "give it with --sae-k"),
        (lambda folder: (folder / "cfg.json").write_text("[1]"), "no JSON object"),
        (lambda folder: (folder / "sae_weights.safetensors").write_bytes(b"junk"), "cannot read"),
        (lambda folder: (folder / "sae_weights.safetensors").unlink(), "holds no sparse autoencoder"),
        (lambda folder: save_file({"a": torch.ones(2)}, folder / "sae_weights.safetensors"), "lacks W_enc or W_dec"),
        (pickled, "cannot read"),
        (changed(normalize_activations=["layer_norm"]), "fold it into the weights"),
        (changed(metadata={"hook_name": f"blocks.{'9' * 5000}.hook_resid_post"}), "not of the residual stream"),
        (resized("W_enc", (saes.HIDDEN, 7)), "the encoder has 7 latents and the decoder 64"),
        (resized("b_enc", (7,)), "has 7 values where there are 64"),
        (resized("threshold", (7,)), "has 7 values where there are 64"),
    ],
)
def test_what_is_no_autoencoder_of_the_stream_is_refused(
    spoil: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    saes.save(saes.random_sae("relu"), tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=said):
        read(SaeConfig(str(tmp_path)))


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"layer": -1}, {"k": 0}, {"min_explained": 1.0}):
        with pytest.raises(SettingsError, match=f"sae_{next(iter(wrong))}"):
            SaeConfig("sae", **wrong)


def test_a_pairs_latents_are_means_over_tokens_and_not_latents_of_the_means(
    loaded: LoadedModel, pairs: list[EncodedPair]
) -> None:
    sae = dataclasses.replace(saes.random_sae("topk"), encoder_bias=torch.zeros(saes.LATENTS))
    found = torch.cat([one.differences for one in latents_of_pairs(latent_engine(loaded, sae), pairs)])
    expected, of_means = [], []
    for pair in pairs:
        sides = []
        for side in pair.sides:
            states = naive.hidden_states(loaded.model, [*side.prompt_ids, *side.response_ids], [sae.layer])[0]
            tokens = states[len(side.prompt_ids) :]
            latents = torch.stack([torch.tensor(plain_latents(sae, token)) for token in tokens])
            sides.append((latents.mean(0), sae.encode(tokens.mean(0, keepdim=True))[0]))
        expected.append(sides[0][0] - sides[1][0])
        of_means.append(sides[0][1] - sides[1][1])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-4)
    assert (found - torch.stack(of_means)).norm() > 0.1 * found.norm()


def test_the_path_and_the_batch_make_no_difference_to_latents(loaded: LoadedModel, pairs: list[EncodedPair]) -> None:
    sae = saes.random_sae("jumprelu")
    engines = [
        latent_engine(loaded, sae, ActivationConfig((), path=path, token_budget=budget))
        for path, budget in (("plain", 64), ("packed", 4096))
    ]
    first, second = (engine.pair_vectors(pairs) for engine in engines)
    torch.testing.assert_close(first.pair, second.pair, rtol=1e-4, atol=1e-4)
    assert first.pair.shape == (len(pairs), 1, saes.LATENTS)


def test_an_engine_without_a_lens_reads_the_stream_as_before(loaded: LoadedModel, pairs: list[EncodedPair]) -> None:
    engine = ActivationEngine(loaded.model, ActivationConfig((2,)))
    assert engine.width == engine.hidden_size == saes.HIDDEN


def test_a_fitting_autoencoder_is_taken_and_says_how_well_it_fits(
    loaded: LoadedModel, sequences: list[list[int]], tmp_path: Path
) -> None:
    sae = saes.fitted_sae(loaded.model, sequences, layer=2)
    checked = check_sae(SaeConfig(str(saes.save(sae, tmp_path))), loaded, sequences)
    tokens = torch.cat([naive.hidden_states(loaded.model, ids, [2])[0] for ids in sequences])
    assert checked.reconstruction.explained == pytest.approx(explained_variance(sae, tokens), abs=0.01)
    assert set(checked.reconstruction.by_layer) == {1, 2, 3}
    assert "explains" in checked.to_json()["reconstruction"]["says"]


def test_a_wrong_layer_a_wrong_model_and_noise_are_refused(
    loaded: LoadedModel, sequences: list[list[int]], tmp_path: Path
) -> None:
    sae = saes.fitted_sae(loaded.model, sequences, layer=2)
    moved = saes.save(dataclasses.replace(sae, layer=3), tmp_path / "moved")
    with pytest.raises(ModelError, match=r"looks like one of layer 2\. If it is, say so with --sae-layer 2"):
        check_sae(SaeConfig(str(moved)), loaded, sequences)
    assert check_sae(SaeConfig(str(moved), layer=2), loaded, sequences).sae.layer == 2
    noise = saes.save(saes.random_sae("relu"), tmp_path / "noise")
    with pytest.raises(ModelError, match="looks like|less than 50%"):
        check_sae(SaeConfig(str(noise)), loaded, sequences)
    nothing = saes.save(dataclasses.replace(sae, encoder=sae.encoder * float("nan")), tmp_path / "nothing")
    with pytest.raises(ModelError, match="less than 50%"):
        check_sae(SaeConfig(str(nothing)), loaded, sequences)
    with pytest.raises(ModelError, match="has no pair that can be read"):
        check_sae(SaeConfig(str(noise)), loaded, [])
    narrow = dataclasses.replace(sae, encoder=sae.encoder[:8], decoder=sae.decoder[:, :8], decoder_bias=torch.zeros(8))
    with pytest.raises(ModelError, match="reads 8 hidden dimensions"):
        check_sae(SaeConfig(str(saes.save(narrow, tmp_path / "narrow"))), loaded, sequences)
    deep = saes.save(dataclasses.replace(sae, layer=9), tmp_path / "deep")
    with pytest.raises(ModelError, match="is of layer 9"):
        check_sae(SaeConfig(str(deep)), loaded, sequences)


def test_a_direction_is_made_of_the_latents_that_it_was_made_of() -> None:
    sae = saes.random_sae("relu")
    unit = torch.nn.functional.normalize(sae.decoder, dim=-1)
    direction = 3 * unit[7] - 2 * unit[40]
    found = compose(direction, sae, count=4)
    first = {part.latent: part.weight * float(direction.norm()) for part in found.parts[:2]}
    assert first == {7: pytest.approx(3, abs=1e-4), 40: pytest.approx(-2, abs=1e-4)}
    assert found.parts[1].explained == pytest.approx(1)
    assert found.by_chance < 0.9
    assert found.parts[0].cosine == pytest.approx(float(direction @ unit[7] / direction.norm()), abs=1e-5)


def test_latents_are_shown_with_the_tokens_that_raise_them(loaded: LoadedModel, sequences: list[list[int]]) -> None:
    sae = saes.fitted_sae(loaded.model, sequences, layer=2)
    (one,) = describe_latents(sae, [3], loaded, sequences[:6])
    streams = [naive.hidden_states(loaded.model, ids, [2])[0] for ids in sequences[:6]]
    highest = [float(sae.encode(stream)[:, 3].max()) for stream in streams]
    assert one.raised_by[0].activation == pytest.approx(max(highest), rel=1e-4)
    number = highest.index(max(highest))
    place = int(sae.encode(streams[number])[:, 3].argmax())
    assert one.raised_by[0].token == loaded.tokenizer.decode([sequences[number][place]])
    assert 0 < one.share < 1 and one.promotes
