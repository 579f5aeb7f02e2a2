"""The index: 73 sound entries, and the questions that a user puts to it."""

from __future__ import annotations

import keyword
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core import index
from thrifty.core.errors import InputError, NotFoundError
from thrifty.core.method import load

PAPERS = index.papers()
WORDS = sorted(index.vocabulary())
ROOM_SIZES = {
    "align": 18, "reward": 4, "select": 3, "represent": 6, "adapt": 8, "forget": 5, "shrink": 7, "control": 14,
    "steer": 3, "tune": 4, "scale": 1,
}  # fmt: skip

VALID = """
[vocabulary]
model = "a network"
language-model = "a network that writes"

[includes]
language-model = ["model"]

[[paper]]
id = "ab-cd"
title = "A Title"
name = "ABCD"
arxiv = "2301.00001"
year = 2023
room = "tune"
summary = "Does something."
equation = "y = x"
needs = ["model"]
gives = ["model"]
code = ""
licence = ""
"""


# ------------------------------------------------------------------------------------------------- the packaged index


def test_there_are_exactly_73_papers_and_the_rooms_hold_them_all() -> None:
    assert len(PAPERS) == 73
    sizes = {room: len(index.matching(room)) for room in index.ROOMS}
    assert sizes == ROOM_SIZES


def test_papers_are_sorted_by_room_then_id() -> None:
    rooms = list(index.ROOMS)
    keys = [(rooms.index(entry.room), entry.id) for entry in PAPERS.values()]
    assert keys == sorted(keys)
    assert all(id == entry.id for id, entry in PAPERS.items())


def test_arxiv_ids_and_titles_are_unique_and_the_year_is_that_of_the_id() -> None:
    assert len({entry.arxiv for entry in PAPERS.values()}) == 73
    assert len({entry.title for entry in PAPERS.values()}) == 73
    assert all(entry.year == 2000 + int(entry.arxiv[:2]) for entry in PAPERS.values())


@pytest.mark.parametrize("id", PAPERS)
def test_an_entry_reads_well(id: str) -> None:
    entry = PAPERS[id]
    assert len(entry.summary) <= 220
    assert entry.summary[0].isupper()
    assert entry.summary.endswith(".")
    assert not re.search(r"[.!?] ", entry.summary), "one sentence"
    lines = entry.equation.splitlines()
    assert 1 <= len(lines) <= 4
    assert all(line.strip() and len(line) <= 130 for line in lines)
    assert all(text == text.strip() for text in (entry.title, entry.name, entry.summary, entry.equation))
    assert len(set(entry.needs)) == len(entry.needs)
    assert len(set(entry.gives)) == len(entry.gives)


@pytest.mark.parametrize("id", PAPERS)
def test_code_is_a_repository_with_a_licence_or_both_are_absent(id: str) -> None:
    entry = PAPERS[id]
    assert bool(entry.code) == bool(entry.licence)
    assert not entry.code or re.fullmatch(r"[\w.-]+/[\w.-]+", entry.code)


def test_every_word_of_the_vocabulary_is_used_and_explained_in_one_line() -> None:
    used = {word for entry in PAPERS.values() for word in (*entry.needs, *entry.gives)}
    assert used == set(WORDS)
    assert all(meaning and "\n" not in meaning for meaning in index.vocabulary().values())


@pytest.mark.parametrize(
    ("id", "arxiv", "room", "code", "licence"),
    [
        ("ssd", "2308.07707", "forget", "if-loops/selective-synaptic-dampening", "MIT"),
        ("topr", "2503.14286", "align", "", ""),
        ("nmc", "2210.04428", "adapt", "Pauljanson002/pretrained-cl", "none"),
        ("ss-orl", "2210.06518", "control", "facebookresearch/ssorl", "CC-BY-NC-4.0"),
    ],
)
def test_known_facts(id: str, arxiv: str, room: str, code: str, licence: str) -> None:
    entry = index.paper(id)
    assert (entry.arxiv, entry.room, entry.code, entry.licence) == (arxiv, room, code, licence)


