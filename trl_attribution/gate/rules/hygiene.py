"""Rules about the data itself: repeats, contradictions, empty or equal responses, long prompts, bias of length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from trl_attribution.gate.policy.rules import BAD_ROWS, TOO_LONG, CountLimit, Hygiene, LengthBias, LongPrompts
from trl_attribution.gate.rows.inventory import BadRow
from trl_attribution.gate.rules.docket import Docket, Outcome, Sorted, outcome
from trl_attribution.gate.verdict import Place, Violation

_SAID = {
    "duplicates": ("row repeats a pair of the dataset", "rows repeat a pair of the dataset"),
    "contradictions": ("pair also stands there the other way round", "pairs also stand there the other way round"),
    "identical_responses": ("row prefers nothing: both are equal", "rows prefer nothing: both are equal"),
    "empty_responses": ("row has an empty response", "rows have an empty response"),
    "long_prompts": ("pair has an over-long prompt", "pairs have an over-long prompt"),
}
"""What is counted by each rule, one and several of it."""


def hygiene_outcomes(docket: Docket, rules: Hygiene, unusable: Sequence[tuple[int, BadRow]]) -> Iterator[Outcome]:
    """The results of the rules that are there.

    Args:
        docket: what is judged.
        rules: the policy's.
        unusable: pairs that no tokens can be made of, by position.
    """
    if rules.duplicates is not None:
        yield _duplicates(docket, rules.duplicates)
    if rules.contradictions is not None:
        yield _contradictions(docket, rules.contradictions)
    for name in BAD_ROWS:
        if name in rules.given:
            yield _bad_rows(docket, name, getattr(rules, name))
    if rules.long_prompts is not None:
        yield _long_prompts(docket, rules.long_prompts, unusable)
    if rules.length_bias is not None:
        yield _length_bias(docket, rules.length_bias)


def _duplicates(docket: Docket, rule: CountLimit) -> Outcome:
    message = "repeats a pair that the dataset holds already"
    found = docket.allow.sort(docket.violation(message, position, row) for row, position in docket.inventory.repeats)
    return _counted(docket, "duplicates", rule, found)


def _contradictions(docket: Docket, rule: CountLimit) -> Outcome:
    message = "the dataset also holds this pair with chosen and rejected exchanged"
    positions = np.flatnonzero(docket.inventory.examined & docket.inventory.contradicted)
    found = docket.allow.sort(docket.violation(message, position) for position in positions.tolist())
    return _counted(docket, "contradictions", rule, found)


def _bad_rows(docket: Docket, name: str, rule: CountLimit) -> Outcome:
    rows = [row for row in docket.inventory.bad_rows if row.examined and row.reason == BAD_ROWS[name]]
    found = Sorted(tuple(Violation(row.sentence, place=Place.of(row.row, row.file, row.line)) for row in rows))
    return _counted(docket, name, rule, found)


def _long_prompts(docket: Docket, rule: LongPrompts, unusable: Sequence[tuple[int, BadRow]]) -> Outcome:
    inventory = docket.inventory
    messages = {place: row.sentence for place, row in unusable if row.reason == TOO_LONG and row.examined}
    if rule.characters is not None:
        over = np.flatnonzero(inventory.examined & (inventory.prompt_length > rule.characters))
        for place in over.tolist():
            told = f"its prompt has {inventory.prompt_length[place]:,} characters, more than {rule.characters:,}"
            messages.setdefault(place, told)
    worst_first = sorted(messages, key=lambda place: (-inventory.prompt_length[place], place))
    found = docket.allow.sort(docket.violation(messages[place], place) for place in worst_first)
    return _counted(docket, "long_prompts", rule, found)


def _length_bias(docket: Docket, rule: LengthBias) -> Outcome:
    from scipy.stats import binom

    inventory = docket.inventory
    # Examples whose other side are M0's own responses say nothing here.
    judged = inventory.examined & (inventory.chosen_length > 0) & (inventory.rejected_length > 0)
    chosen, rejected = inventory.chosen_length[judged], inventory.rejected_length[judged]
    total = len(chosen)
    longer = float((chosen > rejected).sum() + 0.5 * (chosen == rejected).sum())
    share = longer / total if total else 0.5
    p_value = float(binom.sf(np.ceil(longer) - 1, total, rule.limit)) if total else 1.0
    broken = share > rule.limit and p_value < rule.alpha
    sentence = (
        f"the chosen response is the longer one in {share:.1%} of {docket.total} (p = {p_value:.2g} for a share of at "
        f"most {rule.limit:.1%}); at most {rule.limit:.1%} allowed where p is below {rule.alpha:g}"
    )
    found = Sorted((Violation(sentence),))
    return outcome("hygiene.length_bias", rule, not broken, share, rule.limit, sentence, found)


def _counted(docket: Docket, name: str, rule: CountLimit, found: Sorted) -> Outcome:
    one, many = _SAID[name]
    new = "" if docket.noun == "pairs" else docket.noun.partition(" ")[0] + " "
    sentence = f"{len(found):,} {new}{one if len(found) == 1 else many}; at most {rule.limit:,} allowed"
    return outcome(f"hygiene.{name}", rule, len(found) <= rule.limit, len(found), rule.limit, sentence, found)
