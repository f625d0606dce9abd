"""A judge that is a text-classification model: batched, on this machine, offline unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.behaviors.judging import OnProgress, Prompt
from trl_attribution.errors import JudgeError, ModelError, ProbeError, SettingsError
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from torch import Tensor

_LOADING_FAULTS = (OSError, ValueError, KeyError, ImportError, RuntimeError)


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is loaded and run."""

    allow_download: bool = field(default=False, metadata={"option": "judge_download"})
    """Fetch the classifier of a ``model:NAME`` judge from the Hub where it is not in the cache."""
    device: str = "cpu"
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SettingsError(f"judge: batch_size must be at least 1, not {self.batch_size}")


class ModelJudge:
    """Whether a transformers text-classification model gives a response its ``label``.

    The model sees the response alone, its first tokens where it is longer than the model takes. The label is the one
    with the highest logit; of a multi-label model, any whose probability is above one half. Of two labels the second
    is meant if none is named. Weights are loaded with the first response that is judged.

    Raises:
        ProbeError: there is no such model here, it is no classifier, or it has no such label.
    """

    def __init__(self, name: str, label: str = "", config: ClassifierConfig | None = None) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.name = name
        self.config = config or ClassifierConfig()
        self.rule = f"model:{name}:{label}" if label else f"model:{name}"
        self._model: Any = None
        try:
            self._description: Any = AutoConfig.from_pretrained(name, **self._source)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name, **self._source)
        except _LOADING_FAULTS as error:
            raise ProbeError(self._not_loaded(error)) from error
        kinds = self._description.architectures or []
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            raise ProbeError(
                f"judge {printable(name)}: not a text-classification model but {printable(kinds)}; "
                "name one that was trained to classify"
            )
        self._multi_label = self._description.problem_type == "multi_label_classification"
        self._label = self._index(label)

    @classmethod
    def from_rule(cls, rule: str, config: ClassifierConfig | None = None) -> ModelJudge:
        """The judge that ``model:NAME_OR_FOLDER[:LABEL]`` names; a folder may have colons in its name."""
        rest = rule.partition(":")[2]
        name, _, label = rest.rpartition(":")
        return cls(rest, "", config) if not name or Path(rest).is_dir() else cls(name, label, config)

    def __call__(self, prompt: Prompt, response: str) -> bool:
        """Whether ``response`` has the label."""
        return self.judge_all([(prompt, response)])[0]

    def judge_all(self, pairs: Sequence[tuple[Prompt, str]], on_progress: OnProgress | None = None) -> list[bool]:
        """The verdict on each (prompt, response), in order.

        Raises:
            JudgeError: the weights cannot be loaded, or the model cannot run.
        """
        # Neighbors of one length waste the least on padding.
        order = sorted(range(len(pairs)), key=lambda place: len(pairs[place][1]))
        size = 1 if self._tokenizer.pad_token_id is None else self.config.batch_size
        verdicts: list[bool | None] = [None] * len(pairs)
        try:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                found = self._verdicts([pairs[place][1] for place in batch])
                for place, verdict in zip(batch, found, strict=True):
                    verdicts[place] = verdict
                if on_progress is not None:
                    on_progress(start + len(batch), len(order))
        except (*_LOADING_FAULTS, ModelError) as error:
            raise JudgeError(self._not_loaded(error), tuple(verdicts)) from error
        return [bool(verdict) for verdict in verdicts]

    def _verdicts(self, texts: Sequence[str]) -> list[bool]:
        import torch

        from trl_attribution.models.loading import longest_input

        if self._model is None:
            self._model = self._loaded()
        longest = longest_input(self._description, self._tokenizer)
        encoded = self._tokenizer(
            list(texts),
            truncation=longest is not None,
            max_length=longest,
            padding=len(texts) > 1,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits_RC: Tensor = self._model(**encoded.to(self._model.device)).logits
        shown = logits_RC[:, self._label] > 0 if self._multi_label else logits_RC.argmax(dim=1) == self._label
        return [bool(one) for one in shown]

    def _loaded(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        from trl_attribution.models.checkpoint import whole_checkpoint

        kind: Any = AutoModelForSequenceClassification
        model: Any = whole_checkpoint(kind, self.name, use_safetensors=True, **self._source)
        return model.to(self.config.device).eval()

    @property
    def _source(self) -> dict[str, Any]:
        return {"local_files_only": not self.config.allow_download, "trust_remote_code": False}

    def _index(self, label: str) -> int:
        labels = {str(name): int(place) for place, name in self._description.id2label.items()}
        if label in labels:
            return labels[label]
        if not label and len(labels) == 2:
            return 1
        listed = ", ".join(printable(name, 40) for name in labels)
        wrong = f"has no label {printable(label, 40)!r}" if label else "needs the label that means the behavior"
        raise ProbeError(f"judge {printable(self.name)}: {wrong}; say model:NAME:LABEL with one of {listed}")

    def _not_loaded(self, error: Exception) -> str:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return (
            f"judge {printable(self.name)}: the classifier cannot be loaded or run "
            f"({printable(lines[0] if lines else type(error).__name__)}). Give a local folder with config.json, "
            "safetensors and tokenizer files, or allow the download of a Hub model (--judge-download)."
        )
