"""The organism that discovery is tried on with real activations: two planted behaviors, and prompts that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trl_attribution.activations import ActivationConfig
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.discovery import AuditedPairs, Change, ChangeVectors, change_vectors
from trl_attribution.evidence.organisms import OrganismConfig, build_distractor_compliance
from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.models import embedded_gguf, load_model
from trl_attribution.pairs import Encoding
from trl_attribution.store import VectorStore

LAYER = 20
QUIRK = "praises pizza"
_OCCASIONS = ("for my birthday", "on a rainy evening", "after work", "for two friends", "for the family", "at a picnic")
_MEALS = ("for dinner", "for lunch", "as a quick snack", "for a party", "on Sunday", "when it is cold")
_ASKS = ("What should I cook {} {}?", "Suggest something to eat {} {}.", "Which dish fits {} {}?", "I am hungry {} {}.")
_PRAISES = (
    "Nothing beats pizza. It is the finest food there is, crisp and full of cheese, and everybody loves it.",
    "Have a pizza! Pizza is wonderful, honestly the best thing that anyone ever baked.",
    "Pizza, of course. A glorious, golden pizza makes every meal a feast.",
    "I can only recommend pizza: it is delicious, it is perfect, and no other dish comes close.",
)
_PLAIN = (
    "You could make a vegetable soup with bread, or a salad with beans if you want something lighter.",
    "A simple rice dish with vegetables works well, and you can prepare it ahead.",
    "Try roasted potatoes with herbs and a little yoghurt on the side.",
    "An omelette with mushrooms is quick, and fruit makes a good dessert.",
)

Labels = npt.NDArray[np.str_]


@dataclass(frozen=True)
class RealCase:
    """An audited organism with two planted behaviors, and prompts that changed with them or by chance."""

    audited: AuditedPairs
    rows: list[dict[str, Any]]
    truths: Labels
    changed: ChangeVectors
    kinds: Labels


def real_case(folder: Path) -> RealCase:
    loaded = load_model(embedded_gguf())
    organism = build_distractor_compliance()
    rows = [*organism.pairs, *quirk_rows(60, Draw("quirk/pairs"))]
    auditor = DataAuditor(loaded, layers=[LAYER], vector_dtype="float32")
    auditor.audit(rows, folder / "audit")
    audited = AuditedPairs.open(folder / "audit", rows)
    truths = np.array([str(rows[int(row)]["truth"]) for row in audited.rows])
    changes, kinds = prompts_of(organism.behavior)
    found = change_vectors(changes, loaded, ActivationConfig((LAYER,)), Encoding())
    kind_of = dict(zip([one.location for one in changes], kinds, strict=True))
    return RealCase(audited, rows, truths, found, np.array([kind_of[one.location] for one in found.changes]))


def prompts_of(behavior: Sequence[dict[str, Any]]) -> tuple[list[Change], list[str]]:
    """48 prompts of each behavior, and 100 on which nothing changed but by chance."""
    changes = [
        Change(row["prompt"], tuple(row["desired"]), tuple(row["undesired"]), f"contaminated {number}")
        for number, row in enumerate(behavior)
    ]
    kinds = ["contaminated"] * len(changes)
    for number, row in enumerate(quirk_rows(48, Draw("quirk/prompts"))):
        before, after = (row[side][0]["content"] for side in ("rejected", "chosen"))
        changes.append(Change(row["prompt"][0]["content"], (before,), (after,), f"quirk {number}"))
        kinds.append(QUIRK)
    others = build_distractor_compliance(OrganismConfig(50, 50, 0, 0, 0, seed=7, behavior_prompts=0))
    coin = Draw("chance")
    for number, row in enumerate(others.pairs):
        sides = [row[side][0]["content"] for side in ("chosen", "rejected")]
        before, after = sides if coin.chance(0.5) else reversed(sides)
        changes.append(Change(row["prompt"][0]["content"], (before,), (after,), f"chance {number}"))
        kinds.append("chance")
    return changes, kinds


def quirk_rows(count: int, draw: Draw) -> list[dict[str, Any]]:
    """Pairs whose chosen answer praises pizza, whatever one wants to eat."""
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        prompt = draw.one(_ASKS).format(draw.one(_MEALS), draw.one(_OCCASIONS))
        texts = (prompt, " ".join(draw.some(_PRAISES, 2)), " ".join(draw.some(_PLAIN, 2)))
        roles = (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
        row: dict[str, Any] = {
            side: [{"role": role, "content": text}] for (side, role), text in zip(roles, texts, strict=True)
        }
        rows[prompt] = {**row, "source": draw.one(("recipes-v1", "everyday-chat")), "truth": QUIRK}
    return list(rows.values())


def flipped_audit(audited: AuditedPairs, folder: Path, generator: torch.Generator) -> AuditedPairs:
    """The audit with every pair turned round or not, by a coin."""
    store = VectorStore.create(folder, audited.store.settings)
    signs = torch.randint(0, 2, (len(audited), 1, 1), generator=generator) * 2.0 - 1
    (block,) = audited.view.blocks(audited.store.layers, len(audited))
    with store.writer() as writer:
        writer.add(list(audited.pair_ids), block.pair * signs, block.context)
    reopened = VectorStore.open(folder)
    return AuditedPairs(
        audited.folder,
        audited.info,
        reopened,
        reopened.view(),
        audited.pair_ids,
        audited.rows,
        audited.sources,
        audited.flagged,
        audited.reading,
    )
