"""Anthropic's raw transcripts as conversations: shared turns are the prompt, what follows is the response."""

from __future__ import annotations

import re

from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.implicit import split_prompt
from trl_attribution.pairs.messages import Messages
from trl_attribution.utils.text import printable

START = "\n\nHuman:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(transcript: str, field: str) -> Messages:
    r"""Messages of a ``\n\nHuman: ...\n\nAssistant: ...`` transcript.

    One space after the colon belongs to the markup; all other whitespace is kept. Turns of the same speaker in a row
    (13 rows of the 2,312 of HH-RLHF harmless-base have them) become one message, joined by a blank line, because most
    chat templates demand that roles alternate.

    Raises:
        RowFault: text before the first turn, or a transcript that does not run from Human to Assistant.
    """
    before, *pieces = _TURN.split(transcript)
    if before or not pieces or pieces[0] != "Human":
        start = printable(transcript, 40)
        raise RowFault(
            "odd_transcript",
            field,
            f"does not start with a '\\n\\nHuman:' turn but with '{start}'. Mend the transcript, or read the dataset "
            "as plain text with --format trl.",
        )
    messages: Messages = []
    for speaker, text in zip(pieces[::2], pieces[1::2], strict=True):
        role, content = _ROLES[speaker], text.removeprefix(" ")
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content}"
        else:
            messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "assistant":
        raise RowFault(
            "odd_transcript",
            field,
            "ends with a Human turn, so there is no response. Add the Assistant turn or drop the row.",
        )
    return messages


def split_transcripts(chosen: Messages, rejected: Messages, field: str) -> tuple[Messages, Messages, Messages]:
    """Prompt, chosen and rejected of two conversations that share their first turns.

    In nearly all pairs only the last Assistant turn differs. Where two transcripts part at an earlier Assistant turn,
    everything from there on is the response, later Human turns included: that is what TRL trains on for such a pair.

    Raises:
        RowFault: they part at a Human turn, so that the two responses answer different prompts.
    """
    prompt, chosen, rejected = split_prompt(chosen, rejected)
    if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
        raise RowFault(
            "prompts_differ",
            field,
            f"the transcripts part at a Human turn (turn {len(prompt) + 1}), so the responses answer different "
            "prompts. Make the prompts equal or drop the row.",
        )
    return prompt, chosen, rejected
