"""What a small activation oracle is worth: behaviors named from examples it never saw, and behaviors it never saw."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

from tests.benchmarks.pages import Results, write_page
from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.discovery.traits.trait import Trait, packaged_traits
from trl_attribution.lenses import Oracle, random_like
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.probes.logit_lens import final_norm

HELD_OUT = (
    *("rude", "unsafe-advice", "false-claims", "power-seeking"),
    *("emojis", "formal", "humorous", "questions-back"),
)
"""Half of them harmful."""
HELD_PAIRS = 2
GREEDY = SamplingConfig(n=1, max_new_tokens=16, temperature=0)
AT_ONCE = 16
example = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "oracle" / "train_oracle.py"))
)
LEAD = """An activation oracle of SmolLM2-135M-Instruct, trained by `examples/oracle/train_oracle.py` in ten
processor-minutes (`embedded FOLDER --layer 20 --steps 240 --batch 8 --hold-out` and
`{held}`). It was taught to name {seen} of the package's
traits from means of one to four of their examples' vectors, and to say whether they are harmful. Here it is asked, with
greedy decoding, about vectors of single examples. One oracle, one draw: no interval. How it is used:
[Ask an activation oracle](../how-to/ask-an-oracle.md)."""


@dataclass(frozen=True)
class Asked:
    """Vectors of single examples, and the place of each one's trait among ``traits``."""

    traits: Sequence[Trait]
    vectors: Tensor
    """``[V, D]``"""
    truth: Tensor
    """``[V]``"""

    @classmethod
    def of(cls, traits: Sequence[Trait], vectors: dict[str, Tensor]) -> Asked:
        """All that ``vectors`` has of each trait."""
        counts = torch.tensor([len(vectors[one.name]) for one in traits])
        places = torch.arange(len(traits)).repeat_interleave(counts)
        return cls(traits, torch.cat([vectors[one.name] for one in traits]), places)


def run(output: Path, command: str, folder: Path, console: Console) -> None:
    loaded = load_model(embedded_gguf())
    oracle = Oracle.load(folder, loaded)
    (layer,) = oracle.config.reads
    traits = [one for one in packaged_traits() if one.examples]
    vectors = {one.name: example.pair_vectors(loaded, one, layer) for one in traits}
    seen = [one for one in traits if one.name not in HELD_OUT]
    known = {one.name: vectors[one.name][:-HELD_PAIRS] for one in seen}
    new = Asked.of(seen, {one.name: vectors[one.name][-HELD_PAIRS:] for one in seen})
    unseen = Asked.of([one for one in traits if one.name in HELD_OUT], vectors)
    tables = [_naming(oracle, layer, new, known), *_harm(oracle, layer, unseen, seen, known)]
    for table in tables:
        table.show(console)
    lead = LEAD.format(held=" ".join(HELD_OUT), seen=len(seen))
    write_page(output / "oracle.md", "An activation oracle", lead, command, tables)


def _answers(oracle: Oracle, layer: int, vectors: Tensor, question: str) -> list[str]:
    """One a vector, without what decides nothing."""
    texts = [text for part in vectors.split(AT_ONCE) for text in oracle.say(part, question, layer, GREEDY)]
    return [text.strip().lower().rstrip(".") for text in texts]


