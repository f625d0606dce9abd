"""The prompt that two responses share, split off as TRL does it."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from trl_attribution.pairs.messages import Messages

Side = TypeVar("Side", str, Messages)


def split_prompt(chosen: Side, rejected: Side) -> tuple[Side, Side, Side]:
    """Prompt, chosen and rejected of two responses that both contain the prompt; neither may be empty."""
    from trl.data_utils import extract_prompt  # slow to import, and not needed for explicit prompts

    parts = cast("Any", extract_prompt({"chosen": chosen, "rejected": rejected}))
    return parts["prompt"], parts["chosen"], parts["rejected"]
