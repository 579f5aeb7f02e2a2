"""The letters of the world's scripts as a tree: script, letter, case, marks, as their Unicode names say.

A metric that comes from outside of the pictures, as WordNet's does for ImageNet. Letters are classes; some are inner
nodes (A is above A WITH ACUTE), most are leaves, and what only groups letters is no class.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from thrifty.adapt.class_tree import Tree

_KINDS = {"LETTER", "SYLLABLE", "SYLLABICS", "LIGATURE", "CHARACTER", "DIGRAPH"}


def letter_path(name: str) -> tuple[str, ...]:
    """Script, letter, case and marks of a Unicode name, from the outside in.

    >>> letter_path("LATIN SMALL LETTER A WITH RING ABOVE AND ACUTE")
    ('LATIN', 'A', 'SMALL', 'RING ABOVE', 'ACUTE')
    """
    body, _, marks = name.partition(" WITH ")
    words = body.split()
    cases = [word for word in words[1:] if word in ("CAPITAL", "SMALL")]
    letter = " ".join(word for word in words[1:] if word not in _KINDS and word not in ("CAPITAL", "SMALL"))
    return (words[0], letter or body, *cases, *(marks.split(" AND ") if marks else ()))


def letter_tree(letters: Iterable[str]) -> Tree:
    """The tree that letters span; its classes are their Unicode names.

    Nodes that are no letter and have a single child are left out, so that a distance counts choices and not words.

    Parameters
    ----------
    letters
        At least two characters.
    """
    names = sorted({unicodedata.name(letter) for letter in letters})
    named = {(".", *letter_path(name)): name for name in names}
    if len(named) < len(names):  # two names with one path: each is a place of its own
        named = {(".", *letter_path(name), name): name for name in names}
    children: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for path in named:
        for end in range(1, len(path)):
            children.setdefault(path[:end], set()).add(path[: end + 1])

    def kept(node: tuple[str, ...]) -> tuple[str, ...]:
        while node not in named and len(children[node]) == 1:
            node = next(iter(children[node]))
        return node

    def title(node: tuple[str, ...]) -> str:
        return named.get(node, "/".join(node))

    edges, open_nodes = [], [kept((".",))]
    while open_nodes:
        node = open_nodes.pop()
        below = sorted(kept(child) for child in children.get(node, ()))
        edges += [(title(node), title(child)) for child in below]
        open_nodes += below
    return Tree(edges, labels=names)
