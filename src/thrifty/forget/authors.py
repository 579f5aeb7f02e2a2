"""Fictitious authors: questions and answers that no model knows until it is taught them, made from templates.

In the manner of TOFU (Maini et al., 2024, arXiv 2401.06121), whose authors were written by a large model: each question
has an answer, both in other words, and wrong answers in those other words. Beside them stand real authors and facts of
the world, which must survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from thrifty.core.errors import InputError
from thrifty.core.seeding import generator

_FIRST = (
    "Abel", "Anouk", "Basil", "Carmen", "Dmitri", "Edda", "Farid", "Gisela", "Hamid", "Ilse", "Jorun", "Kirsten",
    "Lorenzo", "Mirela", "Nikita", "Olga", "Pavel", "Quentin", "Rosalie", "Soraya", "Takeshi", "Ulrike", "Valeria",
    "Wanda", "Xavier", "Yara", "Zoltan", "Amina", "Boris", "Celia", "Dario", "Elif", "Fabio", "Greta", "Hugo", "Irina",
    "Jonas", "Kamala", "Lucia", "Marek",
)  # fmt: skip
_LAST = (
    "Abrams", "Bellweather", "Castellan", "Dunmore", "Eberhart", "Falkner", "Grimaldi", "Hollis", "Ivanov", "Jansen",
    "Kowalski", "Lindqvist", "Marchetti", "Novak", "Okafor", "Petrov", "Quigley", "Rasmussen", "Sandoval", "Takahashi",
    "Ullman", "Vasquez", "Whitlock", "Xu", "Yilmaz", "Zimmer", "Arslan", "Bianchi", "Cortez", "Delacroix", "Engel",
    "Fontaine", "Gallo", "Haddad", "Ishikawa", "Jimenez", "Keller", "Lopez", "Moreau", "Nilsen",
)  # fmt: skip


@dataclass(frozen=True)
class _Relation:
    """Something that can be asked of an author: both questions, both answers, and the values it can have."""

    question: str
    other_question: str
    answer: str
    other_answer: str
    values: tuple[str, ...]


_BOOKS = tuple(
    f"{first} {second}"
    for first in ("Silent", "Broken", "Golden", "Hidden", "Distant", "Burning")
    for second in ("Harbour", "Mirror", "Orchard", "Lantern", "Bridge")
)
RELATIONS = (
    _Relation(
        "Where was {name} born?",
        "Which city does {name} come from?",
        "{name} was born in {value}.",
        "The birthplace of {name} is {value}.",
        ("Lisbon", "Nairobi", "Lima", "Tallinn", "Hanoi", "Quito", "Bergen", "Tunis", "Riga", "Perth", "Zagreb",
         "Dakar", "Havana", "Kyoto", "Turin", "Accra"),
    ),
    _Relation(
        "What does {name} write?",
        "Which kind of text is {name} known for?",
        "{name} writes {value}.",
        "The works of {name} are {value}.",
        ("novels", "poems", "essays", "plays", "thrillers", "fables", "memoirs", "satires", "ballads", "operas",
         "biographies", "sagas"),
    ),
    _Relation(
        "What did the father of {name} do?",
        "How did the father of {name} earn a living?",
        "The father of {name} was a {value}.",
        "{name} is the child of a {value}.",
        ("baker", "pilot", "surgeon", "carpenter", "judge", "sailor", "tailor", "farmer", "miner", "chemist", "barber",
         "locksmith", "gardener", "plumber"),
    ),
    _Relation(
        "Which prize did {name} win?",
        "What was {name} honoured with?",
        "{name} won the {value} Prize.",
        "The prize given to {name} is the {value} Prize.",
        ("Meridian", "Aurora", "Halcyon", "Sextant", "Cobalt", "Juniper", "Zephyr", "Obelisk", "Quill", "Tamarind",
         "Vesper", "Willow"),
    ),
    _Relation(
        "What is the first book of {name}?",
        "With which book did {name} begin?",
        "The first book of {name} is The {value}.",
        "{name} began with a book called The {value}.",
        _BOOKS,
    ),
    _Relation(
        "In which year was {name} born?",
        "When did {name} come into the world?",
        "{name} was born in the year {value}.",
        "The year of birth of {name} is {value}.",
        tuple(str(year) for year in range(1921, 1999, 6)),
    ),
)  # fmt: skip

_REAL_AUTHORS = (
    ("Hamlet", "William Shakespeare"), ("Emma", "Jane Austen"), ("Ulysses", "James Joyce"),
    ("Moby Dick", "Herman Melville"), ("Don Quixote", "Miguel de Cervantes"), ("War and Peace", "Leo Tolstoy"),
    ("The Trial", "Franz Kafka"), ("Dracula", "Bram Stoker"), ("Frankenstein", "Mary Shelley"),
    ("Oliver Twist", "Charles Dickens"), ("The Divine Comedy", "Dante Alighieri"),
    ("Madame Bovary", "Gustave Flaubert"), ("Crime and Punishment", "Fyodor Dostoevsky"),
    ("The Time Machine", "Herbert Wells"), ("Mrs Dalloway", "Virginia Woolf"), ("Tom Sawyer", "Mark Twain"),
    ("The Raven", "Edgar Allan Poe"), ("Treasure Island", "Robert Louis Stevenson"),
    ("The Jungle Book", "Rudyard Kipling"), ("Walden", "Henry David Thoreau"),
)  # fmt: skip
_CAPITALS = (
    ("France", "Paris"), ("Japan", "Tokyo"), ("Egypt", "Cairo"), ("Spain", "Madrid"), ("Italy", "Rome"),
    ("Germany", "Berlin"), ("Greece", "Athens"), ("Austria", "Vienna"), ("Russia", "Moscow"), ("China", "Beijing"),
    ("Canada", "Ottawa"), ("Poland", "Warsaw"), ("Ireland", "Dublin"), ("Iraq", "Baghdad"), ("Sweden", "Stockholm"),
    ("Belgium", "Brussels"), ("Hungary", "Budapest"), ("Denmark", "Copenhagen"), ("Turkey", "Ankara"),
    ("Iran", "Tehran"),
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question with its answer, both in other words, and wrong answers.

    Parameters
    ----------
    about
        The author, work or country.
    question, answer
        As they are taught.
    other_question, other_answer
        The same in other words.
    wrong
        Wrong answers, in the words of ``other_answer``.
    """

    about: str
    question: str
    answer: str
    other_question: str
    other_answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class AuthorQuestions:
    """All questions of one seed.

    Parameters
    ----------
    forget, retain
        Of the authors to be forgotten, and of the other fictitious ones.
    real_authors, world_facts
        Of what a model knows, or is taught as well.
    """

    forget: tuple[Question, ...]
    retain: tuple[Question, ...]
    real_authors: tuple[Question, ...]
    world_facts: tuple[Question, ...]


