"""Foreign vectors: each tool's own files, with its own layer convention, become probes of our convention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from trl_attribution.activations import ActivationConfig, ActivationEngine, PromptGroup
from trl_attribution.errors import ProbeError
from trl_attribution.models import LoadedModel
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.probes import ImportConfig, ProbeRegistry, import_probe

D = 32


@pytest.fixture
def llama(make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    model = make_model("llama")
    return LoadedModel(model, tokenizer, "tiny", fingerprint(model, tokenizer))


def write_control_vector(path: Path, directions: dict[int, Any], kind: str = "controlvector") -> Path:
    """As repeng's ``export_gguf`` writes it."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, kind)
    writer.add_string(f"{kind}.model_hint", "llama")
    writer.add_uint32(f"{kind}.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", np.asarray(direction, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_direction_n_of_a_control_vector_is_our_layer_n_plus_1(llama: LoadedModel, tmp_path: Path) -> None:
    """repeng's block N counted from 0 writes the stream that our layer N + 1 reads: checked on the model itself."""
    ids, written = [5, 6, 7, 8], {}
    for block, module in enumerate(llama.model.model.layers):
        module.register_forward_hook(
            lambda _module, _args, output, block=block: written.update(
                {block: (output[0] if isinstance(output, tuple) else output).flatten(0, -2)[-1].numpy().copy()}
            )
        )
    with torch.no_grad():
        llama.model(input_ids=torch.tensor([ids]))
    outputs = {block: written[block] for block in (0, 1, 2)}
    probe = import_probe("imported", write_control_vector(tmp_path / "v.gguf", outputs), llama)
    engine = ActivationEngine(llama.model, ActivationConfig(layers=probe.layers))
    context = engine.activations([PromptGroup(ids, [[9]])])[0].context
    assert probe.layers == (1, 2, 3)
    torch.testing.assert_close(probe.vector, context, atol=1e-5, rtol=1e-5)


def test_a_control_vector_measured_one_block_earlier_can_be_shifted(llama: LoadedModel, tmp_path: Path) -> None:
    path = write_control_vector(tmp_path / "v.gguf", {1: np.ones(D), 2: np.ones(D)})
    assert import_probe("imported", path, llama, ImportConfig(block_offset=0)).layers == (1, 2)
    assert import_probe("imported", path, llama).layers == (2, 3)


def test_an_imported_probe_is_kept_like_any_other(llama: LoadedModel, tmp_path: Path) -> None:
    path = write_control_vector(tmp_path / "v.gguf", {0: np.arange(D), 2: np.ones(D)})
    registry = ProbeRegistry(tmp_path / "probes")
    registry.save(import_probe("imported", path, llama))
    probe = registry.load("imported")
    assert probe.layers == (1, 3)
    assert probe.layer == 1
    assert probe.at(1).tolist() == list(range(D))
    assert probe.model == llama.fingerprint
    assert probe.built["method"] == "imported"
    assert probe.built["model_hint"] == "llama"
    assert len(probe.promoted_tokens) == 10
    assert not probe.knows_prompts


def test_a_vector_that_points_away_is_turned_round(llama: LoadedModel, tmp_path: Path) -> None:
    path = write_control_vector(tmp_path / "v.gguf", {1: np.arange(D)})
    probe = import_probe("imported", path, llama, ImportConfig(sign="away"))
    assert probe.at().tolist() == [-number for number in range(D)]
    assert probe.built["sign_in_file"] == "away"


@pytest.mark.parametrize("keys", [[1, 3], ["1", "3"], ["layer_1", "layer_3"], ["layers.1", "layers.3"]])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_dict_of_layers_says_its_layers(llama: LoadedModel, tmp_path: Path, keys: list[Any], suffix: str) -> None:
    vectors = {key: torch.full((D,), float(place + 1)) for place, key in enumerate(keys)}
    path = tmp_path / f"vectors{suffix}"
    if suffix == ".pt":
        torch.save(vectors, path)
    else:
        save_file({str(key): vector for key, vector in vectors.items()}, path)
    probe = import_probe("imported", path, llama)
    assert probe.layers == (1, 3)
    assert probe.at(3).tolist() == [2.0] * D
    only = import_probe("imported", path, llama, ImportConfig(layers=(3,)))
    assert only.layers == (3,)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_tensor_that_does_not_say_its_layers_is_told_them(llama: LoadedModel, tmp_path: Path, suffix: str) -> None:
    rows = torch.stack([torch.full((D,), 1.0), torch.full((D,), 2.0)])
    path = tmp_path / f"rows{suffix}"
    if suffix == ".pt":
        torch.save(rows, path)
    else:
        save_file({"vector": rows}, path)
    probe = import_probe("imported", path, llama, ImportConfig(layers=(3, 1), layer=3))
    assert probe.at(3).tolist() == [1.0] * D
    assert probe.at(1).tolist() == [2.0] * D
    assert probe.layer == 3


def test_a_single_direction_takes_the_layer_given(llama: LoadedModel, tmp_path: Path) -> None:
    torch.save(torch.arange(D).double(), tmp_path / "one.pt")
    probe = import_probe("imported", tmp_path / "one.pt", llama, ImportConfig(layers=(2,)))
    assert probe.layers == (2,)
    assert probe.vector.dtype == torch.float32


def artifact(layers: list[int]) -> dict[str, Any]:
    """As the code published with arXiv 2602.11079 writes it."""
    generator = torch.Generator().manual_seed(0)

    def directions() -> dict[int, torch.Tensor]:
        return {layer: torch.randn(D, generator=generator) for layer in layers}

    return {
        "model": "olmo7b_sft",
        "layer_indices": layers,
        "toxic_counts": dict.fromkeys(layers, 3),
        "processed_samples": 3,
        "metadata": {"filters": "dpo_base=0, sft_base=0, sft_bpd=0, dpo_bpd>0", "max_scenarios": None},
        "toxic_means": directions(),
        "natural_means": directions(),
        "direction": directions(),
        "bank": {"first": directions(), "second": directions()},
    }


def test_the_papers_artifact_is_read_by_places_in_hidden_states(llama: LoadedModel, tmp_path: Path) -> None:
    content = artifact([0, 1, 3])
    torch.save(content, tmp_path / "direction.pt")
    probe = import_probe("imported", tmp_path / "direction.pt", llama)
    assert probe.layers == (0, 1, 3)
    assert torch.equal(probe.at(3), content["direction"][3])
    assert probe.prompt_vectors is not None
    assert torch.equal(probe.prompt_vectors[1, 2], content["bank"]["second"][3])
    assert probe.built["model"] == "olmo7b_sft"
    assert not probe.knows_prompts


def test_the_last_hidden_state_of_an_artifact_is_after_the_final_norm_and_left_out(
    llama: LoadedModel, tmp_path: Path
) -> None:
    torch.save(artifact([2, 4]), tmp_path / "direction.pt")
    assert import_probe("imported", tmp_path / "direction.pt", llama).layers == (2,)
    with pytest.raises(ProbeError, match="layer 4 does not fit the model, whose usable layers are 0 to 3"):
        import_probe("imported", tmp_path / "direction.pt", llama, ImportConfig(layers=(4,)))


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_that_needs_code_is_refused_and_the_code_does_not_run(llama: LoadedModel, tmp_path: Path) -> None:
    torch.save({2: torch.ones(D), "extra": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(ProbeError, match="a pickle that needs code to be run, which is refused"):
        import_probe("imported", tmp_path / "evil.pt", llama)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (torch.ones(D), {}, r"shape \(32,\) does not say which layers it is of. Give its layer"),
        (torch.ones(2, D), {}, "Give its 2 layers"),
        (torch.ones(2, D), {"layers": (1,)}, "2 rows, but the layers given are 1"),
        (torch.ones(2, D), {"layers": (1, 1)}, "2 rows, but the layers given are 1, 1"),
        (torch.ones(2, 2, D), {"layers": (1, 2)}, r"a direction is \[D\], or \[L, D\]"),
        (torch.ones(D + 1), {"layers": (1,)}, "has 33 numbers, but model tiny has hidden size 32"),
        (torch.ones(D), {"layers": (9,)}, "layer 9 does not fit the model, whose usable layers are 0 to 4"),
        (torch.zeros(D), {"layers": (1,)}, "layer 1 has zero norm"),
        (torch.full((D,), float("nan")), {"layers": (1,)}, "layer 1 has NaN"),
        (torch.ones(D, dtype=torch.long), {"layers": (1,)}, "is floating-point"),
        ({1: torch.ones(D)}, {"layers": (2,)}, "has no layer 2; its layers are 1"),
        ({1: torch.ones(D), "layer_1": torch.ones(D)}, {}, "layer 1 is there twice"),
        (
            {"mean": torch.ones(D), "std": torch.ones(D)},
            {},
            "cannot tell which entry is a layer's direction among mean",
        ),
        ({1: torch.ones(2, D)}, {}, r"entry '1' is torch.float32 of shape \(2, 32\)"),
        ({1: "text"}, {}, "entry '1' is not a layer's tensor"),
        ([torch.ones(D)], {}, "holds a list, not a tensor or a dict"),
        (torch.ones(D), {"layers": (1,), "sign": "up"}, "'towards' or 'away', not 'up'"),
        ({1: torch.ones(D), 2: torch.ones(D)}, {"layer": 3}, "layer 3 is not among the probe's layers 1, 2"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    llama: LoadedModel, tmp_path: Path, content: Any, settings: dict[str, Any], message: str
) -> None:
    torch.save(content, tmp_path / "vector.pt")
    with pytest.raises(ProbeError, match=message):
        import_probe("imported", tmp_path / "vector.pt", llama, ImportConfig(**settings))


@pytest.mark.parametrize("suffix", [".pt", ".gguf", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a vector file at all, but some text"])
def test_broken_files_are_refused_by_name(llama: LoadedModel, tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"broken{suffix}").write_bytes(content)
    with pytest.raises(ProbeError, match=f"broken{suffix}"):
        import_probe("imported", tmp_path / f"broken{suffix}", llama)


def test_a_truncated_control_vector_is_refused(llama: LoadedModel, tmp_path: Path) -> None:
    path = write_control_vector(tmp_path / "v.gguf", {1: np.ones(D), 2: np.ones(D)})
    path.write_bytes(path.read_bytes()[:-90])
    with pytest.raises(ProbeError, match="is not a whole GGUF file"):
        import_probe("imported", path, llama)


def test_a_gguf_of_another_kind_is_refused(llama: LoadedModel, tmp_path: Path) -> None:
    path = write_control_vector(tmp_path / "v.gguf", {1: np.ones(D)}, kind="llama")
    with pytest.raises(ProbeError, match="of kind 'llama', not a control vector"):
        import_probe("imported", path, llama)


def test_unknown_and_missing_files_are_refused(llama: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "vector.npy").write_bytes(b"x")
    with pytest.raises(ProbeError, match=r"cannot import \.npy; read are \.gguf, \.pt and \.safetensors"):
        import_probe("imported", tmp_path / "vector.npy", llama)
    with pytest.raises(ProbeError, match="no file .*nowhere.pt"):
        import_probe("imported", tmp_path / "nowhere.pt", llama)
