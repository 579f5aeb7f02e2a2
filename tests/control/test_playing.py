"""Environments, rollouts, behaviours, collected data, the quick TD3."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from control_data import make_episodes
from gymnasium.envs.registration import EnvSpec

from thrifty.control.collection import Collection, behaviours, collect, collected, reference_returns
from thrifty.control.controllers import NoisyPolicy, PointMassController, RandomPolicy, SwingUp
from thrifty.control.envs import POINT_MASS, PointMass, make_many, register_environments
from thrifty.control.evaluation import evaluate, normalised, rollout
from thrifty.control.online import ReplayBuffer, train_td3
from thrifty.control.transitions import Spaces
from thrifty.core.errors import InputError, RunError

UNIT = ((-1.0, -1.0), (1.0, 1.0))


def test_the_point_mass_keeps_gymnasiums_contract():
    register_environments()
    from gymnasium.utils.env_checker import check_env

    check_env(gymnasium.make(POINT_MASS).unwrapped, skip_render_check=True)


def test_gymnasium_makes_the_point_mass_where_thrifty_was_not_imported():
    code = (
        "import sys, gymnasium; assert 'thrifty' not in sys.modules; "
        "print(gymnasium.make('thrifty.control.envs:thrifty/PointMass-v0').reset(seed=3)[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(2,)\n", done.stderr


def test_one_step_of_the_point_mass_by_hand():
    env = PointMass()
    start, _ = env.reset(seed=3)
    assert np.linalg.norm(start) <= 1
    seen, reward, terminated, truncated, _ = env.step(np.array([1.0, 0.0], dtype=np.float32))
    expected = start + 0.25 * 0.25 * (np.array([4.0, 0.0]) - start)
    np.testing.assert_allclose(seen, expected, rtol=1e-5)
    assert reward == pytest.approx(-np.linalg.norm(expected - [1.5, 0]) - 0.01, abs=1e-6)
    assert not terminated
    assert not truncated


def test_three_positions_tell_the_action_and_two_do_not():
    env = PointMass()
    episodes = rollout(POINT_MASS, RandomPolicy(*UNIT), 3, seed=0)
    c, dt = env, env.dt
    for episode in episodes:
        p = episode.observations.astype(np.float64)
        velocity = np.diff(p, axis=0, prepend=p[:1]) / dt
        force = np.diff(velocity, axis=0) / dt + c.drag * velocity[:-1] + c.spring * p[:-1]
        np.testing.assert_allclose(force / c.push, episode.actions, atol=1e-4)
        at_rest = (velocity[1:] / dt + c.spring * p[:-1]) / c.push
        assert np.abs(at_rest - episode.actions).max() > 0.2


def test_rollouts_are_whole_episodes_and_repeat_with_the_seed():
    first, again, other = (rollout(POINT_MASS, RandomPolicy(*UNIT), 3, seed=s) for s in (5, 5, 6))
    assert [e.steps for e in first] == [100] * 3
    assert all(e.truncations[-1] and not e.truncations[:-1].any() and not e.terminations.any() for e in first)
    assert np.array_equal(first.observations(), again.observations())
    assert not np.array_equal(first.observations(), other.observations())
    assert not np.array_equal(first[0].observations[0], first[1].observations[0])


def test_episodes_of_different_length_end_where_they_ended(monkeypatch):
    class Countdown(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.left = int(self.np_random.integers(2, 7))
            return np.array([self.left], dtype=np.float32), {}

        def step(self, action):
            self.left -= 1
            return np.array([self.left], dtype=np.float32), 1.0, self.left == 0, False, {}

    monkeypatch.setitem(gymnasium.registry, "Countdown-v0", EnvSpec("Countdown-v0", Countdown))
    episodes = rollout("Countdown-v0", RandomPolicy((-1.0,), (1.0,)), 8, seed=0)
    assert len({e.steps for e in episodes}) > 1
    for episode in episodes:
        assert episode.steps == episode.observations[0, 0] == episode.rewards.sum()
        assert episode.observations[-1, 0] == 0
        assert episode.terminations.tolist() == [False] * (episode.steps - 1) + [True]
    assert rollout("Countdown-v0", RandomPolicy((-1.0,), (1.0,)), 4, 0, max_steps=1)[0].truncations.tolist() == [True]


def test_actions_are_clipped_to_the_space():
    class TooFar:
        def start(self, count):
            return lambda _observation, _reward: np.full((count, 2), 9.0, dtype=np.float32)

    assert rollout(POINT_MASS, TooFar(), 2, seed=0)[0].actions.max() == 1


def test_an_action_that_is_not_finite_ends_the_rollout():
    class Lost:
        def start(self, count):
            return lambda _observation, _reward: np.full((count, 2), np.nan, dtype=np.float32)

    with pytest.raises(RunError, match="action at step 0 is not finite"):
        rollout(POINT_MASS, Lost(), 2, seed=0)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [("Nowhere-v0", "can't be made"), ("CartPole-v1", "only a bounded box"), ("FrozenLake-v1", "only a bounded box")],
)
def test_environments_of_another_kind_are_refused(env_id, message):
    with pytest.raises(InputError, match=message):
        make_many(env_id, 1)


def test_observations_of_another_kind_are_refused(monkeypatch):
    class Picture(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 1, (4, 4), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    monkeypatch.setitem(gymnasium.registry, "Picture-v0", EnvSpec("Picture-v0", Picture))
    with pytest.raises(InputError, match="only a flat box"):
        make_many("Picture-v0", 1)


def test_without_gymnasium_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "thrifty.control.envs")
    with pytest.raises(InputError, match=r"pip install 'thrifty\[rl\]'"):
        rollout(POINT_MASS, RandomPolicy(*UNIT), 1, seed=0)


def test_better_behaviours_have_better_returns():
    worst = evaluate(RandomPolicy(*UNIT), POINT_MASS, 20)
    noisy = evaluate(NoisyPolicy(PointMassController(), *UNIT, noise=0.5, lapse=0.3), POINT_MASS, 20)
    best = evaluate(PointMassController(), POINT_MASS, 20)
    assert worst.high < noisy.low
    assert noisy.high < best.low
    assert best.length == 100
    assert best.low <= best.mean <= best.high


def test_the_pendulum_swings_up():
    score = evaluate(SwingUp(), "Pendulum-v1", 10)
    assert score.mean > -300
    assert evaluate(RandomPolicy((-2.0,), (2.0,)), "Pendulum-v1", 10).mean < -800


def test_returns_are_normalised_between_random_and_expert():
    assert normalised(-5, random=-10, expert=10) == 25
    assert normalised(10, -10, 10) == 100


def test_a_collection_holds_a_third_of_each_skill():
    episodes = collect(Collection(episodes=31, seed=1))
    returns = episodes.returns()
    assert len(episodes) == 31
    assert returns[:11].mean() < returns[11:21].mean() < returns[21:].mean()
    with pytest.raises(InputError, match="at least 3 episodes"):
        collect(Collection(episodes=2))


def test_a_collection_is_kept_under_a_name_that_says_what_it_is(tmp_path):
    collection = Collection(episodes=3)
    first = collected(collection, tmp_path)
    file = tmp_path / f"{collection.key}.safetensors"
    stamp = file.stat().st_mtime_ns
    again = collected(collection, tmp_path)
    assert file.stat().st_mtime_ns == stamp
    assert np.array_equal(first.observations(), again.observations())
    for change in ({"seed": 1}, {"episodes": 4}, {"env": "Pendulum-v1"}):
        assert dataclasses.replace(collection, **change).key != collection.key


def test_the_references_are_random_and_expert():
    random, expert = reference_returns(Collection(), episodes=10)
    assert random < -100 < expert


def test_pendulum_has_controllers_of_its_own():
    assert set(behaviours(Collection("Pendulum-v1"))) == {"random", "half-trained", "trained", "expert"}


def test_a_replay_buffer_forgets_the_oldest():
    buffer = ReplayBuffer(4, Spaces(1, (-1.0,), (1.0,)))
    for i in range(3):
        values = np.array([[2.0 * i], [2.0 * i + 1]])
        buffer.add(values, values, values[:, 0], values, np.zeros(2))
    assert len(buffer) == 4
    assert set(buffer.sample(200).reward.tolist()) == {2.0, 3.0, 4.0, 5.0}


def test_any_environment_gets_behaviours_from_a_short_training():
    collection = Collection("MountainCarContinuous-v0", episodes=3, training_steps=120)
    players = behaviours(collection)
    assert set(players) == {"random", "half-trained", "trained", "expert"}
    assert 0 < players["half-trained"].policy.updates < players["expert"].updates


def test_too_short_a_training_is_refused():
    with pytest.raises(InputError, match="at least 100 steps"):
        train_td3("Pendulum-v1", 99)


@pytest.mark.slow
def test_the_quick_td3_learns_the_pendulum():
    _, trained = train_td3("Pendulum-v1", 8_000)
    assert evaluate(trained, "Pendulum-v1", 10).mean > -400


def test_an_agent_plays_many_episodes_in_one_pass():
    from thrifty.control.td3_bc import TD3BC

    agent = TD3BC(hidden=(8, 8)).create(Spaces(2, *UNIT))
    seen = []
    act = agent.act
    agent.act = lambda observation: seen.append(observation.shape) or act(observation)
    rollout(POINT_MASS, agent, 7, seed=0)
    assert seen == [(7, 2)] * 100


def test_made_up_episodes_are_no_collection():
    assert make_episodes().low.tolist() == [-1, -1]
