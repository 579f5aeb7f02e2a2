"""SS-ORL: windows, the mixture, the inverse dynamics model, the protocols, the whole method."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from control_data import line_world, make_episodes
from hypothesis import given
from hypothesis import strategies as st

from thrifty.control.episode import Episode
from thrifty.control.episodes import Episodes
from thrifty.control.inverse_dynamics import (
    InverseDynamics,
    InverseDynamicsConfig,
    fit_inverse_dynamics,
    mixture,
    windows,
)
from thrifty.control.protocols import coupled_split, decoupled_split, label_mse
from thrifty.control.ss_orl import AGENTS, SSORL, most_certain
from thrifty.core.errors import InputError
from thrifty.core.method import load
from thrifty.core.run import Run, read_metrics
from thrifty.core.seeding import derive_seed
from thrifty.nets.normaliser import Normaliser

TINY = {
    "idm_width": 16,
    "idm_steps": 20,
    "idm_batch_size": 16,
    "agent_steps": 3,
    "agent_batch_size": 8,
    "agent_width": 16,
}


def test_windows_by_hand():
    observations = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert windows(observations, 0).tolist() == [[0, 1], [1, 2], [2, 3]]
    assert windows(observations, 1).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert windows(observations, 3).tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 1, 2], [0, 0, 1, 2, 3]]


@given(st.integers(1, 9), st.integers(0, 6), st.integers(1, 3))
def test_the_last_of_a_window_is_the_next_observation(steps, k, size):
    observations = torch.randn(steps + 1, size)
    found = windows(observations, k).view(steps, k + 2, size)
    assert torch.equal(found[:, -1], observations[1:])
    assert torch.equal(found[:, -2], observations[:-1])
    for t in range(steps):
        for back in range(k + 1):
            assert torch.equal(found[t, k - back], observations[max(t - back, 0)])


def test_mixture_worked_example():
    mean, variance = mixture(torch.tensor([[0.2], [0.4]]), torch.tensor([[0.1], [0.3]]))
    assert mean.item() == pytest.approx(0.3)
    assert variance.item() == pytest.approx(0.06)


@given(st.integers(1, 5), st.integers(0, 99))
def test_the_variance_of_a_mixture_is_never_negative_and_one_member_keeps_its_own(members, seed):
    g = torch.Generator().manual_seed(seed)
    means, stds = torch.randn(members, 4, 2, generator=g) * 100, torch.rand(members, 4, 2, generator=g) * 1e-3
    mean, variance = mixture(means, stds)
    assert (variance >= stds.square().mean(0)).all()
    torch.testing.assert_close(mixture(means[:1], stds[:1]), (means[0], stds[0].square()))
    order = torch.randperm(members, generator=g)
    torch.testing.assert_close(mixture(means[order], stds[order]), (mean, variance), rtol=1e-4, atol=1e-4)


def tiny_model(k=1, members=2, episodes=None, **options):
    episodes = episodes or make_episodes()
    config = InverseDynamicsConfig(k=k, members=members, hidden=(16, 16), **options)
    return InverseDynamics(config, episodes.spaces(), Normaliser.of(episodes.observations()))


def test_likelihood_of_each_member_by_hand():
    episodes = make_episodes()
    model = tiny_model().eval()
    window, action = model.inputs(episodes), model.targets(episodes)
    assert window.shape == (16, 9)
    mean, log_std = model(window)
    x = torch.atanh(action)
    per_dimension = torch.distributions.Normal(mean, log_std.exp()).log_prob(x) - (1 - action**2).log()
    expected = -per_dimension.sum(-1).mean(-1)
    torch.testing.assert_close(model.negative_log_likelihood(window, action), expected, rtol=1e-4, atol=1e-4)


def test_the_label_is_the_mean_over_members_of_the_squashed_mean():
    episodes = make_episodes(low=-2, high=4)
    model = tiny_model(episodes=episodes).eval()
    mean, _ = model(model.inputs(episodes[:1]))
    expected = torch.tanh(mean).mean(0) * 3 + 1
    actions, doubt = model.label(episodes[:1])[0]
    np.testing.assert_allclose(actions, expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    assert doubt.shape == (5,)
    assert (doubt > 0).all()


def test_the_released_codes_uncertainty_takes_the_deviation_before_squashing():
    episodes = make_episodes()
    model = tiny_model(uncertainty="gaussian").eval()
    window = model.inputs(episodes)
    mean, log_std = model(window)
    expected = mixture(torch.tanh(mean), log_std.exp())[1].mean(-1)
    torch.testing.assert_close(model.predict(window)[1], expected.detach())


def test_labels_do_not_depend_on_the_company_or_the_order():
    episodes, model = make_episodes(), tiny_model()
    together = model.label(episodes)
    for episode, (action, _) in zip(reversed(list(episodes)), reversed(together), strict=True):
        np.testing.assert_allclose(model.label([episode])[0][0], action, rtol=1e-4, atol=1e-5)


def test_the_best_held_out_checkpoint_is_what_comes_back(run):
    # Actions that are noise: the held-out likelihood soon falls, while the model learns the others by heart.
    episodes = make_episodes([12] * 6)
    config = InverseDynamicsConfig(hidden=(64, 64), dropout=0.0, batch_size=64, steps=150, learning_rate=3e-3)
    stage = run.stage("idm")
    model = fit_inverse_dynamics(config, episodes, Normaliser.of(episodes.observations()), stage)
    rows = read_metrics(stage.directory)
    rest, held = episodes.split(config.holdout, derive_seed(stage.seed, "holdout"))
    with torch.no_grad():
        of_held = model.negative_log_likelihood(model.inputs(held), model.targets(held)).item()
        of_rest = model.negative_log_likelihood(model.inputs(rest), model.targets(rest)).item()
    assert of_held == pytest.approx(min(row["best_held_out_nll"] for row in rows), abs=1e-4)
    # The last iterate fits what it was trained on far better than the one that came back.
    assert rows[-1]["nll"] < of_rest - 1


def test_each_member_keeps_its_own_best():
    from thrifty.control.inverse_dynamics import _Training

    training = _Training(tiny_model(members=2))
    first = {name: value.clone() for name, value in training.model.net.state_dict().items()}
    training.keep_best(torch.tensor([1.0, 1.0]))
    with torch.no_grad():
        for parameter in training.model.net.parameters():
            parameter += 1
    training.keep_best(torch.tensor([0.5, 2.0]))
    for name, value in training.best.items():
        torch.testing.assert_close(value[[0, 2]], first[name][[0, 2]] + 1)
        torch.testing.assert_close(value[[1, 3]], first[name][[1, 3]])
    assert training.best_nll.tolist() == [0.5, 1.0]


def test_inverse_dynamics_of_a_line_are_learnt(run):
    world = line_world()
    known, unknown = world[:10], world[10:]
    config = InverseDynamicsConfig(k=0, hidden=(32, 32), batch_size=64, steps=600, learning_rate=3e-3)
    model = fit_inverse_dynamics(config, known, Normaliser.of(world.observations()), run)
    guesses = np.concatenate([action for action, _ in model.label(unknown)])
    truth = np.concatenate([episode.actions for episode in unknown])
    assert np.square(guesses - truth).mean() < 0.01 * truth.var()


def hidden_velocity(count=16, steps=25, seed=0):
    """Positions only; the action changes the velocity."""
    r = np.random.default_rng(seed)
    episodes = []
    for _ in range(count):
        actions, velocity, position = r.uniform(-1, 1, steps), 0.0, [r.normal()]
        for action in actions:
            velocity = 0.6 * velocity + action
            position.append(0.8 * position[-1] + velocity)
        episodes.append(Episode.of(np.array(position), actions, np.zeros(steps)))
    return Episodes(episodes)


def test_a_longer_window_tells_what_a_hidden_velocity_hides(tmp_path):
    world, errors = hidden_velocity(), []
    for k in (0, 1):
        config = InverseDynamicsConfig(k=k, hidden=(32, 32), batch_size=64, steps=500, learning_rate=3e-3)
        with Run(tmp_path / str(k), device="cpu", config={}) as run:
            model = fit_inverse_dynamics(config, world[:8], Normaliser.of(world.observations()), run)
        labelled = world.like(
            dataclasses.replace(e, actions=a) for e, (a, _) in zip(world, model.label(world), strict=True)
        )
        errors.append(label_mse(world, labelled, range(8, 16)))
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize(
    ("k", "message"), [(7, "k is 7, but the longest episode with actions has 7 steps"), (-1, "k is -1")]
)
def test_windows_longer_than_the_episodes_are_refused(run, k, message):
    config = InverseDynamicsConfig(k=k, hidden=(8,), steps=1)
    with pytest.raises(InputError, match=message):
        fit_inverse_dynamics(config, make_episodes(), Normaliser.identity(3), run)


def test_one_labelled_episode_needs_holdout_zero(run):
    config = InverseDynamicsConfig(hidden=(8,), steps=2)
    with pytest.raises(InputError, match="holdout 0"):
        fit_inverse_dynamics(config, make_episodes()[:1], Normaliser.identity(3), run)
    fit_inverse_dynamics(dataclasses.replace(config, holdout=0.0), make_episodes()[:1], Normaliser.identity(3), run)


def ranked(count):
    order = np.random.default_rng(0).permutation(count)
    return Episodes([Episode.of(np.zeros((2, 1)), [[0.0]], [float(i)]) for i in order])


def test_coupled_split_worked_example():
    episodes = ranked(10)
    returns = episodes.returns()
    for seed in range(20):
        split = coupled_split(episodes, share=0.1, quantile=0.5, seed=seed)
        assert [len(p) for p in (split.labelled, split.in_distribution, split.out_of_distribution)] == [1, 4, 5]
        assert returns[split.labelled[0]] in range(5)
        assert set(returns[split.in_distribution]) <= set(range(5))
        assert set(returns[split.out_of_distribution]) == set(range(5, 10))


@given(st.integers(4, 40), st.floats(0.01, 0.4), st.integers(0, 50))
def test_a_coupled_split_takes_each_episode_once(count, share, seed):
    split = coupled_split(ranked(count), share, 0.5, seed)
    numbers = np.concatenate([split.labelled, split.unlabelled])
    assert sorted(numbers) == list(range(count))
    hidden = split.hide(ranked(count))
    assert np.array_equal(np.flatnonzero(hidden.labelled), split.labelled)


def test_too_many_labels_for_the_low_returns_are_refused():
    with pytest.raises(InputError, match="8 labelled episodes can't be drawn from the 5"):
        coupled_split(ranked(10), share=0.8)


def test_a_decoupled_split_has_sizes_and_qualities_of_its_own():
    episodes = ranked(20)
    returns = episodes.returns()
    split = decoupled_split(episodes, 0.2, (0.0, 0.3), 0.4, (0.2, 1.0), seed=1)
    assert len(split.labelled) == 4
    assert len(split.unlabelled) == 8
    assert returns[split.labelled].max() < 6
    assert returns[split.unlabelled].min() >= 4
    assert not set(split.labelled) & set(split.unlabelled)
    assert all(returns[n] < 6 for n in split.in_distribution)
    assert all(returns[n] >= 6 for n in split.out_of_distribution)
    assert len(split.hide(episodes)) == 12
    with pytest.raises(InputError, match="unlabelled episodes can't be drawn"):
        decoupled_split(episodes, 0.2, (0.0, 0.5), 0.9, (0.5, 1.0))


def test_label_error_by_hand():
    truth = make_episodes((2, 3))
    shifted = truth.like(dataclasses.replace(e, actions=e.actions * 0.5) for e in truth)
    expected = np.square(truth[1].actions * 0.5).mean()
    assert label_mse(truth, shifted, [1]) == pytest.approx(expected)
    assert math.isnan(label_mse(truth, shifted, []))
    with pytest.raises(InputError, match="episode 0 has no actions"):
        label_mse(truth, shifted.without_actions([True, False]), [0, 1])


def half_hidden(count=6):
    return make_episodes([6] * count).without_actions([i >= count // 2 for i in range(count)])


def test_true_actions_stay_and_missing_ones_are_filled(run):
    episodes = half_hidden()
    labels = SSORL(**TINY).label(episodes, run)
    assert labels.episodes.labelled.all()
    for before, after, doubt in zip(episodes, labels.episodes, labels.uncertainty, strict=True):
        if before.actions is not None:
            assert after.actions is before.actions
            assert doubt is None
        else:
            assert after.actions.shape == (6, 2)
            assert np.abs(after.actions).max() <= 1
            assert doubt.shape == (6,)
        assert after.rewards is before.rewards


def test_observations_are_normalised_over_all_episodes(run):
    episodes = half_hidden()
    model = SSORL(**TINY).label(episodes, run).inverse_dynamics
    expected = Normaliser.of(episodes.observations())
    torch.testing.assert_close(model.normaliser.mean, expected.mean)
    torch.testing.assert_close(model.normaliser.std, expected.std)


@pytest.mark.parametrize("agent", list(AGENTS))
def test_any_agent_trains_on_everything(run, agent):
    trained = SSORL(agent=agent, **TINY).fit(half_hidden(), run)
    assert trained.updates == 3
    assert trained.act(np.zeros(3, dtype=np.float32)).shape == (2,)
    assert trained.config.name == agent


def test_self_training_adds_a_growing_share_of_labels(run, monkeypatch):
    import thrifty.control.ss_orl as module

    sizes = []
    original = module.fit_inverse_dynamics

    def spy(config, labelled, normaliser, stage, extra):
        sizes.append(0 if extra is None else len(extra[0]))
        return original(config, labelled, normaliser, stage, extra)

    monkeypatch.setattr(module, "fit_inverse_dynamics", spy)
    SSORL(rounds=2, **TINY).label(half_hidden(), run)
    assert sizes == [0, 6, 12]


def test_the_most_certain_rows_come_first():
    window, action = torch.arange(4.0)[:, None], torch.arange(4.0)[:, None] * 10
    kept = most_certain(window, action, torch.tensor([0.4, 0.1, 0.3, 0.2]), 0.5)
    assert kept[0].flatten().tolist() == [1, 3]
    assert kept[1].flatten().tolist() == [10, 30]


def test_uncertain_episodes_can_be_left_out(run):
    labels = SSORL(ensemble=2, **TINY).label(half_hidden(8), run)
    assert len(labels.most_certain(1.0)) == 8
    kept = labels.most_certain(0.5)
    assert len(kept) == 6
    doubts = sorted(float(d.mean()) for d in labels.uncertainty if d is not None)
    kept_ids = {id(e.rewards) for e in kept}
    pairs = zip(labels.episodes, labels.uncertainty, strict=True)
    left_out = [float(d.mean()) for e, d in pairs if id(e.rewards) not in kept_ids]
    assert sorted(left_out) == doubts[2:]


def test_killed_between_stages_it_ends_with_the_same_policy(tmp_path):
    method, episodes = SSORL(**TINY), half_hidden()
    with Run(tmp_path / "whole", device="cpu", config={}) as run:
        whole = method.fit(episodes, run).networks.state_dict()
    with Run(tmp_path / "parts", device="cpu", config={}) as run:
        dataclasses.replace(method, idm_steps=7).label(episodes, run)
    with Run(tmp_path / "parts", device="cpu", config={}) as run:
        method.label(episodes, run)
    with Run(tmp_path / "parts", device="cpu", config={}) as run:
        parts = method.fit(episodes, run).networks.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_all_or_none_labelled_is_refused(run):
    with pytest.raises(InputError, match="no episode has actions"):
        SSORL(**TINY).label(make_episodes(low=-1, high=1).without_actions(), run)
    with pytest.raises(InputError, match="all episodes have actions"):
        SSORL(**TINY).label(make_episodes(), run)


@pytest.mark.parametrize(
    "wrong", [{"k": -1}, {"ensemble": 0}, {"rounds": -1}, {"keep": 0.0}, {"holdout": 1.0}, {"agent": "ppo"}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError):
        SSORL(**wrong)


def test_defaults_are_the_papers():
    method = SSORL()
    idm = method.inverse_dynamics_config()
    assert (idm.k, idm.members, idm.hidden, idm.dropout) == (1, 1, (1024, 1024), 0.1)
    assert (idm.learning_rate, idm.batch_size, idm.holdout) == (1e-4, 1024, 0.1)
    td3 = method.agent_config()
    assert (td3.hidden, td3.alpha, td3.rate, td3.steps, td3.batch_size) == ((256, 256), 2.5, 0.005, 200_000, 5120)
    cql = SSORL(agent="cql").agent_config()
    assert (cql.hidden, cql.conservative_weight, cql.policy_learning_rate) == ((256, 256, 256), 5.0, 1e-4)
    dt = SSORL(agent="dt").agent_config()
    assert (dt.context, dt.width, dt.layers, dt.heads, dt.batch_size, dt.clip_norm) == (20, 512, 4, 4, 256, 0.25)


def test_scaling_down_leaves_what_was_chosen():
    small = SSORL(idm_steps=7, agent_width=32).scaled_down()
    assert (small.idm_steps, small.agent_width) == (7, 32)
    assert small.idm_width < 1024
    assert small.agent_steps < 200_000
    assert SSORL(agent="dt").scaled_down().agent_config().width == small.agent_config().hidden[0] * 2


def test_it_is_registered():
    assert load("ss-orl") is SSORL
