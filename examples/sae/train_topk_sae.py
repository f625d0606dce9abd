"""Train a TopK sparse autoencoder of one layer of a model, on the project's own text and on datasets that you give.

    python examples/sae/train_topk_sae.py MODEL OUT --layer 20 --text hh-rlhf-harmless-base-test.jsonl.gz

writes OUT/cfg.json and OUT/sae_weights.safetensors as SAELens does, so that `trl-attribution probe show --sae OUT`,
`scan --sae OUT`, `compare -b sae` and SAELens itself read it. With 200,000 tokens it takes minutes on two cores: enough
to try things out, far too few for latents that mean one thing each. MODEL is `embedded` for SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from trl_attribution.activations.tokens import token_streams
from trl_attribution.discovery.traits.trait import packaged_traits
from trl_attribution.evidence.organisms import build_distractor_compliance
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.pairs import Encoding, PairReader, Reading
from trl_attribution.pairs.dataset_pass import encoded_pairs

MASSIVE = 10.0
"""Tokens longer than so many medians (the first of a sequence, mostly) are left out: they would be all of the loss."""


@dataclass(frozen=True)
class Settings:
    latents: int
    k: int
    tokens: int
    epochs: int
    batch: int
    learning_rate: float = 1e-3
    seed: int = 0


def sequences(loaded: LoadedModel, datasets: Sequence[str], max_length: int) -> Iterator[list[int]]:
    """Token ids of prompt and response, one dataset after the other in turn, so that every one has its share."""

    def of(dataset: object) -> Iterator[list[int]]:
        reader = PairReader(dataset, Reading(on_bad_row="skip"))  # type: ignore[arg-type]
        for _, pair in encoded_pairs(reader, loaded.encoder, Encoding(max_length)):
            for side in getattr(pair, "sides", ()):  # a pair that cannot be tokenized has none
                yield [*side.prompt_ids, *side.response_ids]

    own = [
        {"prompt": one.prompt, "chosen": one.positive, "rejected": one.negative}
        for trait in packaged_traits()
        for one in trait.examples
    ]
    sources = [of(own), of(list(build_distractor_compliance().pairs)), *map(of, datasets)]
    for ids in itertools.chain.from_iterable(itertools.zip_longest(*sources)):
        if ids is not None:
            yield ids


def activations(loaded: LoadedModel, datasets: Sequence[str], layer: int, wanted: int, max_length: int) -> Tensor:
    """``[T, D]``: what the layer holds for about ``wanted`` tokens, in random order."""
    start, parts, found = time.perf_counter(), [], 0
    for one in token_streams(loaded.model, list(_until(sequences(loaded, datasets, max_length), wanted)), [layer]):
        parts.append(one[layer].half())
        found += len(parts[-1])
        if len(parts) % 100 == 0:
            print(f"{found:,} of {wanted:,} tokens, {time.perf_counter() - start:.0f} s", flush=True)
    tokens = torch.cat(parts)
    lengths = tokens.float().norm(dim=-1)
    kept = tokens[lengths < MASSIVE * lengths.median()]
    print(f"{len(tokens):,} tokens, {len(tokens) - len(kept):,} left out for their length")
    return kept[torch.randperm(len(kept))]


def _until(found: Iterator[list[int]], wanted: int) -> Iterator[list[int]]:
    total = 0
    for ids in found:
        yield ids
        total += len(ids)
        if total >= wanted:
            return


@dataclass
class Weights:
    """Of an autoencoder in training; tokens are scaled to length 1 on average."""

    encoder: Tensor
    decoder: Tensor
    encoder_bias: Tensor
    decoder_bias: Tensor

    @classmethod
    def begun(cls, tokens: Tensor, latents: int) -> Weights:
        directions = torch.nn.functional.normalize(torch.randn(latents, tokens.shape[1]), dim=-1)
        start = cls(directions.T.clone(), directions, torch.zeros(latents), tokens[:20_000].mean(0))
        for weight in start.all:
            weight.requires_grad_()
        return start

    @property
    def all(self) -> tuple[Tensor, ...]:
        return (self.encoder, self.decoder, self.encoder_bias, self.decoder_bias)

    def latents(self, tokens: Tensor, k: int) -> Tensor:
        before = (tokens - self.decoder_bias) @ self.encoder + self.encoder_bias
        kept = before.topk(k, dim=-1)
        return torch.zeros_like(before).scatter(-1, kept.indices, kept.values.relu())


def train(tokens: Tensor, settings: Settings) -> Iterator[Weights]:
    """Reconstruct ``tokens`` ``[T, D]`` from the ``k`` largest latents, epoch by epoch; silent latents start again."""
    weights = Weights.begun(tokens.float(), settings.latents)
    optimizer = torch.optim.Adam(weights.all, lr=settings.learning_rate, betas=(0.9, 0.99))
    steps = settings.epochs * (len(tokens) // settings.batch)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 5 * (1 - step / max(1, steps))))
    for epoch in range(settings.epochs):
        start, fired, lost, worst = time.perf_counter(), torch.zeros(settings.latents), [], []
        for batch in tokens[torch.randperm(len(tokens))].split(settings.batch)[: len(tokens) // settings.batch]:
            inputs = batch.float()
            latents = weights.latents(inputs, settings.k)
            errors = (latents @ weights.decoder + weights.decoder_bias - inputs).square().sum(-1)
            optimizer.zero_grad()
            errors.mean().backward()
            optimizer.step()
            decay.step()
            with torch.no_grad():
                weights.decoder /= weights.decoder.norm(dim=-1, keepdim=True)
                fired += (latents > 0).sum(0)
                worst.append(inputs[errors.argmax()] - weights.decoder_bias)
                lost.append(float(errors.mean() / (inputs - inputs.mean(0)).square().sum(-1).mean()))
        silent = (fired == 0).nonzero().flatten()
        if epoch < settings.epochs // 2:
            _again(weights, optimizer, silent, worst)
        explained = 1 - sum(lost) / len(lost)
        print(
            f"epoch {epoch + 1}: {explained:.1%} of the variance explained, {len(silent)} latents silent, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
        yield weights


@torch.no_grad()
def _again(weights: Weights, optimizer: torch.optim.Optimizer, silent: Tensor, worst: list[Tensor]) -> None:
    """Latents that did not fire in an epoch take the direction of tokens that were reconstructed worst."""
    for latent, token in zip(silent.tolist(), worst, strict=False):
        direction = token / token.norm().clamp_min(1e-6)
        weights.decoder[latent], weights.encoder[:, latent], weights.encoder_bias[latent] = direction, direction, 0
        for weight, place in ((weights.encoder, (slice(None), latent)), (weights.decoder, (latent,))):
            for moment in ("exp_avg", "exp_avg_sq"):
                optimizer.state[weight][moment][place] = 0


def save(weights: Weights, scale: float, layer: int, model: str, settings: Settings, folder: Path) -> None:
    """The folder that SAELens reads; ``scale``, the tokens' mean length, goes into the biases."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "W_enc": weights.encoder,
        "W_dec": weights.decoder,
        "b_enc": weights.encoder_bias * scale,
        "b_dec": weights.decoder_bias * scale,
    }
    whole = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(whole, folder / "sae_weights.safetensors")
    config = {
        "architecture": "topk",
        "k": settings.k,
        "d_in": weights.encoder.shape[0],
        "d_sae": settings.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "sae_lens_version": "6.0.0",
            "model_name": model,
            "hook_name": f"blocks.{layer - 1}.hook_resid_post",
        },
    }
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or Hub id, or `embedded`")
    parser.add_argument("output", type=Path)
    parser.add_argument("--layer", type=int, required=True, help="0 = embeddings, l = after decoder block l")
    parser.add_argument("--text", nargs="*", default=[], help="preference datasets whose text is taken too")
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=512, help="tokens a step")
    parser.add_argument("--max-length", type=int, default=512)
    given = parser.parse_args()
    torch.manual_seed(0)
    settings = Settings(given.latents, given.k, given.tokens, given.epochs, given.batch)
    name = "SmolLM2-135M-Instruct" if given.model == "embedded" else given.model
    loaded = load_model(embedded_gguf() if given.model == "embedded" else given.model)
    found = activations(loaded, given.text, given.layer, given.tokens, given.max_length)
    scale = float(found[:20_000].float().norm(dim=-1).mean())
    for weights in train((found.float() / scale).half(), settings):
        save(weights, scale, given.layer, name, settings, given.output)  # each epoch: it may be stopped when it will do
    print(f"written: {given.output}")


if __name__ == "__main__":
    main()
