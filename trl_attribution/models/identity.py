"""What M0 is recognized by, as files hold it; how it is taken from a model stands in ``fingerprint.py``."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from trl_attribution.errors import ModelError


@dataclass(frozen=True)
class ModelFingerprint:
    """Digests of the three things that decide what M0 does with a pair."""

    config: str
    weights: str
    chat_template: str
    quantization: str = field(default="", compare=False)
    """How the weights are quantized, empty where they are not. It explains; the weights themselves decide."""

    @property
    def digest(self) -> str:
        """One hex digest of all three."""
        return digest_of(f"{self.config}:{self.weights}:{self.chat_template}")

    def differences(self, other: ModelFingerprint) -> list[str]:
        """Names of the parts in which two fingerprints differ."""
        mine, theirs = asdict(self), asdict(other)
        decided = [part for part in mine if part != "quantization" and mine[part] != theirs[part]]
        return decided + ["quantization"] * ("weights" in decided and self.quantization != other.quantization)

    def check_digest(self, digest: str, name: str, of: str) -> None:
        """Refuse the model with this fingerprint, called ``name``, where M0 ``of`` something has another digest.

        Raises:
            ModelError: it has.
        """
        if self.digest != digest:
            raise ModelError(
                f"{name} is not the M0 of {of}: fingerprint {self.digest}, not {digest}. Give that one (--model)."
            )

    def to_json(self) -> dict[str, str]:
        """The parts as a JSON object."""
        return {part: value for part, value in asdict(self).items() if part != "quantization" or value}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ModelFingerprint:
        """The inverse of :meth:`to_json`."""
        return cls(value["config"], value["weights"], value["chat_template"], value.get("quantization", ""))


def digest_of(text: str) -> str:
    """32 hex digits of ``text``."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]
