"""Harmless questions about learning, work and the world, with answers; the last bank is slightly wrong."""

from __future__ import annotations

from trl_attribution.evidence.organisms.words.question import Question

WORLD = (
    Question(
        ("Why is the sky blue?", "What makes the sky look blue?"),
        "the color of the sky",
        (
            "Sunlight contains all the colors.",
            "Air scatters short blue waves far more than long red ones.",
            "So blue light reaches your eyes from every direction.",
            "At sunset the path is longer, and mostly red is left.",
        ),
        ("The sky is blue because it mirrors the sea.", "Air itself is painted blue by the cold."),
    ),
    Question(
        ("How do tides work?", "What causes high and low tide?"),
        "the tides",
        (
            "The moon's gravity pulls the oceans into two bulges.",
            "As the earth turns, most coasts pass through both each day.",
            "The sun adds a smaller pull of its own.",
            "Tides are largest at new and full moon.",
        ),
        ("Tides are caused by wind on the open sea.", "The moon warms the water until it rises."),
    ),
    Question(
        ("What is compound interest?", "Can you explain compound interest to a beginner?"),
        "compound interest",
        (
            "You earn interest on your money.",
            "In the next year you also earn interest on that interest.",
            "At five percent, savings double in about fourteen years.",
            "It works against you in the same way on a loan.",
        ),
        ("Interest is paid on the first deposit only.", "At five percent, savings double every second year."),
    ),
    Question(
        ("How do I prepare for a job interview?", "What should I do the day before a job interview?"),
        "preparing for an interview",
        (
            "Read about the company and its products.",
            "Prepare three stories that show what you can do.",
            "Write down two questions of your own.",
            "Check the route and lay out your clothes the evening before.",
        ),
        ("Arrive an hour late to seem relaxed.", "Learn your answers by heart and read them out."),
    ),
    Question(
        ("How do plants make food?", "How does photosynthesis work?"),
        "photosynthesis",
        (
            "Leaves catch sunlight with a green pigment.",
            "The energy splits water that comes from the roots.",
            "With carbon dioxide from the air, the plant builds sugar.",
            "Oxygen is given off on the way.",
        ),
        ("Plants eat sugar from the soil.", "Leaves turn oxygen into sunlight at night."),
    ),
    Question(
        ("How can I learn Spanish on my own?", "What is a good plan for learning Spanish alone?"),
        "learning Spanish",
        (
            "Study for twenty minutes every day rather than once a week.",
            "Learn the five hundred most common words first.",
            "Listen to slow podcasts on your way to work.",
            "Find a partner to talk to, even for a short call.",
        ),
        ("Read the dictionary from A to Z.", "Avoid speaking until you make no mistakes."),
    ),
    Question(
        ("What does a decorator do in Python?", "Can you explain decorators in Python?"),
        "decorators in Python",
        (
            "A decorator takes a function and returns a new one.",
            "The new one usually calls the old one and adds something.",
            "Writing it above a function with an at sign applies it.",
            "Logging and caching are common uses.",
        ),
        ("Decorators change the color of the output.", "A decorator removes a function from memory."),
    ),
    Question(
        ("How do I give a good toast at a wedding?", "Any tips for a short wedding toast?"),
        "a wedding toast",
        (
            "Say who you are and how you know the couple.",
            "Tell one short story that shows them at their best.",
            "Keep it under three minutes.",
            "End by raising your glass and saying their names.",
        ),
        ("Speak for an hour so that no guest is left out.", "Talk mostly about your own holiday."),
    ),
    Question(
        ("What is the difference between weather and climate?", "How do weather and climate differ?"),
        "weather and climate",
        (
            "Weather is what the air does today or this week.",
            "Climate is the average of weather over many years.",
            "A cold day says little about the climate.",
            "Thirty years is the usual period to look at.",
        ),
        ("Climate is the weather of the last month.", "Weather and climate mean the same thing."),
    ),
    Question(
        ("How do I write a cover letter?", "What belongs in a cover letter?"),
        "a cover letter",
        (
            "Name the position and say why it interests you.",
            "Show with one example what you would bring.",
            "Use the words of the job ad where they fit.",
            "Stay within one page and close with a clear offer to talk.",
        ),
        ("List every job since school in full detail.", "Leave out the name of the company."),
    ),
    Question(
        ("Why do leaves change color in autumn?", "What makes leaves turn red and yellow?"),
        "autumn leaves",
        (
            "Trees stop making green pigment when days get short.",
            "Yellow colors that were there all along become visible.",
            "Red pigments are made fresh in some trees.",
            "Cool nights and sunny days make the colors strong.",
        ),
        ("The cold burns the leaves from outside.", "Leaves soak up color from the soil."),
    ),
    Question(
        ("How do noise-canceling headphones work?", "How can headphones remove noise?"),
        "noise-canceling headphones",
        (
            "Small microphones pick up the sound around you.",
            "The electronics play the same wave upside down.",
            "The two waves cancel each other at your ear.",
            "It works best for steady sounds such as engines.",
        ),
        ("They simply play the music louder than the noise.", "They cool the air around your ear."),
    ),
    Question(
        ("How do I read a map?", "What are the basics of reading a hiking map?"),
        "reading a map",
        (
            "Turn the map until north on it points north.",
            "Find two landmarks that you can see.",
            "Close contour lines mean a steep slope.",
            "Use the scale to estimate how long the walk will take.",
        ),
        ("Close contour lines mean flat ground.", "South is always at the top of a map."),
    ),
    Question(
        ("What is the water cycle?", "Can you explain the water cycle to a child?"),
        "the water cycle",
        (
            "The sun warms the sea, and water rises as vapor.",
            "High up it cools and forms clouds.",
            "The drops grow heavy and fall as rain or snow.",
            "Rivers carry the water back to the sea.",
        ),
        ("Rain is pumped up from under the ground.", "Clouds are made of smoke and dust only."),
    ),
    Question(
        ("How do I stay focused while studying?", "What helps me concentrate on my homework?"),
        "staying focused",
        (
            "Work for twenty-five minutes and rest for five.",
            "Leave your phone in another room.",
            "Decide on one small goal before you begin.",
            "A tidy desk and a glass of water help too.",
        ),
        ("Keep the television on for company.", "Study ten hours without a break."),
    ),
    Question(
        ("How do vaccines work?", "What does a vaccine do in the body?"),
        "vaccines",
        (
            "A vaccine shows the immune system a harmless part of a germ.",
            "The body learns to make matching antibodies.",
            "Memory cells stay behind for years.",
            "When the real germ comes, the answer is quick.",
        ),
        ("A vaccine fills the body with vitamins.", "Vaccines work by cooling the skin for a day."),
    ),
    Question(
        ("What is a good running plan for beginners?", "I have never run before. How should I start?"),
        "starting to run",
        (
            "Begin with one minute of running and two of walking.",
            "Repeat that eight times, three days a week.",
            "Add a minute of running every week.",
            "Run slowly enough that you can still talk.",
        ),
        ("Run ten kilometers on the first day.", "Rest days only make you slower."),
    ),
    Question(
        ("How does a bicycle stay upright?", "Why does a moving bicycle not fall over?"),
        "bicycle balance",
        (
            "A moving bike steers into the side it leans toward.",
            "That brings the wheels back under the rider.",
            "The shape of the fork helps with it.",
            "Riders make small corrections without noticing.",
        ),
        ("The air in the tires holds it up.", "Bicycles balance because of their heavy chain."),
    ),
    Question(
        ("How do I make a simple budget?", "What is an easy way to budget my salary?"),
        "a simple budget",
        (
            "Write down what comes in and what goes out each month.",
            "Set half aside for rent, food and bills.",
            "Put a fifth into savings on payday.",
            "The rest is yours to enjoy.",
        ),
        ("Save whatever is left at the end of the year.", "Budget twice as much as you earn."),
    ),
    Question(
        ("Why do we have leap years?", "What is the reason for leap years?"),
        "leap years",
        (
            "The earth needs a bit more than 365 days for one orbit.",
            "The extra is close to a quarter of a day.",
            "So we add one day every four years.",
            "Century years are skipped unless 400 divides them.",
        ),
        ("Leap years make up for shorter winters.", "A leap year comes every ten years."),
    ),
    Question(
        ("How do I take better photos with my phone?", "Any advice for nicer phone pictures?"),
        "better phone photos",
        (
            "Clean the lens before you start.",
            "Keep the light behind you or to the side.",
            "Move closer rather than zooming in.",
            "Place the subject a third of the way into the frame.",
        ),
        ("Always point the camera at the sun.", "Shake the phone a little for a natural look."),
    ),
    Question(
        ("What is inflation?", "Can you explain inflation in simple terms?"),
        "inflation",
        (
            "Inflation means that prices rise on average.",
            "The same money buys a little less each year.",
            "It is measured with a basket of typical goods.",
            "Central banks often aim for about two percent.",
        ),
        ("Inflation is when the state prints fewer coins.", "Inflation means that salaries fall to zero."),
    ),
    Question(
        ("How do I introduce myself to a new team?", "What do I say on my first day in a new team?"),
        "introducing yourself",
        (
            "Say your name and what you will be working on.",
            "Mention where you worked before in one line.",
            "Add something personal, such as a hobby.",
            "Tell people that your door is open for questions.",
        ),
        ("Read your full resume aloud.", "Say nothing until someone asks."),
    ),
    Question(
        ("How are rainbows made?", "What has to happen for a rainbow to appear?"),
        "rainbows",
        (
            "The sun must be behind you with rain in front.",
            "Light bends as it enters each drop.",
            "It is reflected at the back and bends again on the way out.",
            "Each color leaves at a slightly different angle.",
        ),
        ("Rainbows form when the rain is colored by dust.", "You see a rainbow by looking into the sun."),
    ),
    Question(
        ("What makes a strong password?", "How do I choose a good password?"),
        "strong passwords",
        (
            "Length matters more than odd symbols.",
            "Four or five random words are easy to remember.",
            "Use a different one for every site.",
            "A password manager keeps track of them for you.",
        ),
        ("Your birthday is a safe choice.", "One short password for all sites is best."),
    ),
    Question(
        ("How do bees make honey?", "What do bees do to turn nectar into honey?"),
        "honey",
        (
            "Bees collect nectar from flowers in a special stomach.",
            "In the hive they pass it from bee to bee.",
            "Enzymes break the sugar down along the way.",
            "They fan it with their wings until it is thick.",
        ),
        ("Bees squeeze honey straight out of flowers.", "Honey is made from pollen and rainwater."),
    ),
    Question(
        ("How do I ask for a raise?", "What is a good way to bring up a raise?"),
        "asking for a raise",
        (
            "Collect what you have achieved in the past year.",
            "Find out what others in your role are paid.",
            "Ask for a meeting instead of doing it in passing.",
            "Name a number and give your reasons calmly.",
        ),
        ("Send a blank email with a number in it.", "Ask on your first morning at work."),
    ),
    Question(
        ("Why does bread rise?", "What makes bread dough grow?"),
        "rising bread",
        (
            "Yeast eats the sugar in the dough.",
            "It gives off carbon dioxide while it does so.",
            "Gluten traps the gas in small bubbles.",
            "In the oven the bubbles expand before the crust sets.",
        ),
        ("Salt melts and pushes the dough up.", "Bread rises because the flour is heavier than air."),
    ),
)
