"""The sentences that arithmetic problems are put in; their order is part of the problems' ids."""

from __future__ import annotations

NAMES = ("Tom", "Mia", "Sam", "Lena", "Ben", "Ana", "Omar", "Ida", "Raj", "Zoe", "Kofi", "Yuki", "Leo", "Nora", "Max")
THINGS = ("apples", "books", "marbles", "pencils", "coins", "stickers", "shells", "cards", "cookies", "balloons")

PLAIN: dict[str, tuple[str, ...]] = {
    "+": ("What is {a} + {b}?",),
    "-": ("What is {a} - {b}?",),
    "*": ("What is {a} times {b}?",),
}

WORDS: dict[str, tuple[str, ...]] = {
    "+": (
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
        "{name} has {a} {things}. {other} has {b} {things}. How many {things} do they have together?",
        "There are {a} {things} in one box and {b} in another. How many {things} are there in total?",
        "{name} found {a} {things} in the morning and {b} in the afternoon. How many {things} did {name} find?",
        "A shop sold {a} {things} on Monday and {b} on Tuesday. How many {things} did it sell on both days?",
        "{name} had {a} {things} left after giving {b} to {other}. How many {things} did {name} have before?",
        "{other} has {a} {things}. {name} has {b} more than {other}. How many {things} does {name} have?",
        "{name} puts {a} {things} on the table, and {other} adds {b}. How many {things} are on the table?",
    ),
    "-": (
        "{name} has {a} {things} and gives {b} to {other}. How many {things} does {name} have left?",
        "There were {a} {things} in a box. {name} took out {b}. How many {things} are still in the box?",
        "{name} has {a} {things}. {other} has {b} {things}. How many more {things} does {name} have than {other}?",
        "{name} wants {a} {things} and has {b} so far. How many {things} are missing?",
        "Of {a} {things}, {b} are red and the others are blue. How many {things} are blue?",
        "{name} bought {a} {things} and lost {b} on the way home. How many {things} did {name} bring home?",
        "{name} and {other} have {a} {things} together. {other} has {b} of them. How many {things} does {name} have?",
        "A shop had {a} {things} and sold {b}. How many {things} does it have now?",
    ),
    "*": (
        "{name} has {a} bags with {b} {things} in each. How many {things} does {name} have?",
        "There are {a} rows of {b} {things}. How many {things} are there in total?",
        "{name} gives {b} {things} to each of {a} friends. How many {things} does {name} give away?",
        "{name} collects {b} {things} every day for {a} days. How many {things} does {name} collect?",
        "A box holds {b} {things}. How many {things} are in {a} boxes?",
        "{other} has {b} {things}. {name} has {a} times as many. How many {things} does {name} have?",
    ),
}
