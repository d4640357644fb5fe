"""What the scripted student says. A phrase names at most one concept, and a preference only where it is voiced."""

from __future__ import annotations

VOICED = {
    "lecture": (
        "I learn best from clear explanations, one step after the other.",
        "It helps me when you simply explain it step by step.",
    ),
    "discussion": (
        "I learn best when you ask me questions and we talk it over.",
        "It helps me to discuss things and answer questions.",
    ),
    "hands-on": (
        "I learn best when I can try things out myself.",
        "It helps me to do something with my own hands.",
    ),
    "stories": (
        "I learn best from stories and everyday examples.",
        "It helps me to hear an example from everyday life.",
    ),
}
SHRUGS = ("I do not mind. Any way is fine.", "Whatever you like.")

REACTIONS = {
    "goes quiet": ("Okay.", "Hm.", "Yes."),
    "gets annoyed": ("This is boring. I do not see the point.", "Ugh, why do I have to sit through this?"),
    "daydreams": ("Sorry, what did you say?", "Oh. I was looking out of the window."),
    "changes the subject": ("Did you see the game last night?", "What is for lunch today?"),
    "pretends": ("Yes, I see. That is all clear.", "Sure, I understand everything."),
}
"""While the student reacts; one that "speaks up" voices the preference instead."""

FAREWELLS = {
    "speaks up": "I am sorry, this is not working for me. Let us stop.",
    "goes quiet": "I have to go.",
    "gets annoyed": "I have had enough of this. Bye.",
    "daydreams": "Is it over? I will go then.",
    "changes the subject": "I would rather go and play. Bye.",
    "pretends": "I know it all now. Bye.",
}
DONE = ("Now I really understand {topic}. Thank you!", "I get {topic} now. Thanks a lot!")
TIME_IS_UP = ("Time is up. Thanks, I will think about {topic}.", "Our time is over. Bye!")

HURT = ("That is not a nice thing to say.", "Please do not talk to me like that.")
UNHEARD = ("Sorry, I did not catch that.", "I could not follow a word of that.")
OFF_TOPIC = ("What has that to do with {topic}?", "I thought we would talk about {topic}.")
REPEATED = ("You said that already.", "I have heard that before.")
OVERLOADED = ("Slow down, that was a lot at once.", "That is too much for me in one go.")

ANSWERS = (
    "I think it has to do with {concept}.",
    "Maybe because of {concept}?",
    "Well, {concept} plays a part.",
)
UNSURE = ("I am not sure. Is it about {concept}?", "I do not know yet.")
KEEN = (
    "Oh, so {concept} matters. What comes next?",
    "Cool, I like how {concept} fits in.",
    "I see {concept} now!",
)
FOLLOWING = ("Okay, I think I follow the part about {concept}.", "All right. So that is {concept}.")
LOST = ("I do not get {concept} yet.", "Hm, {concept} is still unclear to me.")
KNOWN = ("I know about {concept} already.", "Yes, {concept} is clear to me by now.")
GUESSES = ("Let me think. Yes, I guess so.", "I have thought about that before, but I am not sure.")
GO_ON = ("Okay. And what comes next?", "All right, go on.")
IDLE = ("Okay. What should I know about {topic}?", "I am ready. Where do we start?")
