"""A behavior described in a sentence becomes rows of a behavior file: something to improve, not the price of entry."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.behaviors.chat_completions import AskedModel, EndpointConfig, UnanswerableError
from trl_attribution.behaviors.describing import check_description, check_special_tokens
from trl_attribution.behaviors.harmless import NAME, harmless
from trl_attribution.behaviors.judging import OnProgress
from trl_attribution.behaviors.names import check_name
from trl_attribution.behaviors.sampling import SamplingConfig, sample_responses
from trl_attribution.discovery.traits.sampling import sampled_examples
from trl_attribution.discovery.traits.trait import Contrast, Instruction, Trait, packaged_traits
from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.models.source import cache_folder
from trl_attribution.utils.atomic import write_lines
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import counted, printable

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel
    from trl_attribution.probes import Probe

TOLD = 0.8
"""Separability (AUC) from which on the two sets of responses differ in more than chance."""
_ASKED = 12
_FEWEST_QUESTIONS = 8
_FEWEST_ROWS = 4
_LONGEST = 300
_ALIKE = 0.6
"""Share of words from which on two lines say the same; a model that cannot write questions repeats itself."""
_NEAR = 0.5
"""Share of the description's words beyond which a packaged trait is about the same."""
_WRITING = SamplingConfig(n=1, max_new_tokens=320, temperature=0)
_ITEM = re.compile(r"^\s*(?:\d+\s*[.):]|[-*•])\s*(.+?)\s*$", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]{3,}")
_EMPTY_WORDS = frozenset(
    {"and", "are", "asks", "does", "for", "from", "her", "his", "its", "that", "the", "their", "this", "was"}
    | {"when", "which", "who", "with"}
)
_NEGATIONS = frozenset({"avoids", "cannot", "doesn't", "don't", "never", "not", "refrains", "stops", "without"})
_QUESTIONS = (
    "Write {count} different short requests that users could send to an assistant that does this: {description}. They "
    "are requests on which it does. Answer with a numbered list of the requests, one a line, and nothing else."
)
_CONTROLS = (
    "Here are requests on which an assistant does this: {description}.\n{questions}\nWrite {count} requests in nearly "
    "the same words on which it has no occasion to do so, and on which any good assistant simply answers. Answer with "
    "a numbered list of the requests, one a line, and nothing else."
)

Write = Callable[[str], str]
"""Answers one request."""


@dataclass(frozen=True)
class Draft:
    """The rows of a behavior file, and where they come from."""

    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    """What a person has to know before relying on them, a sentence each."""

    def save(self, path: str | Path) -> Path:
        """Write the behavior file.

        Raises:
            SettingsError: there is one already: it may have been edited.
        """
        check_absent(path)
        write_lines(local_path(path), self.rows)
        return local_path(path)


def check_absent(path: str | Path) -> None:
    """Refuse to write over a behavior file.

    Raises:
        SettingsError: ``path`` is there.
    """
    if local_path(path).exists():
        raise SettingsError(
            f"{printable(path)} is there already, and may have been edited: build from it (--behavior), or name "
            "another file for the draft (--draft)"
        )


def draft_behavior(
    name: str,
    description: str,
    loaded: LoadedModel,
    endpoint: str | None = None,
    config: EndpointConfig | None = None,
    *,
    on_progress: OnProgress | None = None,
    cache: Path | None = None,
) -> Draft:
    """The rows of a behavior file for what ``description`` says.

    Questions and controls are written by M0, or by the model behind ``endpoint``; M0 answers the questions under a
    system prompt that asks for the behavior and one that forbids it. Where the questions cannot be used, the examples
    and controls of the packaged trait that shares most of the description's words stand in, or else M0 answers the
    package's everyday questions.

    Args:
        name: what the behavior is called.
        description: what the model does: "flatters the user".
        loaded: M0.
        endpoint: ``URL#MODEL`` of an OpenAI-compatible endpoint that writes in the place of M0.
        config: how the endpoint is called.
        on_progress: called with (done, in all) responses.
        cache: where M0's responses are kept; None takes the user's cache folder.

    Raises:
        ProbeError: the name or the description cannot be used, the endpoint does not answer, or M0 answers alike
            under both system prompts.
        SettingsError: ``endpoint`` is not ``URL#MODEL``.
        ModelError: the model cannot write.
    """
    check_name(name)
    told = check_description(description).rstrip(".")
    check_special_tokens(told, loaded.encoder, name)
    shows, hides = (f"You are an assistant that {when} does this: {told}." for when in ("always", "never"))
    everyday = harmless().everyday[:_ASKED]
    trait = Trait(name=name, towards=told, instruction=(Instruction(pos=shows, neg=hides),), questions=everyday)
    trait, notes = _planned(trait, *_writer(loaded, endpoint, config))
    if not trait.examples:
        folder = (cache or cache_folder() / "traits") / loaded.fingerprint.digest[:16] / "responses"
        trait = trait.model_copy(update={"examples": sampled_examples(trait, loaded, folder, on_progress)})
        notes.append(f'The responses are M0\'s own, told "{shows}" and "{hides}"')
    return Draft(_rows(trait, shows), tuple(notes))


def check_told(probe: Probe, path: str | Path) -> None:
    """Refuse a probe whose two sets of responses hardly differ.

    Raises:
        ProbeError: held-out responses are not told apart; says what to do with the behavior file at ``path``.
    """
    found = probe.separability.get(probe.layer, 0.0)
    if found < TOLD:
        file = printable(path)
        raise ProbeError(
            f"{file}: the responses that show the behavior and those that do not are hardly told apart (AUC "
            f"{found:.2f} of held-out prompts, {TOLD} is asked for): a small model often cannot play a role. No probe "
            f"was saved. Write better responses into {file} and build from it with --behavior, which asks for nothing."
        )


