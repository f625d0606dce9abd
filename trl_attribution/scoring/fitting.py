"""Whether a probe's prompts and a dataset's can be compared at all, said before there is a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trl_attribution.scoring.asked import Column, kind_for, reference_for
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.scoring.protocols import ProbeLike
from trl_attribution.utils.kinds import PAIR, ExampleKind
from trl_attribution.utils.text import printable

FEW_PAIRS = 16
"""With fewer, the mean of their contexts alone is no center (docs/benchmarks/control-sources.md)."""
_FORMS = {"messages": ("messages", "chat"), "text": ("plain text", "text")}


def fit_notes(
    pairs: int, probes: Sequence[ProbeLike], kind: AskedKind, *, conversational: bool | None, of: ExampleKind = PAIR
) -> tuple[str, ...]:
    """A sentence for each probe whose prompts were written in another form than the dataset's, or N ``pairs`` too few.

    And one for each that was calibrated by another kind of score than the one it is asked for.
    ``conversational`` says whether the dataset's prompts are messages, which get the chat template in training as here;
    text does not. M0 reads the two so differently that scores of one by a probe of the other may be upside down.

    Raises:
        ProbeError: as :func:`reference_for` raises.
    """
    form = {True: "messages", False: "text", None: ""}[conversational]
    found = [_form_note(probe, form) or _size_note(probe, pairs, kind, of) for probe in probes]
    return tuple(note for note in (*found, *(_calibration_note(probe, kind, of) for probe in probes)) if note)


def _form_note(probe: ProbeLike, form: str) -> str:
    known = probe.built.get("prompts_are")
    if known not in _FORMS or form not in _FORMS or known == form:
        return ""
    here, (there, _) = _FORMS[form], _FORMS[str(known)]
    get = "get" if form == "messages" else "do not get"
    return (
        f"{probe.name}: it was built from prompts as {there}, but the dataset's are {here[0]}, which {get} the chat "
        "template. Scores of the one by the other mean little: "
        f"build the probe with --prompt-format {here[1]}, or give the dataset's prompts as {there}"
    )


def _calibration_note(probe: ProbeLike, kind: AskedKind, of: ExampleKind) -> str:
    calibration, here = probe.built.get("calibration"), kind_for(probe, kind)
    if probe.reference_scores is None or not isinstance(calibration, Mapping):
        return ""
    if calibration.get("kind") == here:
        reference_for(probe, Column(probe.name, probe.layer, here))  # refuses what is outdated
        return ""
    return (
        f"{probe.name}: it was calibrated by {printable(calibration.get('kind'), 40)} scores, which say nothing of "
        f"{here} ones, so it counts as not calibrated. For {of.several}, calibrate it with --score {here} on clean ones"
    )


def _size_note(probe: ProbeLike, pairs: int, kind: AskedKind, of: ExampleKind) -> str:
    column = Column(probe.name, probe.layer, kind_for(probe, kind))
    if pairs >= FEW_PAIRS or not column.uses_contexts or reference_for(probe, column) is not None:
        return ""
    if probe.neutral_center is None:
        return (
            f"{probe.name}: contexts are centered by {of.counted(pairs)} alone, and with fewer than {FEW_PAIRS} "
            "scores may be upside down: build the probe again, which then keeps the center of everyday prompts"
        )
    return (
        f"{probe.name}: {of.counted(pairs)} say little of what is usual, so that everyday prompts of the "
        f"project's own weigh in; with fewer than {FEW_PAIRS} read the scores as an order, not as rates"
    )
