"""An activation oracle: M0 with an adapter that answers questions about a vector put in at a placeholder.

After Karvonen et al., arXiv 2512.15674. What it says is a model's words: it has an answer to any vector. So each answer
stands beside what it says of random vectors of the same length.

Axis letters: N vectors, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from trl_attribution.activations import find_blocks
from trl_attribution.behaviors.judging import OnProgress
from trl_attribution.behaviors.sampling import SamplingConfig, responses_to
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.lenses.config import ANSWERS
from trl_attribution.lenses.injection import injected, oracle_prompt
from trl_attribution.lenses.oracle_config import FILE, OracleConfig, oracle_folder, read_oracle_config
from trl_attribution.models import LoadedModel
from trl_attribution.models.adapter import borrowed
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.models.source import adapter_base
from trl_attribution.utils.text import printable


@dataclass(frozen=True)
class Answers:
    """What an oracle answers to one question, RAW."""

    question: str
    answers: tuple[str, ...]
    """About the vector that was asked about."""
    random: tuple[str, ...]
    """About as many random vectors of the same length."""
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """About other vectors, by name."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Oracle:
    """An adapter of M0, and how it is asked. M0 has it only while it is asked."""

    loaded: LoadedModel
    folder: Path
    config: OracleConfig
    blocks_path: str | None = None

    @classmethod
    def load(
        cls,
        adapter: str | Path,
        loaded: LoadedModel,
        preset: str | None = None,
        blocks_path: str | None = None,
    ) -> Self:
        """The oracle in a folder (or a Hub id) on ``loaded``, once it is sure that it fits.

        Args:
            adapter: PEFT's folder of a LoRA adapter, with ``oracle.json`` in it.
            loaded: the model that it is an adapter of.
            preset: how it is asked, where its folder does not say: a name of ``PRESETS``.
            blocks_path: where the decoder blocks live, if they are not found by structure.

        Raises:
            ModelError: it is not there or broken, is one of another model, or its placeholder is not one token here.
            SettingsError: there is no such preset.
        """
        folder = oracle_folder(adapter)
        oracle = cls(loaded, folder, read_oracle_config(folder, preset), blocks_path)
        oracle._check_model()
        find_blocks(loaded.model, blocks_path).check_layers((oracle.config.layer,))
        oracle_prompt(oracle.config, loaded, "", 0)
        try:
            with borrowed(loaded.model, folder):
                pass
        except ModelError:
            raise
        except Exception as error:  # whatever PEFT makes of another model's weights
            raise ModelError(
                f"the oracle {printable(folder)} does not fit {loaded.name}: {printable(error, 200)}. {oracle._trained}"
            ) from error
        return oracle

    @property
    def _trained(self) -> str:
        base = adapter_base(self.folder)
        return "Give the model that it was trained on." if base is None else f"It was trained on {printable(base)}."

    def _check_model(self) -> None:
        if self.config.model is None:
            return
        try:
            known = ModelFingerprint.from_json(self.config.model)
        except KeyError as error:
            raise ModelError(f"{printable(self.folder / FILE)} is broken: its model has no {error}") from None
        differing = known.differences(self.loaded.fingerprint)
        if differing:
            raise ModelError(
                f"the oracle {printable(self.folder)} is one of another model than {self.loaded.name}: "
                f"{', '.join(differing)} differ. {self._trained}"
            )

    def ask(
        self,
        vector: Tensor,
        questions: Sequence[str],
        layer: int,
        sampling: SamplingConfig = ANSWERS,
        others: Mapping[str, Tensor] | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[Answers]:
        """Answers to each of ``questions`` about ``vector`` ``[D]``, which is of ``layer``, beside their controls.

        Args:
            vector: any direction of M0's residual stream; of another length where that is matched, it is the same.
            questions: in plain words.
            layer: 0 = embeddings, l = after decoder block l; the prompt may say it.
            sampling: how many answers, how long, and the seed, of random vectors too.
            others: vectors to be asked about too, by name: another probe says whether the answer is about this one.
            on_progress: is told how many questions are answered.

        Raises:
            SettingsError: no question, an empty one, or a vector or layer that the oracle is not for.
        """
        beside = dict(others or {})
        self._check(questions, layer, {"the vector": vector, **beside})
        count = sampling.n
        rows = [vector] * count + list(random_like(vector, count, sampling.seed))
        rows += [one for one in beside.values() for _ in range(count)]
        found = []
        for done, question in enumerate(questions, 1):
            texts = self.say(torch.stack([row.float().cpu() for row in rows]), question, layer, sampling)
            groups = [tuple(texts[start : start + count]) for start in range(0, len(texts), count)]
            found.append(Answers(question, groups[0], groups[1], dict(zip(beside, groups[2:], strict=True))))
            if on_progress is not None:
                on_progress(done, len(questions))
        return found

    def say(self, vectors: Tensor, question: str, layer: int, sampling: SamplingConfig = ANSWERS) -> list[str]:
        """One answer to ``question`` about each of ``vectors`` ``[N, D]``, RAW, all sampled as one batch."""
        prompt = oracle_prompt(self.config, self.loaded, question, layer)
        one_each = replace(sampling, n=1, batch_size=len(vectors))
        model = self.loaded.model
        with borrowed(model, self.folder), injected(model, vectors, prompt, self.config, self.blocks_path):
            return [text for (text,) in responses_to(self.loaded, [prompt.ids] * len(vectors), one_each)]

    def _check(self, questions: Sequence[str], layer: int, vectors: Mapping[str, Tensor]) -> None:
        if not questions or not all(question.strip() for question in questions):
            raise SettingsError("oracle: ask at least one question, and no empty one")
        self.config.check_layer(layer)
        width = int(self.loaded.model.config.get_text_config().hidden_size)
        for name, vector in vectors.items():
            if vector.shape != (width,) or not torch.isfinite(vector).all() or not vector.any():
                raise SettingsError(
                    f"oracle: {printable(name, 60)} has shape {list(vector.shape)}; it must be [{width}], finite, and "
                    "not zero"
                )


def random_like(vector: Tensor, count: int, seed: int = 0) -> Tensor:
    """``count`` random vectors ``[count, D]`` of the length of ``vector`` ``[D]``."""
    drawn = torch.randn(count, len(vector), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1) * float(vector.float().norm())
