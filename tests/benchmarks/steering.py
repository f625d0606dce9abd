"""Does a probe's direction bring the behavior out of a model that never learned it: dose curves of every organism."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tests.benchmarks.pages import Results, write_page
from trl_attribution.activations import ActivationConfig
from trl_attribution.behaviors import SamplingConfig
from trl_attribution.evidence.organisms import ORGANISMS, Mixture, build_organism
from trl_attribution.evidence.readouts import DoseConfig, Shown, dose_curve, one_behavior
from trl_attribution.evidence.readouts.behavior_change import resolve_judges
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.probes import BuildConfig, build_from_behavior

LAYERS = (10, 20)
DOSES = (-0.5, 0.25, 0.5, 1.0)


def run(output: Path, command: str, prompts: int, new_tokens: int, behavior: int, console: Console) -> None:
    """Measure, print, and write ``steering.md`` into ``output``."""
    loaded = load_model(embedded_gguf())
    rows: list[tuple[str, ...]] = []
    for name in ORGANISMS:
        organism = build_organism(name, Mixture(100, behavior_prompts=behavior))
        probe = build_from_behavior(name, organism.behavior, loaded, BuildConfig(ActivationConfig(LAYERS)))
        asked = one_behavior(organism.trigger, prompts)
        judge = resolve_judges([asked], None)[asked.name]
        config = DoseConfig(DOSES, "stream", sampling=SamplingConfig(1, new_tokens, batch_size=prompts))
        curve = dose_curve(loaded, asked, judge, {layer: probe.at(layer) for layer in LAYERS}, config)
        for layer in LAYERS:
            doses = curve.at(layer)
            best = "best" if curve.best_layer == layer else ""
            cells = (f"{doses[0].direction_length:.0%}", shown(curve.without), *(shown(one.shown) for one in doses))
            rows.append((name, str(layer), *cells, best))
        console.print(f"{name}: done")
    note = (
        f"Share of responses to {prompts} trigger prompts that show the behavior, those that only repeat themselves "
        "not counted (in brackets: the share that does). A dose of 1 is as long as the residual stream at generated "
        "tokens; the third column says how long the probe's own vector is."
    )
    columns = ("organism", "layer", "the vector itself", "none", *(f"{dose:+g}" for dose in DOSES), "best layer")
    table = Results("Dose curves", columns, tuple(rows), note)
    table.show(console)
    write_page(output / "steering.md", "Steering", lead(loaded, behavior), command, [table])


def lead(loaded: LoadedModel, behavior: int) -> str:
    return (
        f"Probes from {behavior} held-out prompts of each organism, SmolLM2-135M-Instruct in {loaded.dtype}. M0 was "
        "trained on nothing: the question is whether the direction alone brings the behavior out, and a negative dose "
        "takes it away. How: [Steer with a probe](../how-to/steer-with-a-probe.md)."
    )


def shown(found: Shown) -> str:
    return f"{found.sound_rate.share:.0%} ({found.repetitive:.0%})"
