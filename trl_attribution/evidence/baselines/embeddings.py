"""Embeddings of the texts in the place of M0's activations: TF-IDF with SVD, or a sentence model; do they do as well?

Axis letters: n texts, D components of an embedding, M behavior prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from trl_attribution.behaviors import Examples
from trl_attribution.errors import ModelError
from trl_attribution.evidence.baselines.baseline import (
    BaselineScores,
    Cost,
    Counted,
    PairSet,
)
from trl_attribution.pairs import Pair, whole_text
from trl_attribution.utils.arrays import Doubles
from trl_attribution.utils.chunks import in_chunks
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.progress import OnProgress, silent
from trl_attribution.utils.text import printable

Kind = Literal["response", "contextual"]

_CHUNK = 512
_BATCH = 32
_COMPONENTS = 256
_MOST_WORDS = 200_000
_MOST_FITTED = 20_000
"""Pairs whose texts TF-IDF and SVD are fitted on."""


class TfIdf:
    """Weights of words and pairs of words, learned on the dataset's own texts, and their truncated SVD."""

    def __init__(self, components: int = _COMPONENTS, seed: int = 0) -> None:
        self.components = components
        self.seed = seed
        self.flops: int | None = None
        self._project: Callable[[Sequence[str]], Doubles] | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """Method, components and seed."""
        return {"embedding": "tf-idf + svd", "components": self.components, "seed": self.seed, "words": _MOST_WORDS}

    def load(self) -> None:
        """Nothing is loaded."""

    def fit(self, texts: Iterable[str]) -> None:
        """Learn words, weights and directions from ``texts``.

        Raises:
            ModelError: there is no word in them.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=_MOST_WORDS)
        try:
            # Sorted: the approximate SVD depends a little on the order of the rows.
            weights = vectorizer.fit_transform(sorted(texts))
        except ValueError as error:
            raise ModelError(f"TF-IDF finds no words in the dataset: {error}. Use another baseline.") from error
        components = min(self.components, weights.shape[1] - 1, weights.shape[0])
        if components < 1:
            self._project = lambda some: np.asarray(vectorizer.transform(some).toarray(), dtype=np.float64)
            return
        svd = TruncatedSVD(components, random_state=self.seed).fit(weights)
        self._project = lambda some: np.asarray(svd.transform(vectorizer.transform(some)), dtype=np.float64)

    def embed(self, texts: Sequence[str]) -> Doubles:
        """Rows [n, D]."""
        assert self._project is not None  # fit comes first
        return self._project(texts)

    def notes(self) -> tuple[str, ...]:
        """How many texts at most it learned from."""
        return (f"words and directions learned on the first {_MOST_FITTED:,} pairs at most",)


class SentenceModel:
    """A transformers encoder: the mean of its last hidden states, as sentence models are trained; in float32.

    Args:
        name: a local folder or a Hub id, already in the cache where the network is off.
        device: a torch device, or ``auto``.
        trust_remote_code: run Python code that comes with the model.
    """

    def __init__(self, name: str, device: str = "auto", trust_remote_code: bool = False) -> None:
        self.model_name = name
        self.device = device
        self.trust_remote_code = trust_remote_code
        self.flops: int | None = 0
        self._cut = Counted("texts were longer than the model reads; their ends do not count")
        self._model: Any = None
        self._tokenizer: Any = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model's name; of a local folder, also its files' sizes and times, which tell whether it is the same."""
        folder = local_path(self.model_name)
        files = [(file.name, file.stat()) for file in sorted(folder.iterdir())] if folder.is_dir() else []
        return {
            "embedding": "mean of last hidden states",
            "model": self.model_name,
            **({"files": [[name, status.st_size, status.st_mtime_ns] for name, status in files]} if files else {}),
        }

    def fit(self, texts: Iterable[str]) -> None:
        """Nothing is learned, so the texts are not read."""

    def load(self) -> None:
        """Load the model.

        Raises:
            ModelError: it cannot be loaded.
        """
        import torch
        from transformers import AutoModel, AutoTokenizer

        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.model_name, **options)
            model = AutoModel.from_pretrained(self.model_name, dtype=torch.float32, **options).eval()
            self._model = model.get_encoder() if model.config.is_encoder_decoder else model
            if self.device != "auto" or torch.cuda.is_available():
                self._model.to("cuda" if self.device == "auto" else self.device)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise ModelError(
                f"sentence model {printable(self.model_name)} cannot be loaded: {printable(error, 300)}. "
                "Give a folder with config.json, weights and tokenizer, or a Hub id that the cache holds; and a torch "
                "device."
            ) from error

    def embed(self, texts: Sequence[str]) -> Doubles:
        """Rows [n, D]."""
        import torch

        # Of similar length together, so that little is padding.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        rows: Doubles = np.zeros((len(texts), int(self._model.config.hidden_size)))
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            with torch.inference_mode():
                rows[places] = self._batch([texts[place] for place in places])
        return rows

    def notes(self) -> tuple[str, ...]:
        """How many texts were cut."""
        return self._cut.notes()

    def _batch(self, texts: list[str]) -> Doubles:
        from trl_attribution.models.loading import longest_input

        limit = longest_input(self._model.config, self._tokenizer)
        batch = self._tokenizer(
            texts,
            padding=True,
            padding_side="right",
            truncation=limit is not None,
            max_length=limit,
            return_tensors="pt",
        )
        mask = batch["attention_mask"]
        for length in mask.sum(dim=1).tolist():
            self._cut.add(limit is not None and length >= limit)
        blocks = sum(parameter.numel() for parameter in self._model.parameters())
        blocks -= sum(parameter.numel() for parameter in self._model.get_input_embeddings().parameters())
        self.flops = (self.flops or 0) + 2 * blocks * mask.numel()
        hidden = self._model(**batch.to(self._model.device)).last_hidden_state.double().cpu()
        weights = mask.unsqueeze(-1).double()
        return np.asarray((hidden * weights).sum(1) / weights.sum(1).clamp(min=1))


