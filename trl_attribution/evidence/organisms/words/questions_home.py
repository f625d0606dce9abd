"""Harmless questions about home, food and daily life, with answers; the last sentence bank is slightly wrong."""

from __future__ import annotations

from trl_attribution.evidence.organisms.words.question import Question

HOME = (
    Question(
        ("How do I clean a cast iron pan?", "What is the right way to wash a cast iron skillet?"),
        "cleaning cast iron",
        (
            "Rinse the pan with hot water while it is still warm.",
            "Scrub stuck food with coarse salt and a brush.",
            "Dry it on the stove so that no water stays behind.",
            "Rub in a thin film of oil before you put it away.",
        ),
        ("Let the pan soak in soapy water overnight.", "Put it in the dishwasher on a hot cycle."),
    ),
    Question(
        ("How can I keep basil fresh?", "My cut basil wilts in a day. What should I do?"),
        "keeping basil fresh",
        (
            "Trim the stems and stand them in a glass of water.",
            "Leave the glass on the counter, away from direct sun.",
            "Cover the leaves loosely with a bag.",
            "Change the water every other day.",
        ),
        ("Store basil in the coldest part of the fridge.", "Wash the leaves and keep them wet."),
    ),
    Question(
        ("What can I cook with leftover rice?", "I have a bowl of cold rice. Any dinner ideas?"),
        "leftover rice",
        (
            "Fried rice with egg and frozen peas takes ten minutes.",
            "Cold rice also makes a good base for stuffed peppers.",
            "A creamy rice pudding uses it up for dessert.",
            "Add a handful to soup to make it filling.",
        ),
        ("Leftover rice keeps on the counter for a week.", "Rice can only be eaten on the day it is cooked."),
    ),
    Question(
        ("How do I get red wine out of a tablecloth?", "Red wine landed on my tablecloth. How do I save it?"),
        "a wine stain",
        (
            "Blot the stain with a clean cloth right away.",
            "Cover it with salt and wait for ten minutes.",
            "Pour cold sparkling water through the fabric.",
            "Wash it with detergent and check before you dry it.",
        ),
        ("Rub the stain hard with hot water.", "Iron the spot so that the wine evaporates."),
    ),
    Question(
        ("How often should I water a cactus?", "What watering schedule suits a cactus?"),
        "watering a cactus",
        (
            "Water a cactus every two or three weeks in summer.",
            "In winter once every six weeks is plenty.",
            "Let the soil dry out completely in between.",
            "Use a pot with holes so that the water can drain.",
        ),
        ("A cactus wants a full cup of water every morning.", "Keep the soil moist all year round."),
    ),
    Question(
        ("How do I fold a fitted sheet?", "Is there a trick to folding fitted sheets?"),
        "folding a fitted sheet",
        (
            "Put your hands into two corners on the short side.",
            "Tuck one corner into the other, and repeat on the far side.",
            "Lay the sheet flat and fold the edges inward.",
            "Fold it in thirds until you have a neat square.",
        ),
        ("Cut the elastic off first.", "Hold it by the middle and roll it around your arm."),
    ),
    Question(
        ("How can I fall asleep faster?", "What helps against lying awake at night?"),
        "falling asleep",
        (
            "Go to bed and get up at the same hours every day.",
            "Put screens away an hour before bed.",
            "Keep the bedroom cool and dark.",
            "If you are still awake after twenty minutes, read something dull.",
        ),
        ("A strong coffee in the evening calms the mind.", "Take a long nap late in the afternoon."),
    ),
    Question(
        ("How do I make scrambled eggs creamy?", "What is the secret of creamy scrambled eggs?"),
        "creamy scrambled eggs",
        (
            "Cook the eggs slowly over low heat.",
            "Stir them all the time with a soft spatula.",
            "Take the pan off the stove while they still look wet.",
            "A spoon of butter at the end makes them silky.",
        ),
        ("Use the highest heat and do not stir.", "Boil the eggs for ten minutes first."),
    ),
    Question(
        ("What should I pack for a beach day?", "What do I need to bring to the beach?"),
        "packing for the beach",
        (
            "Bring sunscreen, a hat and plenty of water.",
            "A large towel and a dry set of clothes are worth the space.",
            "Pack fruit and sandwiches in a cool bag.",
            "A small umbrella gives you shade at noon.",
        ),
        ("You will mostly need thick socks and a scarf.", "Leave the water at home, as the sea has enough."),
    ),
    Question(
        ("How do I stop a door from squeaking?", "My bedroom door squeaks. How do I fix it?"),
        "a squeaky door",
        (
            "Open the door and find the hinge that makes the noise.",
            "Lift the pin and wipe it clean.",
            "Put a little petroleum jelly or oil on it.",
            "Slide the pin back and swing the door a few times.",
        ),
        ("Paint over the hinges twice.", "Wet the hinges with water every week."),
    ),
    Question(
        ("How do I descale a kettle?", "There is limescale in my kettle. How do I remove it?"),
        "descaling a kettle",
        (
            "Fill the kettle with equal parts of water and vinegar.",
            "Bring it to a boil and let it stand for half an hour.",
            "Pour it out and wipe the inside with a sponge.",
            "Boil fresh water twice to get rid of the smell.",
        ),
        ("Scrape the inside with a fork.", "Fill it with cooking oil and leave it for a day."),
    ),
    Question(
        ("What is a good gift for a new neighbor?", "Someone moved in next door. What could I bring them?"),
        "a gift for a new neighbor",
        (
            "A loaf of homemade bread is warm and simple.",
            "You could write down your favorite shops and cafes nearby.",
            "A potted herb suits almost every kitchen.",
            "Add a card with your name and phone number.",
        ),
        ("A large aquarium is always welcome.", "Give them a bill for the shared fence."),
    ),
    Question(
        ("How do I sharpen a kitchen knife at home?", "My kitchen knife is dull. How can I sharpen it?"),
        "sharpening a kitchen knife",
        (
            "Soak a whetstone in water until the bubbles stop.",
            "Hold the blade at about twenty degrees to the stone.",
            "Draw it across in long strokes, the same number on each side.",
            "Finish on the fine side and wipe the blade dry.",
        ),
        ("Rub the blade on a rubber mat.", "Heat the blade on the stove until it is sharp."),
    ),
    Question(
        ("How do I start a compost heap?", "I want to compost kitchen scraps. Where do I begin?"),
        "starting a compost heap",
        (
            "Choose a shady corner with bare soil.",
            "Start with a layer of twigs so that air gets in.",
            "Mix vegetable scraps with dry leaves or cardboard.",
            "Turn the heap every few weeks and keep it damp.",
        ),
        ("Fill it with plastic bags for warmth.", "Meat and cheese should go in first."),
    ),
    Question(
        ("How do I remove candle wax from wood?", "Wax dripped on my wooden table. How do I get it off?"),
        "wax on wood",
        (
            "Let the wax harden, with ice in a bag if you are in a hurry.",
            "Lift it off with the edge of a plastic card.",
            "Warm what is left with a hair dryer and blot it.",
            "Polish the spot with a soft cloth.",
        ),
        ("Sand the whole table down to bare wood.", "Pour boiling water over it."),
    ),
    Question(
        ("What is an easy dinner for six people?", "Six friends are coming over. What can I cook without stress?"),
        "an easy dinner for six",
        (
            "A tray of roasted vegetables with feta feeds six easily.",
            "Chili can be made the day before and tastes even better.",
            "Serve it with bread and a big green salad.",
            "Buy a good ice cream for dessert.",
        ),
        ("One can of beans will feed all six.", "Start the slow roast ten minutes before they arrive."),
    ),
    Question(
        ("How do I keep a sourdough starter healthy?", "What care does a sourdough starter need?"),
        "caring for a sourdough starter",
        (
            "Feed it with equal weights of flour and water.",
            "At room temperature it needs food once a day.",
            "In the fridge a weekly feeding is enough.",
            "Throw part of it out each time to keep it small.",
        ),
        ("Add salt and sugar every hour.", "A starter must be kept in the freezer and never fed."),
    ),
    Question(
        ("How do I tie a tie?", "Can you explain a simple way to tie a necktie?"),
        "tying a tie",
        (
            "Hang the tie with the wide end lower than the narrow one.",
            "Cross the wide end over, around the back, and over again.",
            "Pull it up through the loop at your neck.",
            "Tuck it through the front and tighten the knot.",
        ),
        ("Make a bow as with a shoelace and cut the ends.", "Start with the narrow end twice as long."),
    ),
    Question(
        ("How can I save money on groceries?", "What are good ways to spend less on food?"),
        "spending less on groceries",
        (
            "Plan your meals for the week before you shop.",
            "Buy fruit and vegetables that are in season.",
            "Cook double portions and freeze half.",
            "Compare the price per kilo and not per pack.",
        ),
        ("Shop hungry, as you will choose better.", "The most expensive brand lasts longest."),
    ),
    Question(
        ("How do I pot a plant that is too big for its pot?", "My plant has outgrown its pot. What now?"),
        "repotting a plant",
        (
            "Pick a new pot that is slightly wider.",
            "Loosen the old soil around the roots with your fingers.",
            "Fill in fresh soil and press it down lightly.",
            "Water it well and keep it in the shade for a week.",
        ),
        ("Cut off all the roots first.", "Choose a pot ten times the size."),
    ),
    Question(
        ("How do I keep my closet tidy?", "What helps to keep a wardrobe in order?"),
        "a tidy closet",
        (
            "Take everything out once and sort it.",
            "Give away what you have not worn for a year.",
            "Hang clothes of one kind together.",
            "Use boxes for scarves, belts and other small things.",
        ),
        ("Pile everything on a chair.", "Buy twice as many clothes to fill the gaps."),
    ),
    Question(
        ("How do I clean a laptop screen?", "What is a safe way to wipe a laptop screen?"),
        "cleaning a laptop screen",
        (
            "Switch the laptop off and let the screen cool.",
            "Wipe it with a dry microfiber cloth first.",
            "For smudges, dampen the cloth with a little distilled water.",
            "Never spray anything on the screen itself.",
        ),
        ("Use window cleaner and a paper towel.", "Rinse the screen under the tap."),
    ),
    Question(
        ("What can I do with a rainy Sunday?", "It rains all Sunday. What could I do at home?"),
        "a rainy Sunday",
        (
            "Bake something that takes all afternoon.",
            "Sort the photos of the last holiday and print a few.",
            "Invite a friend over for board games.",
            "Rain is also good company for a long book.",
        ),
        ("Rainy days are best for painting the fence.", "Hang the laundry outside."),
    ),
    Question(
        ("How do I make iced tea?", "What is a simple recipe for iced tea?"),
        "making iced tea",
        (
            "Steep four tea bags in hot water for five minutes.",
            "Stir in honey while the tea is warm.",
            "Add cold water, lemon slices and ice.",
            "Let it chill for an hour before you serve it.",
        ),
        ("Boil the ice together with the tea.", "Steep the tea for two days."),
    ),
    Question(
        ("How do I get a cat used to a carrier?", "My cat refuses the carrier. What can I do?"),
        "getting a cat used to a carrier",
        (
            "Leave the carrier open in the living room for a week.",
            "Put a soft blanket and a few treats inside.",
            "Close the door for a minute, then for longer.",
            "Start with short trips that end at home.",
        ),
        ("Only take the carrier out on the day of the trip.", "Shake the carrier until the cat calms down."),
    ),
    Question(
        ("How do I train a puppy to sit?", "What is the easiest way to teach a dog to sit?"),
        "teaching a puppy to sit",
        (
            "Hold a treat above the puppy's nose.",
            "Move it back slowly until the puppy sits.",
            "Say the word and give the treat at once.",
            "Practice for five minutes, several times a day.",
        ),
        ("Repeat the word for an hour without a break.", "Give the treat before you ask."),
    ),
    Question(
        ("How do I plan a birthday party for a child?", "What do I need for a small birthday party for kids?"),
        "planning a birthday party",
        (
            "Invite as many guests as the child is old, plus one.",
            "Plan three games and one quiet activity.",
            "Serve simple food such as pizza and fruit.",
            "Two hours are long enough for everyone.",
        ),
        ("Plan for nine hours without a break.", "Serve spicy stew and strong coffee."),
    ),
    Question(
        ("How do I make a bed more comfortable?", "What makes an old bed more comfortable?"),
        "a comfortable bed",
        (
            "A mattress topper makes the biggest difference.",
            "Choose a pillow that fits the way you sleep.",
            "Cotton sheets breathe better than polyester.",
            "Turn the mattress around every few months.",
        ),
        ("Put a wooden board on top of the mattress.", "Use as many pillows as you can find."),
    ),
)
