"""Episodes: layout, checks, splits, files."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from control_data import make_episodes
from hypothesis import given
from hypothesis import strategies as st

from thrifty.control.episode import Episode
from thrifty.control.episodes import Episodes
from thrifty.core.errors import InputError, NotFoundError

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(LENGTHS, st.integers(0, 99))
def test_transitions_are_the_steps_in_order(lengths, seed):
    episodes = make_episodes(lengths, seed)
    rows = episodes.transitions()
    assert len(rows) == sum(lengths) == episodes.steps
    for i in range(len(rows)):
        episode, step = episodes[int(rows.episode[i])], int(rows.step[i])
        assert np.array_equal(rows.observation[i], episode.observations[step])
        assert np.array_equal(rows.next_observation[i], episode.observations[step + 1])
        assert np.array_equal(rows.action[i], episode.actions[step])
        assert rows.reward[i] == episode.rewards[step]


def test_only_terminations_are_terminal():
    x, a, r = np.zeros((4, 1)), np.zeros((3, 1)), np.zeros(3)
    terminated = Episode.of(x, a, r, [False, False, True])
    cut = Episode.of(x, a, r, None, [False, False, True])
    rows = Episodes([terminated, cut]).transitions()
    assert rows.terminal.tolist() == [0, 0, 1, 0, 0, 0]


def test_an_episode_without_flags_ends_by_truncation():
    episode = make_episodes((3,))[0]
    assert episode.truncations.tolist() == [False, False, True]
    assert not episode.terminations.any()
    assert not Episode.of(np.zeros((3, 1)), None, np.zeros(2), [False, True]).truncations.any()


def test_returns_are_sums_of_rewards():
    episodes = Episodes([Episode.of(np.zeros((3, 1)), None, [1.0, 2.5]), Episode.of(np.zeros((2, 1)), None, [-1.0])])
    assert episodes.returns().tolist() == [3.5, -1.0]


@given(st.integers(2, 12), st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_split_is_by_whole_episodes(count, share, seed):
    episodes = make_episodes([2] * count)
    rest, held = episodes.split(share, seed)
    assert len(rest) + len(held) == count
    assert len(rest) >= 1
    assert len(held) >= 1
    assert {id(e) for e in rest} | {id(e) for e in held} == {id(e) for e in episodes}


def test_a_split_needs_two_episodes_and_a_share():
    with pytest.raises(InputError, match="at least two"):
        make_episodes((3,)).split(0.5)
    with pytest.raises(InputError, match="between 0 and 1"):
        make_episodes().split(1.0)


def test_actions_can_be_taken_away():
    episodes = make_episodes()
    hidden = episodes.without_actions([True, False, True])
    assert hidden.labelled.tolist() == [False, True, False]
    assert episodes.labelled.all()
    assert not episodes.without_actions().labelled.any()
    with pytest.raises(InputError, match=r"shape \[3\], not \[2\]"):
        episodes.without_actions([True, False])


def test_actions_that_are_all_nan_count_as_missing():
    assert Episode.of(np.zeros((3, 1)), np.full((2, 1), np.nan), np.zeros(2)).actions is None


def test_transitions_of_action_free_episodes_say_which_lack_them():
    with pytest.raises(InputError, match="episode 1 has no actions"):
        make_episodes().without_actions([False, True, False]).transitions()


def test_bounds_are_the_unit_box_or_what_occurs():
    assert make_episodes().spaces().low == (-1.0, -1.0)
    wide = Episodes([Episode.of(np.zeros((3, 1)), [[-3.0], [2.0]], [0.0, 0.0])])
    assert wide.spaces().low == (-3.0,)
    assert wide.spaces().high == (2.0,)
    assert make_episodes(low=-2, high=[2, 3]).spaces().high == (2.0, 3.0)
    assert make_episodes(low=-2, high=2).without_actions().spaces().action_dim == 2


def test_no_actions_and_no_bounds_is_no_action_space():
    bare = Episodes([Episode.of(np.zeros((2, 1)), None, [0.0])])
    with pytest.raises(InputError, match="no episode has actions"):
        bare.spaces()


def broken(**changes):
    good = make_episodes((4, 4))
    return [good[0], dataclasses.replace(good[1], **changes)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((4, 3))}, r"episode 1: observations should have shape \[5, numbers\], not \[4, 3\]"),
        ({"actions": np.zeros((5, 2))}, r"episode 1: actions should have shape \[4, numbers\], not \[5, 2\]"),
        ({"rewards": np.zeros((4, 1))}, r"episode 1: rewards should have shape \[steps\], not \[4, 1\]"),
        ({"terminations": np.zeros(3, bool)}, r"episode 1: terminations should have shape \[4\], not \[3\]"),
        ({"truncations": np.zeros(3, bool)}, r"episode 1: truncations should have shape \[4\], not \[3\]"),
        ({"rewards": np.array([0, np.nan, 0, 0])}, "episode 1: rewards at step 1 is not finite"),
        ({"observations": np.full((5, 3), np.inf)}, "episode 1: observations at step 0 is not finite"),
        ({"observations": np.zeros((5, 2))}, "episode 1: observations have 2 numbers, those of episode 0 have 3"),
        ({"actions": np.zeros((4, 1))}, r"actions have \[1, 2\] numbers"),
        ({"rewards": np.zeros(0)}, "episode 1 is empty"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        Episodes(broken(**changes))


def test_an_action_outside_the_space_is_named_with_its_step():
    actions = np.zeros((4, 2), dtype=np.float32)
    actions[2, 1] = 1.5
    with pytest.raises(InputError, match=r"episode 1, step 2: action 1 is 1.5, outside the action space \[-1, 1\]"):
        Episodes(broken(actions=actions), -1, 1)


def test_rounding_at_the_border_is_no_error():
    actions = np.full((4, 2), 1 + 1e-7, dtype=np.float32)
    assert len(Episodes(broken(actions=actions), -1, 1)) == 2


@pytest.mark.parametrize(("low", "high"), [(1, -1), (-np.inf, 1), ([-1, -1, -1], 1)])
def test_bounds_that_make_no_sense_are_refused(low, high):
    with pytest.raises(InputError, match="bounds"):
        make_episodes(low=low, high=high)


def test_no_episodes_are_refused():
    with pytest.raises(InputError, match="no episodes"):
        Episodes([])


def test_slices_and_sums_are_episodes():
    episodes = make_episodes()
    assert isinstance(episodes[1:], Episodes)
    assert len(episodes[1:] + episodes[:1]) == 3
    assert "3 episodes, 16 steps, 3 with actions" in repr(episodes)


def same(left: Episodes, right: Episodes) -> bool:
    fields = [field.name for field in dataclasses.fields(Episode)]
    pairs = [(getattr(a, f), getattr(b, f)) for a, b in zip(left, right, strict=True) for f in fields]
    return all((a is None) == (b is None) and (a is None or np.array_equal(a, b)) for a, b in pairs)


@given(LENGTHS, st.integers(0, 99))
def test_what_is_saved_comes_back(tmp_path_factory, lengths, seed):
    mask = np.random.default_rng(seed).random(len(lengths)) < 0.5
    episodes = make_episodes(lengths, seed, low=-2, high=2).without_actions(mask)
    path = tmp_path_factory.mktemp("e") / "episodes.safetensors"
    episodes.save(path)
    back = Episodes.load(path)
    assert same(episodes, back)
    assert back.spaces() == episodes.spaces()


def flat(episodes):
    rows = episodes.transitions()
    return {
        "observations": rows.observation.numpy(),
        "next_observations": rows.next_observation.numpy(),
        "actions": rows.action.numpy(),
        "rewards": rows.reward.numpy(),
        "terminals": rows.terminal.numpy().astype(bool),
        "timeouts": np.concatenate([e.truncations for e in episodes]),
    }


def test_flat_npz_files_are_cut_where_episodes_end(tmp_path):
    episodes = make_episodes()
    np.savez(tmp_path / "d.npz", **flat(episodes))
    assert same(Episodes.load(tmp_path / "d.npz"), episodes)


def test_a_last_episode_without_an_end_is_kept(tmp_path):
    arrays = flat(make_episodes())
    arrays["timeouts"][-1] = False
    np.savez(tmp_path / "d.npz", **arrays)
    assert [e.steps for e in Episodes.load(tmp_path / "d.npz")] == [5, 7, 4]


@pytest.mark.parametrize(
    ("gone", "message"),
    [("rewards", "no 'rewards'"), ("observations", "no 'observations'"), ("next_observations", "next_observations")],
)
def test_a_missing_array_is_named(tmp_path, gone, message):
    arrays = flat(make_episodes())
    del arrays[gone]
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=message):
        Episodes.load(tmp_path / "d.npz")


def test_an_array_of_another_length_is_named(tmp_path):
    arrays = flat(make_episodes())
    arrays["actions"] = arrays["actions"][:-1]
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match="actions should have 16 rows in all, not 15"):
        Episodes.load(tmp_path / "d.npz")


def test_files_that_are_something_else_are_refused(tmp_path):
    with pytest.raises(NotFoundError, match="no file"):
        Episodes.load(tmp_path / "missing.npz")
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match="no readable NPZ"):
        Episodes.load(tmp_path / "bad.npz")
    (tmp_path / "bad.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="damaged or no safetensors"):
        Episodes.load(tmp_path / "bad.safetensors")
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="holds no episodes"):
        Episodes.load(tmp_path / "weights.safetensors")


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", observations=np.array([{}], dtype=object), rewards=np.zeros(1))
    with pytest.raises(InputError, match="plain arrays"):
        Episodes.load(tmp_path / "d.npz")


class MinariLike:
    """What a Minari data set offers of itself."""

    def __init__(self, episodes, low, high):
        self.episodes, self.action_space = episodes, SimpleNamespace(low=low, high=high)

    def iterate_episodes(self):
        for number, e in enumerate(self.episodes):
            yield SimpleNamespace(id=number, infos={}, **{f.name: getattr(e, f.name) for f in dataclasses.fields(e)})


def test_a_minari_data_set_brings_its_action_space():
    episodes = make_episodes()
    read = Episodes.from_minari(MinariLike(episodes, np.array([-2, -2]), np.array([2, 2])))
    assert same(read, episodes)
    assert read.spaces().high == (2.0, 2.0)
    assert Episodes.from_minari(MinariLike(episodes, -2, 2), high=3).spaces().high == (3.0, 3.0)


def test_dictionaries_of_arrays_are_episodes_too():
    episodes = make_episodes()
    items = [dataclasses.asdict(e) for e in episodes]
    assert same(Episodes.from_minari(items), episodes)
    del items[1]["rewards"]
    with pytest.raises(InputError, match="episode 1 has no 'rewards'"):
        Episodes.from_minari(items)
    items[0]["observations"] = {"camera": np.zeros(3), "arm": np.zeros(3)}
    with pytest.raises(InputError, match=r"episode 0: observations is a dictionary \[\"arm\", \"camera\"\]"):
        Episodes.from_minari(items)


def test_a_minari_folder_brings_the_bounds_in_its_metadata(tmp_path, monkeypatch):
    import thrifty.control.files as files

    items = [dataclasses.asdict(e) for e in make_episodes()]
    monkeypatch.setattr(files, "read_minari", lambda _path: items)
    (tmp_path / "data").mkdir()
    space = json.dumps({"type": "Box", "low": [-4.0, -4.0], "high": [4.0, 4.0]})
    (tmp_path / "data" / "metadata.json").write_text(json.dumps({"action_space": space}))
    assert Episodes.load(tmp_path).spaces().low == (-4.0, -4.0)
    (tmp_path / "data" / "metadata.json").unlink()
    assert Episodes.load(tmp_path).spaces().low == (-1.0, -1.0)
