"""What a probe's controls are, in words."""

from __future__ import annotations

from trl_attribution.probes.probe import Probe
from trl_attribution.scoring.protocols import OWN_CONTROLS
from trl_attribution.utils.text import printable


def controls_text(probe: Probe) -> str:
    """Which controls ``probe`` was built with, and why none where there are none."""
    known = probe.built.get("controls")
    if not isinstance(known, dict):
        count = 0 if probe.control_contexts is None else len(probe.control_contexts)
        return f"{count} of the behavior's own" if count else "none"
    if known.get("from") == OWN_CONTROLS:
        return f"{known.get('prompts')} {OWN_CONTROLS}; give --controls for your own"
    if known.get("from") == "none":
        return f"none: {printable(known.get('reason', 'unknown'), 200)}"
    return printable(f"{known.get('prompts')} of {known.get('from')}", 200)