def test_what_is_handed_out_can_be_changed_without_harm() -> None:
    index.papers().clear()
    index.vocabulary().clear()
    assert len(index.papers()) == 73
    assert sorted(index.vocabulary()) == WORDS


# -------------------------------------------------------------------------------------------------------- one paper


def test_an_unknown_id_offers_the_nearest() -> None:
    with pytest.raises(NotFoundError, match=r"no paper 'sdd': did you mean 'ssd'"):
        index.paper("sdd")


def test_capitals_do_not_hide_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="'topr'"):
        index.paper("TOPR")


def test_an_id_like_no_other_points_to_the_list() -> None:
    with pytest.raises(NotFoundError, match=r"`thrifty list` shows all 73"):
        index.paper("###")


# --------------------------------------------------------------------------------------------------------- matching


def test_without_a_condition_every_paper_matches() -> None:
    assert index.matching() == list(PAPERS.values())


def test_a_room_is_all_its_papers_in_order() -> None:
    found = [entry.id for entry in index.matching("forget")]
    assert found == ["dmm", "laf", "npo", "skill-unlearning", "ssd"]


def test_features_and_labels_are_enough_for_the_streaming_heads() -> None:
    found = {entry.id for entry in index.matching("adapt", ["features", "labels"])}
    assert found == {"nmc", "g-acil", "teen"}


def test_who_has_a_language_model_has_a_model() -> None:
    found = {entry.id for entry in index.matching("forget", {"language-model", "forget-set", "retain-set"})}
    assert found == {"npo", "skill-unlearning", "ssd"}


def test_a_verifier_is_a_source_of_rewards() -> None:
    found = {entry.id for entry in index.matching("align", ["language-model", "prompts", "verifier"])}
    assert {"raft", "topr", "one-shot-rlvr"} <= found
    assert "pure" not in found


def test_one_word_may_be_given_by_itself() -> None:
    assert index.matching("control", "environment") == index.matching("control", ["environment"])


def test_with_nothing_in_hand_nothing_matches() -> None:
    assert index.matching(have=[]) == []


@given(have=st.sets(st.sampled_from(WORDS)), more=st.sets(st.sampled_from(WORDS)))
def test_having_more_never_loses_a_paper(have: set[str], more: set[str]) -> None:
    before = {entry.id for entry in index.matching(have=have)}
    after = {entry.id for entry in index.matching(have=have | more)}
    assert before <= after


@given(entry=st.sampled_from(list(PAPERS.values())), data=st.data())
def test_a_paper_matches_its_needs_and_nothing_short_of_them(entry: index.Paper, data: st.DataObject) -> None:
    assert entry in index.matching(entry.room, entry.needs)
    dropped = data.draw(st.sampled_from(entry.needs))
    assert entry not in index.matching(entry.room, set(entry.needs) - {dropped})


def test_an_unknown_room_names_the_rooms() -> None:
    with pytest.raises(InputError, match=r"no room 'forgot': did you mean 'forget'"):
        index.matching("forgot")
    with pytest.raises(InputError, match=r"known: adapt, align"):
        index.matching("###")


def test_an_unknown_word_names_the_nearest_or_all() -> None:
    with pytest.raises(InputError, match=r"'lables' is not a word .* did you mean 'labels'"):
        index.matching(have=["lables"])
    with pytest.raises(InputError, match=r"known: model, language-model"):
        index.matching(have=["###"])


# ---------------------------------------------------------------------------------------------------------- modules


def test_the_module_is_named_after_room_and_id() -> None:
    assert index.module_name(index.paper("ss-orl")) == "thrifty.control.ss_orl"
    assert index.module_name(index.paper("ssd")) == "thrifty.forget.ssd"


def test_implemented_is_whether_the_module_file_exists() -> None:
    root = Path(index.__file__).parents[1]
    for entry in PAPERS.values():
        file = root / entry.room / f"{entry.id.replace('-', '_')}.py"
        assert index.implemented(entry) == file.is_file()


def test_a_room_that_does_not_exist_yet_has_nothing_implemented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "module_name", lambda _: "thrifty.no_such_room.nothing")
    assert not index.implemented(index.paper("ssd"))