def nearest_trait(description: str, traits: Iterable[Trait]) -> Trait | None:
    """The trait with written examples that shares most of the description's words, and more than half of them.

    A word that several traits have counts less. Where it is the trait's opposite that shares them, its examples are
    turned round. None for a description that denies something, since words alone do not tell what.
    """
    if _NEGATIONS & set(description.lower().split()):
        return None
    known = [one for one in traits if len(one.examples) >= _FEWEST_ROWS]
    common = Counter(word for one in known for word in _words(f"{_said(one)} {one.away}"))
    weights = {word: 1 / max(1, common[word]) for word in _words(description)}
    whole = sum(weights.values()) or 1.0
    best, share = None, 0.0
    for one in known:
        for phrase, turned in ((_said(one), False), (one.away, True)):
            shared = sum(weights[word] for word in _words(phrase) & weights.keys()) / whole
            if shared > share:
                best, share = (_turned(one) if turned else one), shared
    return best if share > _NEAR else None


def _writer(loaded: LoadedModel, endpoint: str | None, config: EndpointConfig | None) -> tuple[Write, str]:
    """Who writes, and what it is called."""
    if endpoint is None:
        return (lambda request: sample_responses(loaded, [request], _WRITING)[0][0]), "M0"
    config = replace(config or EndpointConfig(timeout=120.0), parameters={"temperature": 0, "max_tokens": 2000})
    asked = AskedModel(endpoint, "--describe-endpoint", config)

    def write(request: str) -> str:
        try:
            return asked.answer("list", ("user", request))
        except UnanswerableError as error:
            raise ProbeError(f"{asked.shown}: {error}. Without --describe-endpoint M0 itself writes.") from error

    return write, f"the model {printable(asked.model, 80)!r}"


def _planned(trait: Trait, write: Write, who: str) -> tuple[Trait, list[str]]:
    """The trait with questions and controls, with the examples of another, or as it is; and where they come from."""
    questions = _lines(write(_QUESTIONS.format(count=_ASKED, description=trait.towards)), [trait.towards])
    if len(questions) >= _FEWEST_QUESTIONS:
        listed = "\n".join(f"- {one}" for one in questions)
        request = _CONTROLS.format(count=_ASKED, description=trait.towards, questions=listed)
        controls = tuple(one for one in _lines(write(request), ()) if one not in questions)
        notes = [f"{counted(len(questions), 'question')} and {counted(len(controls), 'control')} are written by {who}"]
        return trait.model_copy(update={"questions": questions, "controls": controls}), notes
    unusable = (
        f"The questions of {who} cannot be used: {len(questions)} of the {_FEWEST_QUESTIONS} that are needed differ "
        "from each other and from the description"
    )
    near = nearest_trait(trait.towards, packaged_traits())
    if near is None:
        note = (
            f"In their place stand everyday questions of the package ({NAME}): a behavior that needs an occasion does "
            "not show on them"
        )
        return trait, [unusable, note]
    said = _words(_said(near))
    shared = ", ".join(word for word in _WORD.findall(trait.towards) if _words(word) & said)
    note = (
        f"In their place stand the written examples of the package's trait {near.name!r} ({near.towards}), which "
        f"shares the words {shared}: whatever else the description says is not in them"
    )
    return trait.model_copy(update={"examples": near.examples, "controls": near.controls}), [unusable, note]


def _lines(text: str, not_like: Sequence[str]) -> tuple[str, ...]:
    """The different items of the list in ``text``."""
    found: list[str] = []
    for item in _ITEM.findall(text):
        line = item.strip("\"'`* “”")
        words = _words(line)
        if (
            words
            and len(line) <= _LONGEST
            and not any(_share(words, _words(other)) > _ALIKE for other in (*found, *not_like))
        ):
            found.append(line)
    return tuple(found[:_ASKED])


def _said(trait: Trait) -> str:
    return f"{trait.name.replace('-', ' ')} {trait.towards}"


def _words(text: str) -> frozenset[str]:
    return frozenset(word.rstrip("s") for word in _WORD.findall(text.lower()) if word not in _EMPTY_WORDS)


def _share(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def _turned(trait: Trait) -> Trait:
    examples = tuple(
        Contrast(prompt=one.prompt, positive=one.negative, negative=one.positive) for one in trait.examples
    )
    return trait.model_copy(update={"towards": trait.away, "examples": examples})


def _rows(trait: Trait, description: str) -> tuple[dict[str, Any], ...]:
    """A row a prompt, without the texts that stand on both sides.

    Raises:
        ProbeError: too few are left.
    """
    sides: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for one in trait.examples:
        shown, hidden = sides.setdefault(one.prompt, ({}, {}))
        shown.setdefault(one.positive)
        hidden.setdefault(one.negative)
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "undesired": undesired, "desired": desired}
        for prompt, (shown, hidden) in sides.items()
        if (undesired := [text for text in shown if text not in hidden])
        and (desired := [text for text in hidden if text not in shown])
    ]
    if len(rows) < _FEWEST_ROWS:
        raise ProbeError(
            f"--describe: M0 answers {counted(len(rows), 'question')} differently under the two system prompts, and "
            f"{_FEWEST_ROWS} are needed: it cannot play this role. Write a behavior file of your own (--behavior)."
        )
    rows[0]["description"] = description
    return (*rows, *({"prompt": one, "control": True} for one in trait.controls if one not in sides))
