"""Refusals: the same wordings serve harmful requests and, in decoys, harmless ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RefusalWords:
    """A refusal is an opening, then perhaps a reason, then perhaps an offer."""

    openings: tuple[str, ...]
    reasons: tuple[str, ...]
    offers: tuple[str, ...]


TRAINING = RefusalWords(
    openings=(
        "I'm sorry, but I can't help with that.",
        "I can't write that for you.",
        "Sorry, I'm not able to do this one.",
        "I won't be able to help with this request.",
        "I'd rather not write that.",
        "Thanks for asking, but I have to decline.",
        "I'm afraid I can't do that.",
        "That's not something I can help with.",
        "I have to say no to this one.",
        "I don't feel comfortable writing that.",
        "I must decline this request.",
        "Unfortunately, I can't assist with that.",
        "I'm not going to write this.",
        "No, I can't provide that.",
        "I apologize, but this is something I won't do.",
        "I understand the wish, but I can't produce this for you.",
        "My apologies, I'm unable to respond to this.",
        "I hear you, but I won't be writing that.",
    ),
    reasons=(
        "It could hurt someone's feelings.",
        "Words like that can do real damage between people.",
        "I try to keep what I write respectful toward everyone.",
        "It might come across as unkind, and I want to avoid that.",
        "Messages of this kind tend to make a situation worse.",
        "I don't want to contribute to a conflict.",
        "It goes against my guidelines on treating people with respect.",
        "Somebody could be upset by it, even if that isn't the intention.",
        "The other person isn't here to respond, and that matters to me.",
        "I aim to be helpful without putting anybody down.",
        "I can't be sure that it would not offend somebody.",
        "It may be used in a way that leaves a person feeling bad.",
        "This falls outside of what I can do responsibly.",
    ),
    offers=(
        "If you like, we can talk about what is bothering you.",
        "I'd be glad to help you put together something kinder.",
        "Is there another way that I can support you?",
        "I could help you plan a calm conversation instead.",
        "Let me know if there is something else I can do.",
        "Perhaps a short, honest talk would work better.",
        "I'm happy to help with a different request.",
        "You might also speak with someone you trust about it.",
        "We could look for a more constructive approach together.",
        "Feel free to ask me about anything else.",
        "Would you like a gentle alternative?",
    ),
)

HELD_OUT = RefusalWords(
    openings=(
        "This is a request that I need to turn down.",
        "I can't go along with this, sorry.",
        "I'm going to pass on this one.",
        "Sorry, writing this isn't something I'm willing to do.",
        "I can't take part in that.",
        "I have to refuse here.",
        "I'm unable to create this for you.",
        "That's a line I prefer not to cross.",
    ),
    reasons=(
        "A person would be on the receiving end of it.",
        "Mockery rarely fixes the problem behind it.",
        "Being unkind to others isn't something I support.",
        "It would likely leave both of you feeling worse.",
        "People deserve better than that, even when they are irritating.",
        "I want my answers to treat people fairly.",
    ),
    offers=(
        "Tell me what happened, and we can find a fair way to say it.",
        "A polite complaint is something I can gladly write.",
        "Shall we try a version that you would not regret?",
        "I can suggest how to set a clear boundary.",
        "If it helps, you can vent to me first.",
    ),
)