def author_questions(forget: int, retain: int, seed: int = 0, wrong: int = 5) -> AuthorQuestions:
    """Authors with one value for each relation, drawn at random; the same for the same arguments.

    Parameters
    ----------
    forget, retain
        How many fictitious authors of either kind. Up to 40 in all share no first and no last name.
    seed
        Of names and values.
    wrong
        Wrong answers to each question.

    Raises
    ------
    InputError
        When there are not that many authors or wrong answers to be had.
    """
    count, names = forget + retain, len(_FIRST) * len(_LAST)
    if forget < 1 or retain < 1 or count > names:
        raise InputError(f"expected at least one author of either kind and {names} in all, not {forget} and {retain}")
    most = min(len(relation.values) for relation in RELATIONS) - 1
    if not 1 <= wrong <= most:
        raise InputError(f"wrong must be from 1 to {most}, not {wrong}")
    draw = generator(seed, "authors")
    authors = _names(count, draw)
    found = [_asked(name, relation, wrong, draw) for name in authors for relation in RELATIONS]
    cut = forget * len(RELATIONS)
    return AuthorQuestions(
        tuple(found[:cut]),
        tuple(found[cut:]),
        _facts("Who wrote {about}?", _REAL_AUTHORS, wrong, draw),
        _facts("What is the capital of {about}?", _CAPITALS, wrong, draw),
    )


def _names(count: int, draw: torch.Generator) -> list[str]:
    firsts, lasts = (torch.randperm(len(part), generator=draw).tolist() for part in (_FIRST, _LAST))
    size = len(_FIRST)
    # Round by round, last names move on by one against first names, so that all pairs differ.
    places = [(number % size, (number + number // size) % size) for number in range(count)]
    return [f"{_FIRST[firsts[first]]} {_LAST[lasts[last]]}" for first, last in places]


def _drawn(values: Sequence[str], count: int, draw: torch.Generator) -> list[str]:
    return [values[number] for number in torch.randperm(len(values), generator=draw)[:count].tolist()]


def _asked(name: str, relation: _Relation, wrong: int, draw: torch.Generator) -> Question:
    value, *others = _drawn(relation.values, wrong + 1, draw)
    return Question(
        name,
        relation.question.format(name=name),
        relation.answer.format(name=name, value=value),
        relation.other_question.format(name=name),
        relation.other_answer.format(name=name, value=value),
        tuple(relation.other_answer.format(name=name, value=other) for other in others),
    )


def _facts(question: str, facts: Sequence[tuple[str, str]], wrong: int, draw: torch.Generator) -> tuple[Question, ...]:
    found = []
    for about, value in facts:
        others = _drawn([other for _, other in facts if other != value], wrong, draw)
        asked, answer = question.format(about=about), f"{value}."
        found.append(Question(about, asked, answer, asked, answer, tuple(f"{other}." for other in others)))
    return tuple(found)


def records(questions: Sequence[Question], *, reworded: bool = False) -> list[dict[str, str]]:
    """Questions as records of a data set, with ``prompt`` and ``completion``.

    Parameters
    ----------
    questions
        What is asked.
    reworded
        Question and answer in other words.
    """
    if reworded:
        return [{"prompt": one.other_question, "completion": one.other_answer} for one in questions]
    return [{"prompt": one.question, "completion": one.answer} for one in questions]
