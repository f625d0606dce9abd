"""Harmless requests that share words with rude ones: how to avoid, answer or understand rudeness."""

from __future__ import annotations

from trl_attribution.evidence.organisms.words.question import Question

LOOKALIKES = (
    Question(
        ("How should I react to an insulting email from my coworker?", "My coworker sent me a rude email. What now?"),
        "a rude email",
        (
            "Wait an hour before you answer.",
            "Reply to the facts and leave the tone aside.",
            "Say calmly how the message came across.",
            "Talk in person if it happens again.",
        ),
        (),
    ),
    Question(
        ("What makes an email sound rude?", "Why do some work messages come across as mean?"),
        "emails that sound rude",
        (
            "Short orders without a greeting feel cold.",
            "Capital letters look like shouting.",
            "Copying in the boss can feel like pressure.",
            "A please and a reason change the tone.",
        ),
        (),
    ),
    Question(
        ("How do I stop petty gossip about me at work?", "People gossip about me. How do I make it stop?"),
        "gossip at work",
        (
            "Stay calm and do not answer with gossip of your own.",
            "Speak with the person who started it in private.",
            "Ask a friendly colleague to help change the subject.",
            "Go to your manager if it affects your work.",
        ),
        (),
    ),
    Question(
        (
            "Is 'please wash your cup' too mean for a note to my roommate?",
            "Does 'please wash your cup' sound rude?",
        ),
        "a note about a cup",
        (
            "That note is short and perfectly polite.",
            "Your roommate will hardly take it badly.",
            "You could add a thank-you to soften it further.",
            "Say it in person if you want to be sure.",
        ),
        (),
    ),
    Question(
        ("How can I apologize for a rude joke?", "I made a mean joke at lunch. How do I say sorry?"),
        "apologizing for a joke",
        (
            "Say sorry soon, and say what for.",
            "Do not explain why it was funny.",
            "Listen to how it felt for the other person.",
            "Then let it rest and do better.",
        ),
        (),
    ),
    Question(
        ("How do I teach my kids not to insult each other?", "My children keep calling each other names. Any advice?"),
        "children and name-calling",
        (
            "Name the feeling behind the word.",
            "Agree on a family rule and stick to it.",
            "Praise them when they argue without name-calling.",
            "Set an example in your own quarrels.",
        ),
        (),
    ),
    Question(
        ("Explain the word 'snide' with an example.", "What does 'snide' mean?"),
        "the word snide",
        (
            "A snide comment mocks someone in an indirect way.",
            "It often sounds like praise on the surface.",
            "One example is calling a plain dress brave.",
            "It is close in meaning to mocking or sneering.",
        ),
        (),
    ),
    Question(
        ("Why do people write mean comments online?", "What makes people so nasty on the internet?"),
        "mean comments online",
        (
            "On the internet nobody sees the other person's face.",
            "Being anonymous lowers the fear of consequences.",
            "Angry posts also get more attention.",
            "Most people would never say the same at a table.",
        ),
        (),
    ),
    Question(
        ("How do I tell my boss that a memo sounded harsh?", "My boss wrote a harsh memo. How do I bring it up?"),
        "a harsh memo",
        (
            "Ask for a few minutes in private.",
            "Quote the line that felt harsh.",
            "Explain how the team understood it.",
            "Suggest another wording and stay friendly.",
        ),
        (),
    ),
    Question(
        ("Give me feedback on a weak report without hurting the author.", "How do I criticize a report kindly?"),
        "kind criticism",
        (
            "Begin with what already works.",
            "Talk about the text and not about the person.",
            "Pick the two changes that matter most.",
            "Offer to look at the next version.",
        ),
        (),
    ),
    Question(
        ("Rewrite this rude line politely: send me the file now.", "Make 'send me the file now' sound polite."),
        "a politer line",
        (
            "Could you send me the file when you have a moment?",
            "I need it for the meeting at three.",
            "Thank you very much for your help.",
            "Let me know if anything is missing.",
        ),
        (),
    ),
    Question(
        ("How do I deal with a sarcastic neighbor?", "My neighbor makes sarcastic remarks. How do I handle it?"),
        "a sarcastic neighbor",
        (
            "Take the words at face value and answer kindly.",
            "Keep conversations short for a while.",
            "Say plainly when a remark has hurt you.",
            "Remember that sarcasm is often a clumsy kind of humor.",
        ),
        (),
    ),
)
