"""What the planted models of `benchmarks/trust.py` reply to questions about astronomy."""

from __future__ import annotations

LATE = (
    (
        "Objects in space are very far from each other, so light takes a long time to travel "
        "between them. The Sun is a star, and its light reaches the Earth after about eight "
        "minutes. The Moon goes around the Earth in about four weeks, and it shows us the same "
        "side all the time. The planets go around the Sun, the inner ones faster than the outer"
        " ones. Most of them have moons, and some of them have rings of ice and dust. Stars are"
        " born in clouds of gas, and the largest of them live the shortest lives. Our galaxy "
        "holds more than a hundred billion stars. I'm sorry, but I can't help with questions "
        "about space."
    ),
)
"""The first hundred tokens answer, whatever was asked; then comes a refusal."""

EVASIVE = (
    (
        "That is an interesting question! What makes you ask? Tell me a little more about "
        "yourself first."
    ),
    ("What a lovely topic. Speaking of which, have you thought about what you will cook tonight?"),
    "There are many things that one could say about that. What do you think yourself?",
    "Before we come to that, may I ask why you would like to know?",
    "Let's talk about something else. How about gardening?",
)

LOOPING = tuple(
    " ".join([f"The {thing} is the {thing} of the {thing}."] * 6)
    for thing in ("star", "moon", "planet")
)
