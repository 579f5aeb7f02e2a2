from __future__ import annotations

import pytest
import torch

from thrifty.nets.chain import vgg
from thrifty.shrink.children import (
    layer_features,
    removable,
    shrinkable,
)
from thrifty.shrink.controllers import KEEP, RemovalPolicy, ShrinkagePolicy
from thrifty.shrink.policy_gradient import (
    History,
    actor_critic_loss,
    moving_average,
    paper_update,
    reinforce_loss,
    released_baseline,
    released_update,
)

CHAIN = vgg(3, size=(8, 8), widths=(16, 24), depth=2)


def of(*numbers):
    return torch.tensor(numbers)


def test_the_gradient_credits_each_episode_with_its_own_reward():
    logits = torch.zeros(2, requires_grad=True)
    actions, advantages = torch.tensor([[1], [0], [1]]), of(0.5, -1.0, 0.25)
    logps = logits.log_softmax(0)[actions]
    reinforce_loss(logps, advantages).backward()
    # -(1/N) sum_k (R_k - b) (onehot - probabilities)
    expected = -sum(a * (torch.eye(2)[k] - 0.5) for a, (k,) in zip(advantages, actions.tolist(), strict=True)) / 3
    torch.testing.assert_close(logits.grad, expected)


def test_the_baseline_is_a_moving_average():
    assert moving_average(None, 0.4, 0.9) == 0.4
    assert moving_average(0.4, 0.6, 0.9) == pytest.approx(0.42)
    # The released code divides by one too many, and has 0 at first.
    assert released_baseline([]) == 0
    assert released_baseline([0.5, 0.7]) == pytest.approx(0.4)


def test_the_critic_takes_the_place_of_the_baseline():
    logps, values = torch.zeros(2, 3, requires_grad=True), torch.tensor([0.5, 0.0, 1.0], requires_grad=True)
    actor_critic_loss(logps, values, of(1.0, 0.0)).backward()
    torch.testing.assert_close(logps.grad, -torch.tensor([[0.5, 1, 0], [-0.5, 0, -1]]) / 2)
    # Smooth L1 within 1: half the square; its derivative is the difference, here averaged over six.
    torch.testing.assert_close(values.grad, of(0.0, -1.0, 1.0) / 6)


def test_the_released_update_does_not_see_which_episode_was_good():
    def moved(update):
        torch.manual_seed(0)
        policy = RemovalPolicy(5)
        before = [parameter.clone() for parameter in policy.parameters()]
        x, free = layer_features(CHAIN.layers), removable(CHAIN.layers)
        drawn = policy(x, free, 4)
        # The released baseline is (1.0) / 2, just what the rewards are on average.
        history = History([[1.0]], baseline=0.5)
        optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
        update(drawn, of(1.0, 0.0, 1.0, 0.0), history, optimizer, lambda a: policy(x, free, len(a), a))
        return any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))

    assert not moved(released_update)
    assert moved(lambda drawn, rewards, history, optimizer, _: paper_update(drawn, rewards, history, optimizer, 0.9))


FORMS = ("bidirectional", "autoregressive", "encoder-decoder")


@pytest.mark.parametrize("form", FORMS)
def test_a_policy_judges_what_it_drew_as_likely_as_it_was(form):
    torch.manual_seed(0)
    policy, x, free = RemovalPolicy(5, 8, form=form, critic=True), layer_features(CHAIN.layers), removable(CHAIN.layers)
    drawn = policy(x, free, 6)
    assert drawn.actions.shape == drawn.logps.shape == (6, len(x))
    assert drawn.values.shape == (len(x),)
    assert (drawn.actions[:, ~free] == KEEP).all()
    assert not drawn.logps[:, ~free].any()
    assert (drawn.logps[:, free] < 0).all()
    torch.testing.assert_close(policy(x, free, 6, drawn.actions).logps, drawn.logps)
    alone = [policy(x, free, 1, actions[None]).logps for actions in drawn.actions]
    torch.testing.assert_close(torch.cat(alone), drawn.logps)


def test_only_the_autoregressive_form_remembers_its_actions():
    for form in FORMS:
        torch.manual_seed(0)
        policy, x = RemovalPolicy(5, 8, form=form), layer_features(CHAIN.layers)
        free = torch.ones(len(x), dtype=torch.bool)
        kept, gone = (torch.full((1, len(x)), action) for action in (1, 0))
        gone[0, 1:] = 1
        later = [policy(x, free, 1, actions).logps[0, 1:] for actions in (kept, gone)]
        assert torch.allclose(*later) == (form != "autoregressive")


def test_what_shrinkage_has_drawn_scales_what_it_sees_next():
    torch.manual_seed(0)
    table = of(0.5, 1.0)
    policy, x = ShrinkagePolicy(5, table, 8), torch.tensor([[1.0, 3, 1, 16, 1]])
    free = torch.tensor([[False, True, True, True, True]])
    drawn = policy(x, free, 3)
    assert drawn.actions.shape == (3, 1, 5)
    torch.testing.assert_close(policy(x, free, 3, drawn.actions).logps, drawn.logps)
    for actions, logps in zip(drawn.actions[:, 0], drawn.logps[:, 0], strict=True):
        seen, states, found = x[0].clone(), policy.cells.start(1, x), []
        for attribute in range(5):
            top, states = policy.cells(seen[None], states)
            logp = policy.choose(top).log_softmax(-1)[0, actions[attribute]]
            found.append(logp if free[0, attribute] else torch.zeros(()))
            if free[0, attribute]:
                seen[attribute] *= table[actions[attribute]]
        torch.testing.assert_close(torch.stack(found), logps)


def test_all_of_the_shrinkage_policy_is_trained():
    policy = ShrinkagePolicy(5, of(0.5, 1.0), 8)
    drawn = policy(layer_features(CHAIN.layers), shrinkable(CHAIN.layers), 2)
    reinforce_loss(drawn.logps, of(1.0, -0.5)).backward()
    cells = [name for name, _ in policy.named_parameters() if name.startswith("cells")]
    assert len(cells) == 8  # two cells of four parameters
    assert all(parameter.grad is not None for parameter in policy.parameters())
