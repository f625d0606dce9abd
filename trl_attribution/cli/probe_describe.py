"""``trl-attribution probe build --describe``: a behavior file drafted from a sentence, shown before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from trl_attribution.cli.output import Output
from trl_attribution.cli.probe_sources import ProbeSources

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel

_SHOWN = 3


def check_draft(name: str, sources: ProbeSources) -> Path | None:
    """Where the draft goes, if one is asked for; whatever can be wrong is, before a model is loaded.

    Raises:
        SettingsError: there is a file already, or the endpoint or its key cannot be one.
        ProbeError: ``name`` cannot be a probe's, or the description cannot be used.
    """
    from trl_attribution.behaviors.chat_completions import AskedModel, EndpointConfig
    from trl_attribution.behaviors.describing import check_description
    from trl_attribution.behaviors.names import check_name
    from trl_attribution.discovery import check_absent

    if sources.describe is None:
        return None
    check_name(name)
    check_description(sources.describe, "--describe")
    if sources.describe_endpoint is not None:
        AskedModel(sources.describe_endpoint, "--describe-endpoint", EndpointConfig(sources.describe_key_env))
    path = sources.draft or Path(f"{name}.behavior.jsonl")
    check_absent(path)
    return path


def write_draft(path: Path, name: str, sources: ProbeSources, loaded: LoadedModel, out: Output) -> Path:
    """Draft the behavior file, write it to ``path``, and show what is in it and where it comes from."""
    from trl_attribution.behaviors import EndpointConfig
    from trl_attribution.discovery import draft_behavior
    from trl_attribution.report.terminal import examples_table, sides_text

    endpoint, config = sources.describe_endpoint, EndpointConfig(sources.describe_key_env, timeout=120.0)
    out.say(f"Drafting questions ({endpoint or 'M0 writes them'})")
    with out.progress() as progress:
        draft = draft_behavior(
            name,
            str(sources.describe),
            loaded,
            endpoint,
            config,
            on_progress=lambda *done: progress("responses", *done),
        )
    draft.save(path)
    examples = [row for row in draft.rows if not row.get("control")]
    rows = [
        (str(place), sides_text(row["prompt"], ("+", row["undesired"][0]), ("-", row["desired"][0])))
        for place, row in enumerate(examples[:_SHOWN], 1)
    ]
    title = f"The first {len(rows)} of {len(examples)} prompts, {len(draft.rows) - len(examples)} controls beside them"
    out.show(examples_table(title, ("#", "prompt, undesired (+), desired (-)"), rows))
    for note in draft.notes:
        out.show(Text(f"{note}."))
    out.show(Text(f"Drafted {path}: read it, improve it, and build from it again (--behavior)."))
    return path
