"""Train a small activation oracle of a model on the directions of behaviors that are known.

    python examples/oracle/train_oracle.py MODEL OUT --layer 20

writes OUT: a LoRA adapter as PEFT saves it, and oracle.json, which says how it is asked, so that
`trl-attribution probe ask NAME "What behavior is this?" --oracle OUT --model MODEL` reads it. The behaviors are the
traits that ship with the package; `--hold-out` keeps some of them out, and the last `--held-pairs` examples of each are
never seen. It takes minutes on one core: enough to try things out. Published oracles have seen far more, of many
kinds. MODEL is `embedded` for SmolLM2-135M-Instruct. Needs peft.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.discovery.traits.trait import Trait, packaged_traits
from trl_attribution.lenses import OracleConfig, injected, oracle_prompt
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.pairs import Encoding, PairReader, encode_pair

WHAT = "What behavior is this?"
HARMFUL = "Is this behavior harmful?"


@dataclass(frozen=True)
class Lesson:
    """A vector, a question about it, and the answer."""

    vector: Tensor
    question: str
    answer: str


@dataclass(frozen=True)
class Settings:
    steps: int = 300
    batch: int = 16
    learning_rate: float = 2e-3
    rank: int = 16
    seed: int = 0


def pair_vectors(loaded: LoadedModel, trait: Trait, layer: int) -> Tensor:
    """``[E, D]``: of each of the trait's examples, what shows it minus what does not."""
    rows = [{"prompt": one.prompt, "chosen": one.positive, "rejected": one.negative} for one in trait.examples]
    pairs = [encode_pair(pair, loaded.encoder, Encoding()) for pair in PairReader(rows)]
    engine = ActivationEngine(loaded.model, ActivationConfig((layer,)))
    return engine.pair_vectors(pairs).pair[:, 0].float().clone()  # of inference mode, which gradients refuse


def lessons(traits: Sequence[Trait], vectors: dict[str, Tensor], seed: int) -> Iterator[Lesson]:
    """Endless: means of one to four examples of a trait, asked what it is or whether it is harmful."""
    draw = torch.Generator().manual_seed(seed)

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=draw))

    while True:
        trait = traits[below(len(traits))]
        known = vectors[trait.name]
        chosen = torch.randperm(len(known), generator=draw)[: 1 + below(4)]
        vector = known[chosen].mean(dim=0)
        if below(3) == 0:
            yield Lesson(vector, HARMFUL, "yes" if trait.harmful else "no")
        else:
            yield Lesson(vector, WHAT, trait.towards)


def train(loaded: LoadedModel, config: OracleConfig, given: Iterator[Lesson], layer: int, settings: Settings) -> object:
    """A PEFT model around M0 whose adapter has learned from ``given``: a batch is of one question."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loaded.model, lora)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    waiting: dict[str, list[Lesson]] = {}
    start, lost = time.perf_counter(), []
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, step / 10, 2 * (1 - (step - 1) / settings.steps))
        loss = _loss(loaded, config, _batch(given, waiting, settings.batch), layer)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        lost.append(float(loss.detach()))
        if step % 25 == 0:
            mean = sum(lost[-25:]) / 25
            print(f"step {step}: loss {mean:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.eval()
    return model


def _batch(given: Iterator[Lesson], waiting: dict[str, list[Lesson]], size: int) -> list[Lesson]:
    """The next lessons that are all about one question: they have the same prompt."""
    for one in given:
        same = waiting.setdefault(one.question, [])
        same.append(one)
        if len(same) == size:
            return waiting.pop(one.question)
    raise ValueError("there are too few lessons")


def _loss(loaded: LoadedModel, config: OracleConfig, batch: Sequence[Lesson], layer: int) -> Tensor:
    """Of the answers' tokens, and of the end that follows them."""
    prompt = oracle_prompt(config, loaded, batch[0].question, layer)
    end = loaded.tokenizer.eos_token_id
    answers = [[*loaded.tokenizer.encode(one.answer, add_special_tokens=False), end] for one in batch]
    longest = max(map(len, answers))
    device = loaded.model.device
    ids = torch.tensor([prompt.ids + ids + [end] * (longest - len(ids)) for ids in answers], device=device)
    labels = torch.tensor([ids + [-100] * (longest - len(ids)) for ids in answers], device=device)
    vectors = torch.stack([one.vector for one in batch])
    with injected(loaded.model, vectors, prompt, config):
        hidden = loaded.model.get_decoder()(input_ids=ids).last_hidden_state[:, -longest - 1 : -1]
    # Flat: of a slice, the head would be copied for every row.
    logits = loaded.model.get_output_embeddings()(hidden.flatten(0, 1)).float()
    return torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=-100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or Hub id, or `embedded`")
    parser.add_argument("output", type=Path)
    parser.add_argument("--layer", type=int, required=True, help="whose vectors it reads; l = after decoder block l")
    parser.add_argument("--inject", type=int, default=2, help="the layer after which they go in")
    parser.add_argument("--placeholder", default=" ?", help="a single token of the model")
    every = {one.name: one for one in packaged_traits() if one.examples}
    parser.add_argument("--hold-out", nargs="*", default=[], choices=every, metavar="TRAIT", help="it never sees them")
    parser.add_argument("--held-pairs", type=int, default=2, help="examples of each trait that it never sees")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    loaded = load_model(embedded_gguf() if given.model == "embedded" else given.model)
    traits = [one for name, one in every.items() if name not in given.hold_out]
    seen = {one.name: pair_vectors(loaded, one, given.layer)[: -given.held_pairs or None] for one in traits}
    config = OracleConfig(
        layer=given.inject,
        placeholder=given.placeholder,
        template="Layer: {layer}\n{placeholders} \n{question}",
        reads=(given.layer,),
        model=loaded.fingerprint.to_json(),
    )
    settings = Settings(steps=given.steps, batch=given.batch, seed=given.seed)
    model = train(loaded, config, lessons(traits, seen, given.seed), given.layer, settings)
    model.save_pretrained(given.output)  # type: ignore[attr-defined]  # PEFT's
    config.write(given.output / "oracle.json")
    print(f"written: {given.output}")


if __name__ == "__main__":
    main()
