"""What a probe is: a behavior's direction at some layers, bound to the one model it was taken on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trl_attribution.behaviors.describing import check_description
from trl_attribution.behaviors.names import check_name
from trl_attribution.errors import ProbeError
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from torch import Tensor

    from trl_attribution.models.identity import ModelFingerprint

_DIRECTIONS = ("vector", "prompt_vectors", "contexts")
_KNOWN = ("example_vectors", "control_contexts", "control_vectors")
_PLACES = ("example_prompts", "control_prompts")
_CENTERS = ("neutral_center", "reference_center")


@dataclass(frozen=True, eq=False)
class Probe:
    """A behavior's direction, and its prompts' own directions and contexts where they are known.

    The sign is fixed: a pair whose vector has a positive cosine with ``vector`` pushes **towards** the
    undesired behavior. A layer ``l`` is the residual stream after decoder block ``l``, 0 the embeddings.

    Raises:
        ProbeError: a name that cannot be a folder's, shapes that contradict one another, a direction with
            NaN, infinity or zero norm. The message names the layer or the prompt.
    """

    name: str
    layers: tuple[int, ...]
    """Layers of the L axis, ascending."""
    vector: Tensor
    """``[L, D]`` float32: the behavior vector."""
    layer: int
    """The layer that flags are taken at."""
    model: ModelFingerprint
    """The M0 that the activations are of."""
    prompt_vectors: Tensor | None = None
    """``[M, L, D]`` float32: the direction of each prompt alone."""
    contexts: Tensor | None = None
    """``[M, L, D]`` float32: residual stream at each prompt's last token, not centred."""
    example_vectors: Tensor | None = None
    """``[E, L, D]`` float32: pair vectors of the behavior's own responses, undesired minus desired."""
    example_prompts: Tensor | None = None
    """``[E]`` int64: which of the M prompts each of them is of."""
    control_contexts: Tensor | None = None
    """``[C, L, D]`` float32: contexts of prompts like the behavior's on which the same answers are right."""
    control_vectors: Tensor | None = None
    """``[Q, L, D]`` float32: pair vectors of such answers against others, where controls came with responses."""
    control_prompts: Tensor | None = None
    """``[Q]`` int64: which of the C controls each of them is of."""
    built: dict[str, Any] = field(default_factory=dict)
    """How it was built: method, counts, digests, settings; plain JSON values."""
    separability: dict[int, float] = field(default_factory=dict)
    """Layer -> cross-validated AUC on the probe's own examples; empty when unknown."""
    promoted_tokens: list[str] = field(default_factory=list)
    """Tokens that ``vector`` promotes through the LM head at ``layer``, raw; empty when unknown."""
    reference_scores: Tensor | None = None
    """``[L, R]`` float32: scores of clean reference pairs; ``built["calibration"]`` says of what kind."""
    neutral_center: Tensor | None = None
    """``[L, D]`` float32: the mean context of everyday prompts; helps out where a dataset has few of its own."""
    reference_center: Tensor | None = None
    """``[L, D]`` float32: the mean of these pairs' contexts. All that is scored with this probe is centred by it, since
    scores that are centred otherwise cannot be compared with them. None for response scores."""
    description: str | None = None
    """What the model does, as a system prompt would say it: for the likelihood score, on which nothing else depends."""

    def __post_init__(self) -> None:
        import torch

        check_name(self.name)
        if self.description is not None:
            where = f"probe {self.name!r}: description"
            object.__setattr__(self, "description", check_description(self.description, where))
        _check_layers(self.name, self.layers, self.layer)
        for name in (*_DIRECTIONS, *_KNOWN, *_PLACES, "reference_scores", *_CENTERS):
            tensor = getattr(self, name)
            if tensor is not None:
                dtype = torch.int64 if name in _PLACES else torch.float32
                object.__setattr__(self, name, tensor.detach().to("cpu", dtype, copy=True).contiguous())
        _check_vector(self)
        _check_per_prompt(self)
        _check_known(self)
        _check_reference(self)
        _check_separability(self)

    def __repr__(self) -> str:
        known = self.separability.get(self.layer)
        told = f"layer {self.layer}" + ("" if known is None else f", AUC {known:.3f}")
        how = printable(self.built.get("method", "given"), 40)  # a file may be somebody else's
        return f"Probe({self.name!r}: {how}, {told}, M0 {self.model.digest[:12]})"

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return self.vector.shape[1]

    @property
    def knows_prompts(self) -> bool:
        """Whether contextual scores can be made: the prompts' directions and contexts are there."""
        return self.prompt_vectors is not None and self.contexts is not None

    @property
    def knows_controls(self) -> bool:
        """Whether controlled scores can be made."""
        return self.knows_prompts and self.control_contexts is not None

    @property
    def norms(self) -> dict[int, float]:
        """Layer -> length of the behavior vector there."""
        import torch

        return dict(zip(self.layers, torch.linalg.vector_norm(self.vector, dim=1).tolist(), strict=True))

    @property
    def shown_tokens(self) -> list[str]:
        """The promoted tokens with control and format characters escaped: token text is not to be trusted."""
        return [printable(token, limit=40) for token in self.promoted_tokens]

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that scores and thresholds depend on: model, layers, layer, tensors, a center of its own.

        The name, the description, reference scores and how it was built stay out: renaming a probe does not make it
        another one.
        """
        digest = hashlib.sha256()
        head = {"layers": self.layers, "layer": self.layer, "model": self.model.to_json(), "sign": "towards"}
        digest.update(json.dumps(head, sort_keys=True).encode())
        # A probe that knows no pairs or controls has the digest that it had before there were any.
        there = [name for name in (*_KNOWN, *_PLACES) if getattr(self, name) is not None]
        for name in (*_DIRECTIONS, *there):
            tensor = getattr(self, name)
            shape = None if tensor is None else tuple(tensor.shape)
            digest.update(f"{name} {shape}".encode())
            digest.update(b"" if tensor is None else tensor.numpy().tobytes())
        for name in _CENTERS:
            center = getattr(self, name)
            if center is not None:
                digest.update(name.encode() + center.numpy().tobytes())
        return digest.hexdigest()

    def at(self, layer: int | None = None) -> Tensor:
        """The behavior vector ``[D]`` at ``layer`` (the probe's own layer when not given).

        Raises:
            ProbeError: the probe has no such layer.
        """
        return self.vector[self.row_of(self.layer if layer is None else layer)]

    def row_of(self, layer: int) -> int:
        """Where ``layer`` lies on the L axis of this probe's tensors.

        Raises:
            ProbeError: the probe has no such layer.
        """
        if layer not in self.layers:
            raise ProbeError(
                f"probe {self.name!r} has no layer {layer}; it has {_listed(self.layers)}. "
                "Choose one of them or build the probe again with that layer."
            )
        return self.layers.index(layer)

    def check_model(self, fingerprint: ModelFingerprint) -> None:
        """Make sure that this probe was built on the model with ``fingerprint``.

        Raises:
            ProbeError: it was not; both fingerprints are printed, and the parts that differ.
        """
        differing = self.model.differences(fingerprint)
        if not differing:
            return
        mine, theirs = self.model.to_json(), fingerprint.to_json()
        lines = [f"  {part}: probe {mine.get(part, 'none')}, model {theirs.get(part, 'none')}" for part in differing]
        way = " (--quantization)" if "quantization" in differing else ""
        raise ProbeError(
            f"probe {self.name!r} was built on another model: {' and '.join(map(_spoken, differing))} differ.\n"
            f"  fingerprint: probe {self.model.digest}, model {fingerprint.digest}\n"
            + "\n".join(lines)
            + f"\nUse the model it was built on, or build the probe again on this one{way}."
        )


@dataclass(frozen=True)
class CosineTable:
    """Cosines between probes at one layer; ``values[i][j]`` belongs to ``names[i]`` and ``names[j]``."""

    layer: int
    names: list[str]
    values: list[list[float]]


def cosine_table(probes: Sequence[Probe], layer: int | None = None) -> CosineTable:
    """Cosines between all ``probes`` at ``layer`` (the first probe's own layer when not given).

    Raises:
        ProbeError: no probes, a probe without that layer, or probes of different models.
    """
    import torch

    if not probes:
        raise ProbeError("a cosine table needs at least one probe; build or import one first")
    chosen = probes[0].layer if layer is None else layer
    for probe in probes:
        probe.check_model(probes[0].model)
    directions = torch.stack([torch.nn.functional.normalize(probe.at(chosen).double(), dim=0) for probe in probes])
    cosines = (directions @ directions.T).clamp(-1, 1)
    return CosineTable(layer=chosen, names=[probe.name for probe in probes], values=cosines.tolist())


def _spoken(part: str) -> str:
    return part.replace("_", " ")


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _check_layers(name: str, layers: tuple[int, ...], layer: int) -> None:
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise ProbeError(f"probe {name!r}: layers must be ascending, different and not negative, not {layers}")
    if layer not in layers:
        raise ProbeError(f"probe {name!r}: its layer {layer} is not among its layers {_listed(layers)}")


def _check_vector(probe: Probe) -> None:
    import torch

    vector = probe.vector
    if vector.dim() != 2 or vector.shape[0] != len(probe.layers) or vector.shape[1] == 0:
        raise ProbeError(
            f"probe {probe.name!r}: vector has shape {tuple(vector.shape)}, "
            f"expected [{len(probe.layers)}, D] for layers {_listed(probe.layers)}"
        )
    for layer, row in zip(probe.layers, vector, strict=True):
        if not torch.isfinite(row).all():
            raise ProbeError(
                f"probe {probe.name!r}: the vector at layer {layer} has NaN or infinite values. "
                "Build it in float32, or from other examples."
            )
        if not row.any():
            raise ProbeError(
                f"probe {probe.name!r}: the vector at layer {layer} has zero norm, so it points nowhere. "
                "Its two sides must differ at that layer: check the examples or leave that layer out."
            )


def _check_per_prompt(probe: Probe) -> None:
    import torch

    given = {name: getattr(probe, name) for name in ("prompt_vectors", "contexts")}
    there = {name: tensor for name, tensor in given.items() if tensor is not None}
    for name, tensor in there.items():
        if tensor.dim() != 3 or tensor.shape[0] == 0 or tensor.shape[1:] != probe.vector.shape:
            raise ProbeError(
                f"probe {probe.name!r}: {name} has shape {tuple(tensor.shape)}, "
                f"expected [M, {probe.vector.shape[0]}, {probe.vector.shape[1]}]"
            )
        broken = (~torch.isfinite(tensor).all(dim=(1, 2)) if tensor.numel() else torch.zeros(0)).nonzero()
        if len(broken):
            raise ProbeError(f"probe {probe.name!r}: {name} of prompt {int(broken[0])} has NaN or infinite values")
    if len(there) == 2 and given["prompt_vectors"].shape[0] != given["contexts"].shape[0]:
        raise ProbeError(
            f"probe {probe.name!r}: {given['prompt_vectors'].shape[0]} prompt vectors "
            f"but {given['contexts'].shape[0]} contexts; there must be one of each for a prompt"
        )


def _check_known(probe: Probe) -> None:
    import torch

    for name in _KNOWN:
        tensor = getattr(probe, name)
        if tensor is None:
            continue
        if tensor.dim() != 3 or tensor.shape[0] == 0 or tensor.shape[1:] != probe.vector.shape:
            raise ProbeError(
                f"probe {probe.name!r}: {name} has shape {tuple(tensor.shape)}, "
                f"expected [any, {probe.vector.shape[0]}, {probe.vector.shape[1]}]"
            )
        if not torch.isfinite(tensor).all():
            raise ProbeError(f"probe {probe.name!r}: {name} has NaN or infinite values; build it in float32")
    if probe.control_contexts is not None and not probe.knows_prompts:
        raise ProbeError(
            f"probe {probe.name!r} has controls, but does not know its prompts: they have nothing to control"
        )
    _check_places(probe, "example_vectors", "example_prompts", probe.prompt_vectors)
    _check_places(probe, "control_vectors", "control_prompts", probe.control_contexts)


def _check_places(probe: Probe, vectors: str, places: str, prompts: Tensor | None) -> None:
    pairs, numbers = getattr(probe, vectors), getattr(probe, places)
    if pairs is None and numbers is None:
        return
    fits = pairs is not None and numbers is not None and numbers.shape == pairs.shape[:1]
    if not fits or int(numbers.min()) < 0 or (prompts is not None and int(numbers.max()) >= len(prompts)):
        there = "the" if prompts is None else len(prompts)
        raise ProbeError(f"probe {probe.name!r}: {places} must name one of {there} prompts for each of {vectors}")


def _check_reference(probe: Probe) -> None:
    import torch

    for name in _CENTERS:
        center = getattr(probe, name)
        if center is not None and (center.shape != probe.vector.shape or not torch.isfinite(center).all()):
            again = "calibrate" if name == "reference_center" else "build"
            raise ProbeError(
                f"probe {probe.name!r}: {name} must be {tuple(probe.vector.shape)} finite numbers; {again} it again"
            )
    scores = probe.reference_scores
    if scores is None:
        return
    if scores.dim() != 2 or scores.shape[0] != len(probe.layers):
        raise ProbeError(
            f"probe {probe.name!r}: reference_scores has shape {tuple(scores.shape)}, expected [{len(probe.layers)}, R]"
        )
    if not torch.isfinite(scores).all():
        raise ProbeError(f"probe {probe.name!r}: reference_scores has NaN or infinite values; calibrate it again")


def _check_separability(probe: Probe) -> None:
    for layer, auc in probe.separability.items():
        if layer not in probe.layers or not 0.0 <= auc <= 1.0:
            raise ProbeError(
                f"probe {probe.name!r}: separability {auc!r} at layer {layer} is not an AUC of one of its layers"
            )