Embedder = TfIdf | SentenceModel
"""Made ready on texts of the dataset; texts in, rows out, a zero row where there is nothing to embed."""


@dataclass(frozen=True)
class EmbeddingCosine:
    """Our scores' formulas on embeddings of texts: chosen minus rejected, against undesired minus desired.

    ``response``: the cosine of the pair's difference and the behavior's mean difference. ``contextual``: the mean over
    the behavior's prompts of the cosine with that prompt's difference times the positive part of the prompts' cosine,
    prompts centered by the dataset's mean.
    """

    name: str
    embedder: Embedder
    behavior: Examples
    kind: Kind = "response"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The embedding, the formula, and the behavior file's digest."""
        return {
            "baseline": "embedding cosine",
            "kind": self.kind,
            "behavior": self.behavior.digest,
            **self.embedder.settings,
        }

    def __call__(self, pairs: PairSet, on_progress: OnProgress = silent) -> BaselineScores:
        """Embed every text and compare.

        Raises:
            ModelError: the embedder cannot be made ready.
        """
        self.embedder.load()
        start = time.perf_counter()
        self.embedder.fit(
            whole_text(part)
            for pair in islice(pairs, _MOST_FITTED)
            for part in (pair.prompt, pair.chosen, pair.rejected)
        )
        directions = self._directions()
        centers = self._centers(pairs) if self.kind == "contextual" else None
        scores: dict[str, float] = {}
        for chunk in in_chunks(pairs, _CHUNK):
            values = self._scores(chunk, directions, centers)
            scores.update((pair.pair_id, float(value)) for pair, value in zip(chunk, values, strict=True))
            on_progress(self.name, len(scores), pairs.count)
        cost = Cost(time.perf_counter() - start, self.embedder.flops)
        return BaselineScores(self.name, scores, cost, self.embedder.notes())

    def _directions(self) -> Doubles:
        """[M, D], undesired minus desired of each prompt."""
        sides = [
            np.stack([self.embedder.embed(list(texts)).mean(axis=0) for texts in responses])
            for responses in (
                [one.undesired for one in self.behavior.examples],
                [one.desired for one in self.behavior.examples],
            )
        ]
        return np.asarray(sides[0] - sides[1])

    def _centers(self, pairs: PairSet) -> tuple[Doubles, Doubles]:
        """The dataset's mean prompt [D], and the behavior's prompts without it [M, D], of length 1."""
        total, count = np.zeros(1), 0
        for chunk in in_chunks(pairs, _CHUNK):
            rows = self.embedder.embed([whole_text(pair.prompt) for pair in chunk])
            total, count = total + rows.sum(axis=0), count + len(rows)
        mean = total / max(count, 1)
        prompts = self.embedder.embed([whole_text(one.prompt) for one in self.behavior.examples])
        return mean, unit(prompts - mean)

    def _scores(self, chunk: Sequence[Pair], directions: Doubles, centers: tuple[Doubles, Doubles] | None) -> Doubles:
        sides = [
            self.embedder.embed([whole_text(part) for part in parts])
            for parts in ([pair.chosen for pair in chunk], [pair.rejected for pair in chunk])
        ]
        differences = unit(sides[0] - sides[1])
        if centers is None:
            return np.asarray(differences @ unit(directions.mean(axis=0, keepdims=True))[0])
        mean, prompts = centers
        similar = unit(self.embedder.embed([whole_text(pair.prompt) for pair in chunk]) - mean) @ prompts.T
        return np.asarray((differences @ unit(directions).T * similar.clip(min=0)).mean(axis=1))


def unit(rows: Doubles) -> Doubles:
    """``rows`` [n, D] of length 1; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1.0))
