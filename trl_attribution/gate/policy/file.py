"""Reads a policy from its file, and knows the folder that its paths start from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trl_attribution.errors import SettingsError
from trl_attribution.gate.policy.schema import POLICY_VERSION, Policy
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.settings_file import SettingsKind
from trl_attribution.utils.text import printable

_POLICY = SettingsKind(
    "policy",
    Policy,
    POLICY_VERSION,
    hint="`trl-attribution gate init` writes one.",
    nullable=frozenset({("encoding", "max_length")}),
)
_FILLED_IN = re.compile(r"threshold: 0\.3 +# pairs that score at least this are flagged; or fdr: 0\.05")


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
    policy = _POLICY.load(path)
    _refuse_filled_in(Path(path))
    return PolicyFile(policy, Path(path).parent)


def _refuse_filled_in(path: Path) -> None:
    """A number that an earlier ``gate init`` wrote, and that nobody has looked at: with it, everything passed."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    found = [number for number, line in enumerate(lines, start=1) if _FILLED_IN.search(line)]
    if found:
        raise SettingsError(
            f"{printable(path, 1000)}:{found[0]}: threshold 0.3 is the number that an earlier `gate init` filled in; "
            "it knows nothing of your model, and may flag nothing at all. Write `recall: 0.9` in its place, or propose "
            "rules anew (`gate init --from TRUSTED --overwrite`). To keep 0.3, remove the comment behind it."
        )


def parse_policy(text: str, name: str = "the policy") -> Policy:
    """A policy from the text of its file; ``name`` is what messages call it.

    Raises:
        SettingsError: as for :func:`load_policy`.
    """
    return _POLICY.parse(text, name)
