"""The trainers of TRL that the callback audits: what each one's examples are, and where M0 is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trl_attribution.callbacks import sft
from trl_attribution.callbacks.reference_pass import (
    ReferenceModel,
    dpo_reference,
    kto_reference,
    policy_reference,
    rollout_reference,
)
from trl_attribution.callbacks.vision import trains_on_images
from trl_attribution.errors import SettingsError
from trl_attribution.models.fingerprint import unwrapped
from trl_attribution.models.sharding import FSDP1
from trl_attribution.models.text_part import refuse_encoder_decoder
from trl_attribution.utils.compat import is_before, version_of
from trl_attribution.utils.kinds import Kind


def _nothing(_trainer: Any) -> None:
    return None


@dataclass(frozen=True)
class TrainerKind:
    """What the callback has to know of one of TRL's trainers."""

    name: str
    """The trainer's class; subclasses count."""
    examples: Kind
    """What it trains on."""
    reference: Callable[[Any], ReferenceModel]
    """M0 in such a trainer: the forward passes that show it, or that it needs a pass of its own."""
    texts_gone: Callable[[Any], str | None] = _nothing
    """Why its ``train_dataset`` is no longer the user's rows, so that the callback has to be given them."""
    refusal: Callable[[Any], str | None] = _nothing
    """Why this one cannot be audited."""
    note: Callable[[Any], str | None] = _nothing
    """What a person should know of what it learns."""
    since: str = "0"
    """The first version of TRL whose trainer of that name is known."""
    reads_precompute: bool = False
    """The pass that it makes over its dataset before training shows M0, and can be read."""
    can_skip: bool = False
    """Flagged examples can be left out of its loss: examples can be weighed there."""
    takes_images: bool = False
    """Its pairs may have images."""
    writes: bool = True
    """Its model writes responses, which can be compared before and after."""

    @property
    def reading_format(self) -> str:
        """How its rows are read (:attr:`Reading.format`)."""
        return "trl" if self.examples == "pair" else self.examples


def _pairs_without_reference(name: str, *, writes: bool = True) -> TrainerKind:
    return TrainerKind(
        name, "pair", _without_reference(name), lambda _trainer: f"{name} changes its texts", writes=writes
    )


def _without_reference(name: str) -> Callable[[Any], ReferenceModel]:
    return lambda trainer: policy_reference(trainer.model, f"{name} runs no reference forward")


def _of_rollouts(name: str, since: str = "0") -> TrainerKind:
    return TrainerKind(name, "rollouts", lambda trainer: rollout_reference(trainer, name), since=since)


KINDS = (
    TrainerKind("DPOTrainer", "pair", dpo_reference, reads_precompute=True, can_skip=True, takes_images=True),
    TrainerKind("KTOTrainer", "kto", kto_reference, since="1.8"),
    TrainerKind("SFTTrainer", "sft", _without_reference("SFTTrainer"), sft.texts_gone, sft.refusal, note=sft.loss_note),
    _pairs_without_reference("RewardTrainer", writes=False),
    _pairs_without_reference("CPOTrainer"),
    _pairs_without_reference("ORPOTrainer"),
    _of_rollouts("GRPOTrainer"),
    _of_rollouts("RLOOTrainer"),
    _of_rollouts("OnlineDPOTrainer", since="1.16"),
)
SUPPORTED = tuple(kind.name for kind in KINDS)
_BY_CLASS = {name: kind for kind in KINDS for name in (kind.name, kind.name.replace("Trainer", "Config"))}
_NO_IMAGES = (
    "the dataset holds images, which are audited in a DPOTrainer only, not in a {}. Leave the callback out, and audit "
    "the examples without images by themselves: trl-attribution audit MODEL DATASET"
)
_UNSUPPORTED = (
    f"is not supported: AttributionCallback audits {', '.join(SUPPORTED)} of TRL. For a training loop of your own use "
    "AttributionTracker; any dataset can be audited with trl-attribution audit."
)


def kind_of(trainer: Any) -> TrainerKind:
    """Which of the supported trainers ``trainer`` is, subclasses included.

    Raises:
        SettingsError: none of them, one that trains on images and is no ``DPOTrainer``, or one under FSDP1.
        ModelError: its model is an encoder-decoder model.
    """
    kind = _BY_CLASS.get(_of_trl(trainer))
    if kind is None:
        raise SettingsError(f"{type(trainer).__name__} {_UNSUPPORTED}")
    if trains_on_images(trainer) and not kind.takes_images:
        raise SettingsError(_NO_IMAGES.format(kind.name))
    if is_before("trl", kind.since):
        raise SettingsError(
            f"{kind.name} is audited from TRL {kind.since} on; {version_of('trl')} is installed. Upgrade it, or audit "
            "the dataset by itself: trl-attribution audit"
        )
    fsdp = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version == 1:
        raise SettingsError(FSDP1)
    refuse_encoder_decoder(unwrapped(trainer.model).config)
    if (reason := kind.refusal(trainer)) is not None:
        raise SettingsError(f"this {kind.name} cannot be audited: {reason}")
    return kind


def kind_of_arguments(args: Any) -> TrainerKind:
    """The trainer that ``args`` are of, for a callback that does not see the trainer itself.

    Raises:
        SettingsError: it is not supported.
    """
    kind = _BY_CLASS.get(_of_trl(args))
    if kind is None:
        raise SettingsError(f"the trainer of {type(args).__name__} {_UNSUPPORTED}")
    return kind


def _of_trl(value: Any) -> str:
    """The class of TRL that ``value`` is of, or the first that its own class comes from: of those, some mean others."""
    classes = (base.__name__ for base in type(value).__mro__ if base.__module__.partition(".")[0] == "trl")
    return next(classes, "")
