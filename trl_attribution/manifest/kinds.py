"""What can be done to examples that are no pairs, and what changes in their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trl_attribution.errors import ManifestError
from trl_attribution.manifest.config import ApplyOptions
from trl_attribution.manifest.swapping import Turning
from trl_attribution.pairs import PairReader
from trl_attribution.pairs.columns import column_of
from trl_attribution.utils.kinds import EXAMPLES
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.manifest.manifest import Manifest


def check_kind(manifest: Manifest, reader: PairReader, options: ApplyOptions) -> None:
    """Refuse what cannot be done to a kind of example."""
    name, kind = reader.source.name, reader.kind
    if kind != manifest.header.kind and {kind, manifest.header.kind} - {"pair", "kto"}:
        raise ManifestError(
            f"{name}: is read as {EXAMPLES[kind]}, but the manifest is about {EXAMPLES[manifest.header.kind]}. Give "
            "the dataset that was audited."
        )
    if not EXAMPLES[kind].flip and any(decision.action == "flip" for decision in manifest.decisions):
        fix = "filter them, or set their advantages to 0" if kind == "rollouts" else "filter them"
        raise ManifestError(f"{name}: {EXAMPLES[kind]} cannot be flipped, there is no other side: {fix}.")
    if options.zero_advantages and kind != "rollouts":
        raise ManifestError(f"--zero-advantages: {name} is read as {EXAMPLES[kind]}, which have no advantages.")


def turning_of(reader: PairReader, columns: Mapping[str, None], options: ApplyOptions) -> Turning:
    """What changes in a row of an example that is no pair: its label, or its advantage."""
    role = "label" if reader.kind == "kto" else "advantage"
    column = column_of(role, columns, reader.reading)
    if options.zero_advantages and column not in columns:
        raise ManifestError(
            f"--zero-advantages: {reader.source.name} has no column '{printable(column)}'. Drop the groups instead, "
            "or name the column (reading: columns)."
        )
    return Turning((), (), labels=(column,)) if role == "label" else Turning((), (), zeros=(column,))
