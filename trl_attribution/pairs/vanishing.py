"""Text that a chat template leaves out, found by evidence: with other words in its place the rendering must change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.formats import Pair
from trl_attribution.pairs.messages import Messages, text_of

_OTHER_WORDS = ("Other words.", "Some more words.")
_PARTS = ("prompt", "chosen", "rejected")
# A template may have no place for instructions as long as what is asked and answered stays.
_INSTRUCTING = ("system", "developer")


class _Kind(NamedTuple):
    """Messages that a template treats alike."""

    part: str
    role: str
    blocks: bool

    @property
    def content(self) -> str:
        return "content blocks" if self.blocks else "plain text"


@dataclass
class TemplateCheck:
    """Whether the messages of pairs leave their text in what the template makes of them.

    Each kind of message is tried until a pair proves that its text arrives, so that it costs a few renderings in all.

    Args:
        render: prompt, prompt + chosen and prompt + rejected of a pair as the template renders them.
    """

    render: Callable[[Pair], Sequence[Any]]
    _proved: set[_Kind] = field(default_factory=set)

    def check(self, pair: Pair, rendered: Sequence[Any]) -> None:
        """Compare ``rendered``, which is ``pair``'s, with renderings of the same pair with other words.

        Raises:
            RowFault: the text of a whole part is missing, or what a user or the assistant says in it.
        """
        kinds = dict.fromkeys(_kinds(pair))
        if kinds.keys() <= self._proved:
            return
        lost = [kind for kind in kinds if kind not in self._proved and self._is_lost(kind, pair, rendered)]
        self._proved.update(kind for kind in kinds if kind not in lost)
        for kind in lost:
            if kind.part != "prompt" and rendered[_PARTS.index(kind.part)] == rendered[0]:
                continue  # a response that comes to no token at all has a fault of its own
            alone = all(other in lost for other in kinds if other.part == kind.part)
            if alone or kind.role not in _INSTRUCTING:
                raise _fault(kind)

    def _is_lost(self, kind: _Kind, pair: Pair, rendered: Sequence[Any]) -> bool:
        changed: dict[str, Any] = {kind.part: _with_other_words(getattr(pair, kind.part), kind)}
        other = dataclasses.replace(pair, **changed)
        place = _PARTS.index(kind.part)
        try:
            return bool(self.render(other)[place] == rendered[place])
        except RowFault:  # a template that minds the words has read them
            return False


def _kinds(pair: Pair) -> Iterator[_Kind]:
    for part in _PARTS:
        for message in getattr(pair, part):
            # Some templates write the calls of a message and not what is said beside them.
            if not message.get("tool_calls") and text_of(message).strip():
                yield _kind(part, message)


def _kind(part: str, message: dict[str, Any]) -> _Kind:
    return _Kind(part, str(message["role"]), not isinstance(message["content"], str))


def _with_other_words(messages: Messages, kind: _Kind) -> Messages:
    return [
        {**message, "content": _other_words(message["content"])}
        if message.get("content") and _kind(kind.part, message) == kind
        else message
        for message in messages
    ]


def _other_words(content: Any) -> Any:
    if isinstance(content, str):
        return next(words for words in _OTHER_WORDS if words != content)
    return [{**block, "text": _other_words(block["text"])} for block in content]


def _fault(kind: _Kind) -> RowFault:
    advice = "Store the text as plain text, or use a template that writes content blocks."
    if not kind.blocks:
        advice = (
            "If it is a vision-language model's, give its processor too, through which TRL encodes text as blocks; or "
            'store the text as content blocks ([{"type": "text", "text": ...}]).'
        )
    return RowFault(
        "text_vanishes",
        kind.part,
        f"the model's chat template leaves out what the {kind.role} says as {kind.content}: the turns come out the "
        f"same whatever is said. {advice}",
    )