@pytest.mark.parametrize("id", [entry.id for entry in PAPERS.values() if index.implemented(entry)])
def test_an_implemented_module_registers_its_id(id: str) -> None:
    cls = load(id)
    assert cls.paper_id == id  # type: ignore[attr-defined]
    assert cls.__module__ == index.module_name(index.paper(id))


def test_the_index_answers_without_importing_torch() -> None:
    code = (
        "import sys; from thrifty.core import index; "
        "print(sum(map(index.implemented, index.matching())), {'torch', 'numpy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split(maxsplit=1)[1].strip() == "set()"


def test_every_module_can_be_imported_by_a_statement_and_is_no_private_or_base_module_of_its_room() -> None:
    names = [index.module_name(entry).rpartition(".")[2] for entry in PAPERS.values()]
    assert all(name.isidentifier() and not keyword.iskeyword(name) for name in names)
    assert not set(names) & {"room", "base", "train"}


# ---------------------------------------------------------------------------------------------------------- checking


def test_a_valid_index_is_read_as_written() -> None:
    read = index.parse(VALID)
    entry = read.papers["ab-cd"]
    assert entry == index.Paper(
        id="ab-cd",
        title="A Title",
        name="ABCD",
        arxiv="2301.00001",
        year=2023,
        room="tune",
        summary="Does something.",
        equation="y = x",
        needs=("model",),
        gives=("model",),
        code="",
        licence="",
    )
    assert read.includes == {"language-model": ("model",)}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('room = "tune"', 'room = "tunes"', r"paper 'ab-cd': unknown room 'tunes'; did you mean 'tune'"),
        ('needs = ["model"]', 'needs = ["modle"]', r"paper 'ab-cd': needs: 'modle' is not in the vocabulary; did you"),
        ('gives = ["model"]', 'gives = ["modle"]', r"paper 'ab-cd': gives: 'modle' is not in the vocabulary"),
        ('needs = ["model"]', "needs = [3]", r"paper 'ab-cd': needs: 3 is not in the vocabulary"),
        ('needs = ["model"]', "needs = []", r"paper 'ab-cd': needs is empty"),
        ('needs = ["model"]', 'needs = "model"', r"paper 'ab-cd': needs must be of type list"),
        ('summary = "Does something."', 'summary = ""', r"paper 'ab-cd': summary is empty"),
        ('summary = "Does something."', "", r"paper 'ab-cd': missing summary"),
        ('id = "ab-cd"', "", r"paper number 1: missing id"),
        ('id = "ab-cd"', 'id = "AB_cd"', r"paper 'AB_cd': id must be"),
        ('id = "ab-cd"', 'id = "1-shot"', r"paper '1-shot': id must be"),
        ('arxiv = "2301.00001"', 'arxiv = "2301"', r"paper 'ab-cd': arxiv must look like"),
        ("year = 2023", 'year = "2023"', r"paper 'ab-cd': year must be of type int, is '2023'"),
        ("year = 2023", "year = true", r"paper 'ab-cd': year must be of type int, is True"),
        ('code = ""', 'code = ""\nstars = 3', r"paper 'ab-cd': unknown field stars"),
        ('language-model = ["model"]', 'language-model = ["modle"]', r"includes of 'language-model': 'modle' is not"),
        ('language-model = ["model"]', 'robot = ["model"]', r"includes of 'robot': 'robot' is not"),
    ],
)
def test_a_wrong_entry_is_named(before: str, after: str, message: str) -> None:
    assert VALID.count(before) == 1
    with pytest.raises(ValueError, match=message):
        index.parse(VALID.replace(before, after))


def test_an_id_that_appears_twice_is_named() -> None:
    entry = VALID[VALID.index("[[paper]]") :]
    with pytest.raises(ValueError, match=r"paper 'ab-cd' appears twice"):
        index.parse(VALID + entry)


def test_text_that_is_no_toml_is_refused() -> None:
    with pytest.raises(ValueError, match="line 1"):
        index.parse("= 1")
