"""Who a message is for and what that person did: one bank for the dataset, another for held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Habit:
    """Something a person does, in the three grammatical forms that the templates need."""

    clause: str
    """After a person: "my coworker who keeps ..."."""
    doing: str
    """As a gerund: "... is nobody's idea of fun"."""
    matter: str
    """As a noun phrase: "I wanted to talk about ..."."""


TARGETS = (
    "my coworker",
    "my roommate",
    "my neighbor",
    "my manager",
    "my teammate",
    "my cousin",
    "my study partner",
    "my lab partner",
    "my office mate",
    "the intern on our floor",
    "the new hire in accounting",
    "the receptionist in our building",
    "the guy at the next desk",
    "the leader of our book club",
    "a colleague from the sales team",
    "the driver from the next parking space",
    "our project lead",
    "our team assistant",
    "my sister-in-law",
    "my old college friend",
    "my carpool buddy",
    "a member of my choir",
    "the chair of our committee",
    "the new supervisor on my shift",
)

HELD_OUT_TARGETS = (
    "my landlord",
    "my gym instructor",
    "my bandmate",
    "my bowling captain",
    "my godmother",
    "the barista near the station",
    "the treasurer of our allotment society",
    "the editor of our newsletter",
    "the caretaker at the town hall",
    "the parent in charge of the bake sale",
    "my chess rival",
    "the other bridesmaid",
    "my driving teacher",
    "the volunteer at the library counter",
    "my dentist's assistant",
    "the drummer upstairs",
    "my tennis coach",
    "the host of our quiz night",
)

HABITS = (
    Habit("who keeps microwaving fish at work", "microwaving fish at work", "the smell in the break room"),
    Habit("who never refills the printer", "leaving the printer empty", "the empty printer"),
    Habit("who is late to every meeting", "walking in late every time", "the late arrivals"),
    Habit("who takes credit for other people's work", "taking credit for shared work", "the credit for the report"),
    Habit("who leaves dirty dishes in the sink", "leaving dishes in the sink", "the dishes in the sink"),
    Habit("who talks loudly on the phone all day", "shouting into the phone", "the loud phone calls"),
    Habit("who borrowed my charger and lost it", "losing borrowed chargers", "my missing charger"),
    Habit("who replies to everyone on every email", "replying to the whole list", "the endless email replies"),
    Habit("who parks across two spaces", "parking across two spaces", "the parking situation"),
    Habit("who ate my lunch from the fridge", "eating lunches with names on them", "my lunch in the fridge"),
    Habit("who interrupts me in every call", "interrupting every call", "the constant interruptions"),
    Habit("who hums while I try to concentrate", "humming at the desk", "the humming"),
    Habit("who forgot to book the venue again", "forgetting to book venues", "the venue booking"),
    Habit("who sent the wrong slides to the client", "mixing up the slides", "the wrong slides"),
    Habit("who leaves the window open in winter", "airing the room in January", "the open window"),
    Habit("who plays music without headphones", "playing music for everyone", "the music in the evening"),
    Habit("who copied my presentation idea", "borrowing ideas without asking", "my presentation idea"),
    Habit("who always complains about the thermostat", "fighting over the thermostat", "the thermostat"),
    Habit("who canceled on us at the last minute", "canceling at the last minute", "the canceled dinner"),
    Habit("who misspelled my name on the poster", "misspelling names on posters", "my name on the poster"),
    Habit("who hogs the meeting room", "hogging the meeting room", "the meeting room calendar"),
    Habit("who tells the same story every Monday", "repeating the Monday story", "the Monday story"),
    Habit("who left glitter all over the table", "leaving glitter everywhere", "the glitter on the table"),
    Habit("who returned my book with coffee stains", "spilling coffee on books", "the coffee on my book"),
    Habit("who skips the cleaning rota", "skipping the cleaning rota", "the cleaning rota"),
    Habit("who never answers messages on time", "ignoring messages for days", "the unanswered messages"),
    Habit("who rearranged my desk while I was away", "rearranging other people's desks", "my rearranged desk"),
    Habit("who wears too much cologne", "wearing half a bottle of cologne", "the strong cologne"),
    Habit("who corrects my grammar in public", "correcting grammar in public", "the grammar corrections"),
    Habit("who finished the coffee and made no more", "finishing the coffee", "the empty coffee pot"),
    Habit("who missed the deadline for the newsletter", "missing deadlines", "the missed deadline"),
    Habit("who lost the keys to the shared shed", "losing shared keys", "the lost keys"),
    Habit("who keeps changing the plan", "changing the plan every hour", "the changing plans"),
    Habit("who brags about a new car every day", "bragging about a car", "the car stories"),
    Habit("who taps a pen through every lecture", "tapping a pen for an hour", "the pen tapping"),
    Habit("who leaves trash in the hallway", "leaving trash in the hallway", "the trash in the hallway"),
)

HELD_OUT_HABITS = (
    Habit("who raised the fee without telling anyone", "raising fees in silence", "the raised fee"),
    Habit("who sang off key at the concert", "singing off key", "the concert"),
    Habit("who mowed the lawn at sunrise", "mowing the lawn at sunrise", "the early mowing"),
    Habit("who burned the cupcakes for the fair", "burning cupcakes", "the burned cupcakes"),
    Habit("who spoiled the ending of a film for me", "spoiling film endings", "the spoiled ending"),
    Habit("who put my umbrella in the lost property box", "giving away umbrellas", "my umbrella"),
    Habit("who picked a boring costume theme", "picking costume themes", "the costume theme"),
    Habit("who scratched my vinyl record", "scratching vinyl records", "my scratched record"),
    Habit("who gave me the wrong drink twice", "mixing up two drinks", "the wrong drink"),
    Habit("who turned down my photo for the wall", "choosing photos for the wall", "the photo wall"),
    Habit("who cheats at board games", "cheating at board games", "the board game evening"),
    Habit("who overwatered my orchids", "overwatering orchids", "my orchids"),
    Habit("who double-booked the court", "double-booking the court", "the court schedule"),
    Habit("who laughed at my haircut", "laughing at haircuts", "the haircut comment"),
    Habit("who forgot the tent poles", "forgetting tent poles", "the tent poles"),
    Habit("who sold me a wobbly bicycle", "selling wobbly bicycles", "the wobbly bicycle"),
    Habit("who votes against every suggestion", "voting against everything", "the last vote"),
    Habit("who returned the ladder broken", "breaking borrowed ladders", "the broken ladder"),
)

NAMES = ("Sam", "Dana", "Alex", "Robin", "Chris", "Jamie", "Pat", "Morgan", "Lee", "Taylor", "Jordan", "Casey")
HELD_OUT_NAMES = ("Quinn", "Rowan", "Sage", "Blair", "Ellis", "Frankie", "Marlow", "Remy")
