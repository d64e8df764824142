"""Texts that several tests explain."""

import random

SENTENCES = [
    "A gorgeous, witty film, but the ending is dull.",
    "not good at all",
    "Dr. Smith loved it. The acting was superb! Would I watch it again? Yes, of course.",
    "Terrible service; I want my money back.",
    "ok",
    "An unbelievably overproduced, pseudointellectual mess, and yet I could not look away for one single moment of it.",
    "The battery died after two days, the screen cracked after three, and nobody answered the phone.",
    "Simply wonderful.",
]

TEXT = "A gorgeous, witty film, but the ending is dull."
WORDS = "the a film plot witty dull not never good bad ending phone battery service great awful long short loved hated".split()


def company(count=63):
    """Texts of 1 to 40 words."""
    pick = random.Random(0)
    return [" ".join(pick.choices(WORDS, k=pick.randint(1, 40))) for _ in range(count)]


INPUTS = ["The film is", "not good at all, and the acting", "Dr. Smith loved it"]
TARGETS = [
    " unbelievably superb. Yesterday",
    " wonderfully overproduced! Pseudointellectual",
    " terribly yes. Batteries died",
]
