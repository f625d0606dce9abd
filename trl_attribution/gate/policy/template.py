"""The policy that ``gate init`` writes: every rule is there, with what it is for."""

from __future__ import annotations

import json
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from trl_attribution.probes import Probe


def policy_template(model: str | None, registry: str | None, probes: Sequence[Probe]) -> str:
    """A commented policy.

    Args:
        model: M0; a placeholder if None.
        registry: where the probes are.
        probes: those to give rules to and to pin; none leaves the rules about probes as comments.
    """
    environment = Environment(
        loader=PackageLoader("trl_attribution.gate", "policy"),
        autoescape=False,  # YAML, whose strings are written as JSON
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["json"] = json.dumps
    names = [json.dumps(probe.name) for probe in probes] or ["NAME-OF-A-PROBE"]
    return environment.get_template("policy.yaml.j2").render(
        model=model, registry=registry, probes=probes, names=names, mark="" if probes else "#   "
    )
