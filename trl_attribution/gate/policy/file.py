"""Reads a policy from its file, and knows the folder that its paths start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trl_attribution.gate.policy.schema import POLICY_VERSION, Policy
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.settings_file import SettingsKind

_POLICY = SettingsKind(
    "policy",
    Policy,
    POLICY_VERSION,
    hint="`trl-attribution gate init` writes one.",
    nullable=frozenset({("encoding", "max_length")}),
)


@dataclass(frozen=True)
class PolicyFile:
    """A policy, and the folder that its paths start from."""

    policy: Policy
    folder: Path

    def path(self, name: str) -> Path:
        """A path that the policy names; relative ones start from the policy's folder."""
        return self.folder / local_path(name)

    def model(self, name: str) -> str:
        """A model that the policy names: what lies beside the policy, else as it is (a Hub id)."""
        try:
            beside = self.path(name)
            return str(beside) if beside.exists() else name
        except (OSError, ValueError):  # too long for a path: no file of ours
            return name


def load_policy(path: str | Path) -> PolicyFile:
    """Read and check a policy.

    Raises:
        SettingsError: there is no such file, it is no YAML, or what it says is no policy; the message names the file,
            the line, the key and what was expected.
    """
    return PolicyFile(_POLICY.load(path), Path(path).parent)


def parse_policy(text: str, name: str = "the policy") -> Policy:
    """A policy from the text of its file; ``name`` is what messages call it.

    Raises:
        SettingsError: as for :func:`load_policy`.
    """
    return _POLICY.parse(text, name)
