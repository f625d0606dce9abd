"""The policy that ``gate init`` writes: every rule is there, with what it is for."""

from __future__ import annotations

import json
from collections.abc import Sequence

from trl_attribution.probes import Probe

_HEAD = """\
# Policy of `trl-attribution gate`: what a preference dataset has to satisfy before it may land.
# Every key is described in the policy reference of the documentation. For completion in an editor, write the schema
# beside this file (trl-attribution gate schema > gate.schema.json):
# yaml-language-server: $schema=gate.schema.json
version: 1

# M0: the model before preference training, which the probes were made with. A Hub id, a folder or a GGUF file; paths
# start from this file's folder. Leave it out where `vectors` or the cache has all vectors already.
{model}

# The registry of probes (trl-attribution probe build), or a Hub repo: hf://owner/repo@revision
{probes}

# The probes' fingerprints: a probe that was rebuilt is refused until its pin is changed here.
{pins}

# Vectors that were computed stay in this folder: have the CI system keep it. A shared bucket goes beside it:
# cache: {{folder: .trl-attribution-cache, remote: "s3://bucket/gate"}}
cache: .trl-attribution-cache

# A vector store made elsewhere, such as by a GPU job (trl-attribution audit MODEL DATASET --vectors vectors/):
# vectors: vectors/

# What new pairs are compared with (trl-attribution gate baseline DATASET). Without it, the whole dataset's vectors are
# needed to judge a few pairs.
# baseline: gate-baseline.safetensors

# compute:
#   max_pairs: 5000        # refuse to compute more than this: the cache has been lost

# reading:
#   on_bad_row: skip       # leave rows out that cannot be read, and count them; otherwise they end the gate

# A rule is a limit, or a mapping with the limit and more:  max_flagged_count: {{limit: 0, severity: warn}}
rules:
{rules}
  # known_bad: {{limit: 0, similarity: 0.95}}     # share of near-duplicates of known-bad pairs; needs a baseline
  hygiene:
    duplicates: {{limit: 0, severity: warn}}
    contradictions: 0
    identical_responses: 0
    empty_responses: 0
    long_prompts: {{limit: 0, characters: 20000, severity: warn}}
    length_bias: {{limit: 0.7, severity: warn}}

# Findings that somebody looked at and accepted:
# allow:
#   - pair_id: 0123456789abcdef0123456789abcdef
#     reason: reviewed, a quotation
#     expires: 2027-01-31
"""

_PROBE_RULES = """\
    {name}:
      threshold: 0.3             # pairs that score at least this are flagged; or fdr: 0.05
      max_flagged_count: 0
      # max_flagged_fraction: 0.001
      # max_source_fraction: {{limit: 0.05, min_pairs: 20}}
      # max_score: 0.6
      # drift: {{limit: 0.2, severity: warn}}       # needs a baseline
"""


def policy_template(model: str | None, registry: str | None, probes: Sequence[Probe]) -> str:
    """A commented policy.

    Args:
        model: M0; a placeholder if None.
        registry: where the probes are.
        probes: those to give rules to and to pin; none leaves the rules about probes as comments.
    """
    names = [json.dumps(probe.name) for probe in probes]
    if probes:
        rules = "  probes:\n" + "".join(_PROBE_RULES.format(name=name) for name in names)
        pins = "pins:\n" + "\n".join(
            f'  {name}: "{probe.fingerprint}"' for name, probe in zip(names, probes, strict=True)
        )
    else:
        lines = ("  probes:\n" + _PROBE_RULES.format(name="NAME-OF-A-PROBE")).splitlines()
        rules = "\n".join(f"  # {line}" for line in lines) + "\n"
        pins = "# pins: {}"
    return _HEAD.format(
        model=f"model: {json.dumps(model)}" if model else "# model: owner/name",
        probes=f"probes: {json.dumps(registry)}" if registry and probes else "# probes: probes/",
        pins=pins,
        rules=rules.rstrip("\n"),
    )
