"""TD3+BC, CQL and the Decision Transformer: their equations, and that they learn."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from control_data import distance_after, line_world, make_episodes
from hypothesis import given
from hypothesis import strategies as st

from thrifty.control.cql import CQL, Temperature, conservative_gap
from thrifty.control.decision_transformer import DecisionTransformer, sequence_loss
from thrifty.control.episode import Episode
from thrifty.control.episodes import Episodes
from thrifty.control.sampling import UniformIndices, WindowBatches, return_to_go
from thrifty.control.saving import load_policy
from thrifty.control.td3_bc import TD3BC, actor_loss, bellman_target
from thrifty.control.transitions import Spaces
from thrifty.core.errors import InputError, NotFoundError
from thrifty.core.run import Run
from thrifty.core.threads import one_thread
from thrifty.nets.normaliser import Normaliser

SMALL = [
    TD3BC(steps=6, batch_size=8, hidden=(16, 16)),
    CQL(steps=6, batch_size=8, hidden=(16, 16)),
    DecisionTransformer(steps=6, batch_size=4, width=16, layers=1, heads=2, context=3),
]
each_agent = pytest.mark.parametrize("config", SMALL, ids=lambda config: config.name)


def test_bellman_target_by_hand():
    target = bellman_target(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([[2.0, 9], [3.0, 8]]), 0.9)
    assert target.tolist() == pytest.approx([1 + 0.9 * 2, 1])


@given(st.floats(-10, 10), st.floats(-10, 10), st.booleans())
def test_only_a_termination_zeroes_the_future(reward, value, terminal):
    target = bellman_target(torch.tensor([reward]), torch.tensor([float(terminal)]), torch.tensor([[value]]), 0.5)
    assert target.item() == pytest.approx(reward if terminal else reward + 0.5 * value, abs=1e-5)


def test_actor_loss_by_hand():
    value, action, logged = torch.tensor([2.0, -4.0]), torch.tensor([[0.5], [0.0]]), torch.tensor([[0.0], [0.0]])
    expected = -2.5 / 3 * (-1) + 0.25 / 2
    assert actor_loss(value, action, logged, alpha=2.5).item() == pytest.approx(expected)
    assert actor_loss(value, action, logged, alpha=2.5, bc_weight=0).item() == pytest.approx(2.5 / 3)


def test_the_weight_of_the_value_takes_no_gradient():
    value = torch.tensor([2.0], requires_grad=True)
    actor_loss(value, torch.zeros(1, 1), torch.zeros(1, 1), alpha=2.5).backward()
    assert value.grad.item() == pytest.approx(-2.5 / 2)


def test_conservative_gap_by_hand():
    sampled = torch.tensor([[[1.0], [2.0]]])
    log_density = torch.tensor([[math.log(0.5)], [math.log(0.25)]])
    expected = math.log(math.e / 0.5 + math.e**2 / 0.25) - 3
    assert conservative_gap(sampled, log_density, torch.tensor([[3.0]])).tolist() == pytest.approx([expected])


def test_importance_sampling_estimates_the_integral_whatever_the_proposal():
    # log of the integral of exp(Q) over [-1, 1] with Q(a) = a, from a uniform and from a triangular proposal.
    r = np.random.default_rng(0)
    exact, n = math.log(math.e - 1 / math.e), 200_000
    uniform = torch.tensor(r.uniform(-1, 1, n))
    tilted = torch.tensor(r.triangular(-1, 1, 1, n))
    for drawn, density in ((uniform, torch.full((n,), 0.5)), (tilted, (tilted + 1) / 2)):
        gap = conservative_gap(drawn[None, :, None], density.log()[:, None], torch.zeros(1, 1))
        assert gap.item() - math.log(n) == pytest.approx(exact, abs=0.01)


def test_the_temperature_rises_while_the_entropy_is_too_low():
    temperature = Temperature(0.5)
    assert temperature().item() == pytest.approx(0.5)
    temperature.loss(torch.tensor(-3.0), target=-1.0).backward()
    assert temperature.log_value.grad.item() < 0
    temperature.log_value.grad = None
    temperature.loss(torch.tensor(1.0), target=-1.0).backward()
    assert temperature.log_value.grad.item() > 0


def test_sequence_loss_by_hand():
    log_prob, entropy = torch.tensor([[9.0, 1.0, 3.0]]), torch.tensor([[9.0, 2.0, 4.0]])
    valid, labelled = torch.tensor([[False, True, True]]), torch.tensor([[False, False, True]])
    loss, mean_entropy = sequence_loss(log_prob, entropy, labelled, valid, torch.tensor(0.1))
    assert mean_entropy.item() == pytest.approx(3)
    assert loss.item() == pytest.approx(-(3 + 0.3))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_return_to_go_starts_at_the_return_and_falls_by_each_reward(rewards):
    togo = return_to_go(torch.tensor(rewards))
    assert togo[0].item() == pytest.approx(math.fsum(rewards), abs=1e-4)
    assert togo[-1].item() == pytest.approx(rewards[-1], abs=1e-5)
    assert torch.allclose(togo[:-1] - togo[1:], torch.tensor(rewards[:-1]), atol=1e-4)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 50))
def test_windows_are_right_aligned_pieces_of_one_episode(lengths, k, seed):
    episodes = make_episodes(lengths, seed)
    rows, batch = episodes.transitions(), WindowBatches(episodes, k, 16, seed)(3)
    flat = {tuple(row.tolist()): i for i, row in enumerate(rows.observation)}
    for b in range(16):
        valid = batch.valid[b]
        assert valid[-1]
        assert valid.tolist() == sorted(valid.tolist())
        numbers = [flat[tuple(batch.observation[b, i].tolist())] for i in range(k) if valid[i]]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert len({int(rows.episode[n]) for n in numbers}) == 1
        # A window is short only where the episode begins.
        assert len(numbers) == k or rows.step[numbers[0]] == 0
        assert torch.equal(batch.action[b, valid], rows.action[numbers])
        assert torch.equal(batch.next_observation[b, valid], rows.next_observation[numbers])


@given(st.integers(1, 50), st.integers(0, 600), st.integers(0, 9))
def test_a_batch_is_the_same_whenever_it_is_asked_for(size, step, seed):
    index = UniformIndices(size, 4, seed)
    first = index(step).clone()
    index(step + 300)
    assert torch.equal(index(step), first)
    assert torch.equal(UniformIndices(size, 4, seed)(step), first)
    assert 0 <= first.min() <= first.max() < size


@each_agent
def test_what_is_fed_is_what_is_updated(config):
    episodes = make_episodes()
    agent = config.create(episodes.spaces())
    before = {name: value.clone() for name, value in agent.networks.state_dict().items()}
    batches = config.batches(episodes, 0, "cpu")
    for step in range(3):
        logged = agent.update(batches(step))
        assert all(math.isfinite(float(value)) for value in logged.values())
    after = agent.networks.state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if (value != before[name]).any()}
    assert changed == set(agent.networks) - {"normaliser"}
    assert agent.updates == 3


@each_agent
def test_act_takes_one_or_many_of_either_kind_in_the_environments_unit(config):
    agent = config.create(Spaces(3, (0.0, -5.0), (10.0, 5.0)))
    many = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    actions = agent.act(many)
    assert actions.shape == (6, 2)
    assert actions.dtype == np.float32
    assert (actions >= [0, -5]).all()
    assert (actions <= [10, 5]).all()
    np.testing.assert_allclose(agent.act(many[0]), actions[0], rtol=1e-4, atol=1e-4)
    assert isinstance(agent.act(torch.from_numpy(many)), torch.Tensor)


@each_agent
def test_units_of_the_environment_do_not_matter(config):
    # The same data in other units, through an agent with the same weights: the same action in the other unit.
    plain, moved = (
        config.create(Spaces(3, (-1.0,), (1.0,))),
        config.create(Spaces(3, (0.0,), (10.0,)), normaliser=Normaliser(torch.full((3,), 7.0), torch.full((3,), 2.0))),
    )
    for name in set(plain.networks) - {"normaliser"}:
        moved.networks[name].load_state_dict(plain.networks[name].state_dict())
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_allclose(moved.act(x * 2 + 7), plain.act(x) * 5 + 5, rtol=1e-4, atol=1e-4)


@each_agent
def test_a_saved_policy_acts_the_same(config, tmp_path):
    episodes = make_episodes()
    normaliser = Normaliser.of(episodes.observations())
    agent = dataclasses.replace(config, **({"target_return": 2.0} if config.name == "dt" else {})).create(
        episodes.spaces(), normaliser=normaliser
    )
    agent.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.config == agent.config
    x = np.ones((2, 3), dtype=np.float32)
    assert np.array_equal(loaded.act(x), agent.act(x))


def test_what_is_no_saved_policy_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match="no policy"):
        load_policy(tmp_path)
    (tmp_path / "policy.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="damaged"):
        load_policy(tmp_path)
    agent = dataclasses.replace(SMALL[0]).create(Spaces(3, (-1.0,), (1.0,)))
    object.__setattr__(agent.config, "name", "td3-bd")
    agent.save(tmp_path)
    with pytest.raises(InputError, match="'td3-bd': did you mean 'td3-bc'"):
        load_policy(tmp_path)


@each_agent
def test_interrupted_training_ends_with_the_same_weights(config, tmp_path):
    episodes = make_episodes()
    with Run(tmp_path / "whole", device="cpu", config={}) as run:
        whole = config.fit(episodes, run).networks.state_dict()
    with Run(tmp_path / "parts", device="cpu", config={}) as run:
        dataclasses.replace(config, steps=3).fit(episodes, run)
    with Run(tmp_path / "parts", device="cpu", config={}) as run:
        parts = config.fit(episodes, run).networks.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@each_agent
def test_episodes_without_actions_are_refused(config, run):
    with pytest.raises(InputError, match="no actions"):
        config.fit(make_episodes().without_actions([True, False, False]), run)


def test_training_uses_one_thread_and_gives_the_others_back():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_td3_bc_moves_to_the_goal(run):
    agent = TD3BC(steps=600, batch_size=64, hidden=(32, 32), learning_rate=1e-3, discount=0.9).fit(line_world(), run)
    assert distance_after(agent) < 0.3


def test_td3_bc_without_value_imitates(run):
    world = line_world()
    agent = TD3BC(steps=600, batch_size=64, hidden=(32, 32), learning_rate=1e-3, alpha=0.0).fit(world, run)
    # Random actions have nothing to imitate but their mean.
    assert np.abs(agent.act(world.observations())).mean() < 0.2


def test_cql_moves_to_the_goal(run):
    config = CQL(steps=500, batch_size=64, hidden=(32, 32), policy_learning_rate=1e-3, critic_learning_rate=1e-3)
    agent = dataclasses.replace(config, discount=0.9, conservative_weight=0.5).fit(line_world(), run)
    assert distance_after(agent) < 0.3


@pytest.mark.slow
def test_cql_holds_the_values_of_unseen_actions_down(tmp_path):
    seen = [np.clip(e.actions, -0.2, 0.2) for e in line_world()]
    episodes = line_world()
    episodes = episodes.like(dataclasses.replace(e, actions=a) for e, a in zip(episodes, seen, strict=True))
    gaps = {}
    for weight in (0.0, 5.0):
        with Run(tmp_path / str(weight), device="cpu", config={}) as run:
            config = CQL(steps=300, batch_size=64, hidden=(32, 32), critic_learning_rate=1e-3)
            agent = dataclasses.replace(config, conservative_weight=weight).fit(episodes, run)
        state = agent.normalise(episodes.transitions().observation)
        inside, outside = (agent.critic.value(state, torch.full((len(state), 1), a)).mean() for a in (0.0, 0.9))
        gaps[weight] = (inside - outside).item()
    assert gaps[5.0] > gaps[0.0] + 1


def test_cql_with_entropy_in_the_backup_learns_too(run):
    config = CQL(steps=20, batch_size=16, hidden=(16, 16), entropy_backup=True)
    assert config.fit(make_episodes(), run).updates == 20


def steady_earners(count=60, steps=5):
    """Each episode repeats one action, which is its reward; what is seen is the share of the time left."""
    r = np.random.default_rng(0)
    left = 1 - np.arange(steps + 1) / steps
    return Episodes([Episode.of(left, np.full(steps, a), np.full(steps, a)) for a in r.uniform(-0.9, 0.9, count)])


def earned(agent, steps=5):
    actor, reward, total = agent.start(1), np.zeros(1, dtype=np.float32), 0.0
    for step in range(steps):
        reward = actor(np.full((1, 1), 1 - step / steps, dtype=np.float32), reward)[0]
        total += float(reward[0])
    return total


@pytest.mark.slow
def test_the_decision_transformer_earns_what_is_asked_for(run):
    config = DecisionTransformer(steps=250, batch_size=32, width=32, layers=1, heads=2, context=3, dropout=0.0)
    config = dataclasses.replace(config, learning_rate=1e-2, warmup=10, return_scale=0.5)
    agent = config.fit(steady_earners(), run)
    for asked in (-3.0, 0.0, 3.0):
        agent.config = dataclasses.replace(agent.config, target_return=asked)
        assert earned(agent) == pytest.approx(asked, abs=1.0)


def test_the_decision_transformer_asks_for_the_best_return_by_default(run):
    episodes = make_episodes()
    agent = SMALL[2].fit(episodes, run)
    assert agent.config.target_return == pytest.approx(float(episodes.returns().max()))


def test_the_joint_decision_transformer_takes_action_free_episodes(run):
    episodes = make_episodes((6, 6, 6)).without_actions([True, True, False])
    config = dataclasses.replace(SMALL[2], state_weight=1.0)
    batch = config.batches(episodes, 0, "cpu")(0)
    assert (batch.valid & ~batch.labelled).any()
    agent = config.create(episodes.spaces())
    assert "state_loss" in agent.update(batch)
    config.fit(episodes, run)


def test_unknown_actions_do_not_enter_the_model():
    agent = SMALL[2].create(Spaces(3, (-1.0, -1.0), (1.0, 1.0)))
    agent.networks.eval()
    state, togo = torch.randn(2, 3, 3), torch.zeros(2, 3)
    valid, known = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    some = agent.model(state, torch.randn(2, 3, 2), togo, valid, known)[0]
    other = agent.model(state, torch.randn(2, 3, 2), togo, valid, known)[0]
    assert torch.equal(some, other)


def test_an_actor_remembers_no_more_than_its_context():
    agent = SMALL[2].create(Spaces(3, (-1.0, -1.0), (1.0, 1.0)))
    r = np.random.default_rng(0)
    seen = r.normal(size=(7, 1, 3)).astype(np.float32)
    nothing = np.zeros(1, dtype=np.float32)
    actor = agent.start(1)
    actions = [actor(x, nothing) for x in seen]
    past = [torch.from_numpy(a) for a in actions[4:6]]
    with torch.no_grad():
        expected = agent._next(torch.from_numpy(seen[4:, 0])[None], torch.zeros(1, 3), past)
    np.testing.assert_allclose(actions[6], expected.numpy(), rtol=1e-4, atol=1e-5)
