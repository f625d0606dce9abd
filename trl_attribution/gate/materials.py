"""What a policy names, loaded: probes and baseline, known to fit one another."""

from __future__ import annotations

from dataclasses import dataclass

from trl_attribution.errors import SettingsError, describe_difference
from trl_attribution.gate.baseline.baseline import GateBaseline
from trl_attribution.gate.policy.file import PolicyFile
from trl_attribution.gate.policy.probes import PolicyProbes, choose_layers, load_policy_probes


@dataclass(frozen=True)
class Materials:
    """Probes and baseline of a policy, and the kind of vectors that they take."""

    file: PolicyFile
    probes: PolicyProbes
    baseline: GateBaseline | None
    layers: tuple[int, ...]

    @property
    def model_fingerprint(self) -> str:
        """Of the M0 that all vectors have to be of."""
        if self.probes.ruled:
            return self.probes.ruled[0].probe.model.digest
        return self.baseline.origin.model_fingerprint if self.baseline is not None else ""

    @property
    def hidden_size(self) -> int:
        """D of all vectors."""
        if self.probes.ruled:
            return self.probes.ruled[0].probe.hidden_size
        return self.baseline.hidden_size if self.baseline is not None else 0


def load_materials(file: PolicyFile, download: bool, with_baseline: bool = True) -> Materials:
    """Load what the policy names; nothing where no rule is about vectors.

    Raises:
        SettingsError: the baseline was recorded with another M0 or another truncation.
        ProbeError, StoreError: a probe or the baseline is missing or broken.
    """
    policy = file.policy
    probes = load_policy_probes(file, download)
    baseline = None
    if with_baseline and policy.baseline is not None and policy.rules.need_vectors:
        baseline = GateBaseline.load(file.path(policy.baseline))
    layers = choose_layers(policy.layers, probes.ruled)
    if not layers and baseline is not None:
        layers = baseline.layers
    found = Materials(file, probes, baseline, layers)
    if baseline is not None:
        _check_baseline(found, baseline)
    return found


def _check_baseline(materials: Materials, baseline: GateBaseline) -> None:
    encoding, origin = materials.file.policy.encoding, baseline.origin
    recorded: dict[str, object] = {
        "model_fingerprint": origin.model_fingerprint,
        "max_length": origin.max_length,
        "truncation_mode": origin.truncation_mode,
    }
    asked: dict[str, object] = {
        "model_fingerprint": materials.model_fingerprint,
        "max_length": encoding.max_length,
        "truncation_mode": encoding.truncation_mode,
    }
    lacking = sorted(set(materials.layers) - set(baseline.layers))
    if recorded != asked or lacking:
        recorded["layers"], asked["layers"] = list(baseline.layers), list(materials.layers)
        raise SettingsError(
            f"baseline: {materials.file.policy.baseline} was recorded with something else than the policy and its "
            f"probes:\n{describe_difference(recorded, asked)}\nRecord it again with `trl-attribution gate baseline`."
        )
