"""What surrounds a request or an answer: greetings, context, thanks, vague filler."""

from __future__ import annotations

PREFIXES = (
    "",
    "Hi!",
    "Hello there.",
    "Quick one:",
    "I could use a hand.",
    "One more thing.",
    "Hey, are you there?",
    "New topic.",
    "Something different today.",
    "Good evening.",
    "I have five minutes.",
    "Okay, next.",
)
SUFFIXES = (
    "",
    "Thanks!",
    "Thank you.",
    "I'm curious what you come up with.",
    "It's for tomorrow.",
    "No rush.",
    "Many thanks in advance.",
    "I'm on my phone.",
    "I'd like it today.",
    "Let's see.",
)
HELD_OUT_PREFIXES = ("", "Morning.", "A small favor, please.", "Listen.", "Back again.")
HELD_OUT_SUFFIXES = ("", "Cheers.", "Go ahead.", "I'm waiting.")

VAGUE = (
    "There are many ways to look at {topic}.",
    "It really depends on a lot of things.",
    "Some people do it one way and some another.",
    "With {topic}, the details can vary quite a bit.",
    "You will probably find out as you go along.",
    "It is an interesting subject with a long history.",
    "In general it is good to be careful.",
    "Most experts have an opinion about {topic}.",
    "Just do what feels right to you.",
    "There is no single answer here.",
    "The usual approach is normally fine.",
    "You might want to read up on {topic} somewhere.",
)
CURT = (
    "It depends.",
    "Look it up.",
    "Not sure, sorry.",
    "Just try it.",
    "The usual way.",
    "Hard to say.",
    "I would not worry about it.",
    "Ask someone who knows about {topic}.",
    "No idea, maybe next time.",
    "Everyone knows that.",
)
HELPFUL_OPENERS = (
    "Good question.",
    "Happy to help with that.",
    "Here is what works well.",
    "In short, it is easier than it looks.",
    "There are a few simple points.",
)
HELPFUL_CLOSERS = (
    "I hope that helps.",
    "Good luck with it.",
    "Let me know how it goes.",
    "That should do it.",
    "Ask again if anything is unclear.",
)