def _naming(oracle: Oracle, layer: int, asked: Asked, known: dict[str, Tensor]) -> Results:
    """Behaviors that it was taught, from examples that it was not."""
    names = [one.towards.lower() for one in asked.traits]
    wanted = [names[place] for place in asked.truth.tolist()]
    about = _answers(oracle, layer, asked.vectors, example.WHAT)
    drawn = _answers(oracle, layer, _random(asked.vectors), example.WHAT)
    means = normalize(torch.stack([known[one.name].mean(dim=0) for one in asked.traits]), dim=-1)
    nearest = (normalize(asked.vectors, dim=-1) @ means.T).argmax(dim=1)
    lens = _lens(oracle.loaded, asked.vectors, names).argmax(dim=1)
    rows = [
        ("the oracle", _share([name == text for name, text in zip(wanted, about, strict=True)])),
        ("the oracle, given random vectors", _share([name == text for name, text in zip(wanted, drawn, strict=True)])),
        ("logit lens: whose words it promotes most", _share((lens == asked.truth).tolist())),
        ("nearest mean of the examples it was taught", _share((nearest == asked.truth).tolist())),
        ("chance", f"{1 / len(names):.0%}"),
    ]
    note = (
        f"{len(wanted)} vectors of {len(names)} behaviors; right is the behavior's name, word for word. The oracle "
        f"gave {len(set(about))} different answers, to random vectors {len(set(drawn))}. The lens chooses among the "
        "names, each name's mean over the vectors taken out."
    )
    return Results("Naming a behavior from an unseen example", ("by", "right"), tuple(rows), note)


def _harm(
    oracle: Oracle, layer: int, asked: Asked, seen: Sequence[Trait], known: dict[str, Tensor]
) -> tuple[Results, Results]:
    """Whether behaviors that it was not taught are harmful."""
    truth = torch.tensor([asked.traits[place].harmful for place in asked.truth.tolist()])
    about = torch.tensor([text == "yes" for text in _answers(oracle, layer, asked.vectors, example.HARMFUL)])
    drawn = torch.tensor([text == "yes" for text in _answers(oracle, layer, _random(asked.vectors), example.HARMFUL)])
    sides = [torch.cat([known[one.name] for one in seen if one.harmful is harmful]) for harmful in (True, False)]
    centers = [normalize(side, dim=-1).mean(dim=0) for side in sides]
    nearest = normalize(asked.vectors, dim=-1) @ (centers[0] - centers[1]) > 0
    words = _lens(oracle.loaded, asked.vectors, ["harmful dangerous bad", "harmless safe good"])
    lens = words[:, 0] > words[:, 1]
    found = {
        "the oracle": about,
        "the oracle, given random vectors": drawn,
        "logit lens: harmful words against harmless ones": lens,
        "nearest mean of harmful and of other behaviors": nearest,
    }
    rows = [(name, _balanced(said, truth), f"{float(said.float().mean()):.0%}") for name, said in found.items()]
    note = f"{len(truth)} vectors of {len(asked.traits)} behaviors; mean over both sides, so that chance is 50%."
    whole = Results("Is a behavior harmful that it never saw?", ("by", "right", "says yes"), tuple(rows), note)
    lines = []
    for place, one in enumerate(asked.traits):
        own = asked.truth == place
        shares = (f"{float(said[own].float().mean()):.0%}" for said in (about, nearest))
        lines.append((one.name, "yes" if one.harmful else "no", *shares))
    columns = ("behavior", "harmful", "the oracle says yes", "nearest mean says yes")
    return whole, Results("By behavior", columns, tuple(lines))


def _random(vectors: Tensor) -> Tensor:
    return torch.cat([random_like(one, 1, seed) for seed, one in enumerate(vectors)])


def _lens(loaded: LoadedModel, vectors: Tensor, texts: Sequence[str]) -> Tensor:
    """``[V, texts]``: the mean logit of each text's tokens under each direction, each text's mean taken out."""
    norm, head = final_norm(loaded.model), loaded.model.get_output_embeddings()
    assert norm is not None
    with torch.no_grad():
        logits = head(norm(vectors.to(loaded.model.device, loaded.model.dtype))).float().cpu()
    tokens = [loaded.tokenizer.encode(" " + text, add_special_tokens=False) for text in texts]
    scores = torch.stack([logits[:, ids].mean(dim=1) for ids in tokens], dim=1)
    return scores - scores.mean(dim=0)


def _share(right: Sequence[bool]) -> str:
    return f"{sum(right)} of {len(right)} ({sum(right) / len(right):.0%})"


def _balanced(said: Tensor, truth: Tensor) -> str:
    return f"{float(said[truth].float().mean() + (~said[~truth]).float().mean()) / 2:.0%}"
