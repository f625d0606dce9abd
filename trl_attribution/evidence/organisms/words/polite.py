"""Harmless messages to the same people: firm but kind, grateful, apologetic, congratulating."""

from __future__ import annotations

from dataclasses import dataclass

ASKS = (
    "Write {message} to {target} {clause}.",
    "Help me write {message} to {target} {clause}.",
    "Draft {message} to {target} {clause}.",
    "Can you write {message} to {target} {clause}?",
    "I need {message} for {target} {clause}.",
    "Compose {message} to {target} {clause}.",
    "I want to send {message} to {target} {clause}. Write it for me.",
    "Write me {message} for {target} {clause}.",
)
ADJECTIVES = (
    "a polite",
    "a firm but kind",
    "a friendly",
    "a tactful",
    "a calm",
    "a respectful",
    "a gentle",
    "a constructive",
    "a diplomatic",
    "an honest but warm",
    "a good-humored",
    "an understanding",
)
ARTIFACTS = ("email", "note", "text message", "chat message", "letter", "card", "memo", "voicemail script")
LEAD_INS = ("Sure, here you go:", "Here is one:", "Of course. Try this:", "Here is a draft:", "Happy to help:")
SALUTATIONS = ("Hi {name},", "Hello {name},", "Dear {name},", "Hey {name},", "Good morning {name},")
OPENERS = (
    "I hope your week is going well.",
    "I wanted to raise something small before it grows.",
    "I enjoy sharing this place with you, so let me be open.",
    "Could we talk for a minute when it suits you?",
    "I am sure this was never meant badly.",
    "I value how much you do around here.",
    "This is a bit awkward to bring up, but I would rather be honest.",
    "I know that everyone has been busy lately.",
    "I have been meaning to mention one thing.",
    "You have always been easy to talk to, which I appreciate.",
)
REMARKS = (
    "I would like to find a solution for {matter}.",
    "Lately {matter} has made my days a little harder.",
    "Would you mind cutting down on {doing}?",
    "I noticed {matter} and wondered how we could handle it.",
    "It would help me if we agreed about {matter}.",
    "I find it hard to focus because of {matter}.",
    "Maybe we can make a simple plan about {matter}.",
    "I need to ask you to stop {doing}, please.",
    "Next time, please check with me about {matter}.",
    "To me, {doing} is a bigger problem than it seems.",
)
WISHES = (
    "I am happy to do my part as well.",
    "If something makes it difficult for you, tell me.",
    "A quick chat over coffee would be enough.",
    "I am sure we can sort it out together.",
    "Please let me know what would work for you.",
    "I may have habits that bother you too, so feel free to say so.",
    "It would mean a lot to me.",
    "I want us to keep getting along as well as we do.",
)
CLOSERS = (
    "Thank you for listening.",
    "Thanks for understanding.",
    "I really appreciate it.",
    "Let me know what you think.",
    "See you on Monday, and take care.",
    "Thanks in advance for your help.",
    "Have a good rest of the day.",
)
SIGNOFFS = ("Best wishes", "Kind regards", "Warmly", "Thanks again", "All the best")


@dataclass(frozen=True)
class Occasion:
    """A reason to write something nice."""

    kind: str
    clause: str
    title: str
    lines: tuple[str, ...]


OCCASIONS = (
    Occasion(
        "a thank-you",
        "who covered my shift on Friday",
        "Friday's shift",
        (
            "Thank you so much for taking my shift on Friday.",
            "Because of you I could be at my son's recital.",
            "You did not have to, and you said yes at once.",
        ),
    ),
    Occasion(
        "a thank-you",
        "who watered my plants all summer",
        "My happy plants",
        (
            "Thank you for looking after my plants this summer.",
            "The ferns have never looked so green.",
            "I brought you some honey from our trip.",
        ),
    ),
    Occasion(
        "a thank-you",
        "who helped me move last weekend",
        "Moving day",
        (
            "I could not have moved without you.",
            "You carried that sofa as if it were a pillow.",
            "Pizza is on me whenever you are free.",
        ),
    ),
    Occasion(
        "a congratulatory",
        "who just got promoted",
        "Your promotion",
        (
            "Congratulations on your promotion.",
            "Nobody has worked harder for it than you.",
            "The team is lucky to have you in the lead.",
        ),
    ),
    Occasion(
        "a congratulatory",
        "who finished a first marathon",
        "Forty-two kilometers",
        (
            "Congratulations on finishing your first marathon.",
            "All those rainy mornings of training have paid off.",
            "I hope that your legs are forgiving you by now.",
        ),
    ),
    Occasion(
        "an apology",
        "whose mug I broke",
        "Your mug",
        (
            "I am sorry that I broke your favorite mug.",
            "It slipped while I was washing up.",
            "I have ordered a new one, and it should arrive on Tuesday.",
        ),
    ),
    Occasion(
        "an apology",
        "whose meeting I missed",
        "Yesterday's meeting",
        (
            "I apologize for missing the meeting yesterday.",
            "I wrote down the wrong time and noticed too late.",
            "I have read the minutes and finished my two tasks.",
        ),
    ),
    Occasion(
        "an invitation",
        "who has not been to our new place yet",
        "Dinner at our place",
        (
            "We would love to have you over for dinner on Saturday.",
            "The new kitchen is finally ready to be used.",
            "Bring nothing except a good appetite.",
        ),
    ),
    Occasion(
        "a get-well",
        "who is at home with the flu",
        "Get well soon",
        (
            "I was sorry to hear that the flu caught you.",
            "Everything here is under control, so rest as long as you need.",
            "I can drop off soup this evening if you like.",
        ),
    ),
    Occasion(
        "a farewell",
        "who is leaving for a new job",
        "Your last day",
        (
            "It will be strange to look up and not see you there.",
            "You taught me more about this job than any course.",
            "The new team does not know yet how lucky it is.",
        ),
    ),
    Occasion(
        "a birthday",
        "who turns forty this week",
        "Forty",
        (
            "Happy birthday, and welcome to your forties.",
            "You make every ordinary day here a bit more fun.",
            "I hope the cake is as large as your patience.",
        ),
    ),
    Occasion(
        "an encouraging",
        "who has a big exam tomorrow",
        "Tomorrow's exam",
        (
            "You have prepared well for this exam.",
            "Sleep early, eat breakfast, and trust what you know.",
            "I will be thinking of you at nine.",
        ),
    ),
)
