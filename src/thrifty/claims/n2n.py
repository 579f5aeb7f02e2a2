"""N2N's policies learn where random search does not, beat uniform narrowing, and help with a larger teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from thrifty.claims.harness import Claim, Condition
from thrifty.core.run import Run
from thrifty.nets.chain import ChainConfig, ChainNet, Layer, parameters
from thrifty.shrink.architecture_search import Scores, Search
from thrifty.shrink.base import scratch_run
from thrifty.shrink.candidates import initialised
from thrifty.shrink.children import narrower
from thrifty.shrink.controllers import KEEP, Rollouts
from thrifty.shrink.n2n import N2N
from thrifty.shrink.n2n_stages import best_student, removal_search, shrinkage_search, train_policy
from thrifty.shrink.pictures import Pictures, accuracy, drawn
from thrifty.shrink.students import Students
from thrifty.shrink.vision import learn

_METHOD = N2N(
    iterations=20,
    removal_rate=0.01,
    scale="log2",
    child_epochs=2.0,
    child_rate=3e-3,
    examples=500,
    batch_size=25,
    student_epochs=8.0,
)
_WIDTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_ENDS = 5  # iterations at the beginning and at the end over which rewards are averaged


@dataclass(frozen=True, eq=False)
class Problem:
    """A large and a small teacher of the same pictures, with their students.

    Parameters
    ----------
    method
        Its settings, those of all arms.
    large, small
        The students of each teacher.
    large_scores, small_scores
        Their accuracies: a network is trained once for all arms.
    test
        Pictures for the final numbers.
    teacher_accuracy
        Of the large teacher on them.
    """

    method: N2N
    large: Students
    small: Students
    large_scores: Scores
    small_scores: Scores
    test: Pictures
    teacher_accuracy: float


def _teacher(depth: int) -> ChainConfig:
    """A chain for 14x14 pictures: a convolution with stride 2, then two stages of 3x3 convolutions."""
    layers = [Layer("conv", 3, 2, 24, 1), Layer("norm"), Layer("relu")]
    for stage, width in enumerate((24, 48)):
        layers += [Layer("max-pool", 2, 2)] if stage else []
        for _ in range(depth):
            layers += [Layer("conv", 3, 1, width, 1), Layer("norm"), Layer("relu")]
    layers += [Layer("global-pool"), Layer("linear", channels=10, bias=True)]
    return ChainConfig(tuple(layers), 1, (14, 14))


def _prepare(seed: int, quick: bool, directory: Path) -> Problem:  # noqa: ARG001
    sizes = (600, 300, 500) if quick else (4000, 500, 3000)
    name = "digits" if quick else "fashion-mnist"
    side = 14
    train, valid, test = (
        Pictures(functional.interpolate(part.images, (side, side), mode="area"), part.y)
        for part in drawn(name, seed, *sizes)
    )
    method = _METHOD
    if quick:
        method = dataclasses.replace(_METHOD, iterations=2, rollouts=2, examples=400, child_epochs=4.0)

    def teacher(depth: int) -> nn.Module:
        net = initialised(lambda: ChainNet(_teacher(depth)), seed, depth)
        learn(net, train, epochs=8, seed=seed)
        return net

    large, small = teacher(3), teacher(1)
    with scratch_run() as run:
        of_large, of_small = (Students.of(method, net, train, valid, run) for net in (large, small))
    known = Scores(of_large.score), Scores(of_small.score)
    return Problem(method, of_large, of_small, *known, test, accuracy(large, test))


class _Uniform(nn.Module):
    """Draws all actions with the same probability, and learns nothing."""

    def __init__(self, choices: int) -> None:
        super().__init__()
        self.choices = choices

    def forward(self, features: Tensor, free: Tensor, count: int, actions: Tensor | None = None) -> Rollouts:  # noqa: ARG002
        drawn = torch.randint(self.choices, (count, *free.shape))
        return Rollouts(drawn if free.ndim > 1 else drawn.masked_fill(~free, KEEP), torch.zeros(drawn.shape))


def _undirected(search: Search, choices: int) -> Search:
    return dataclasses.replace(search, policy=_Uniform(choices), reinforce=lambda *_: None)


def _searched(problem: Problem, change: Callable[[Search, int], Search]) -> dict[str, float]:
    """Both stages on the large teacher, and the student that they find."""
    method, students = problem.method, problem.large
    scores = Scores(problem.large_scores)
    with scratch_run() as run:
        first = _trained(change(removal_search(method, students.config, students, scores), 2), problem, run)
        config, _ = best_student(method, first, students)
        second = _trained(change(shrinkage_search(method, config, students, scores), 10), problem, run)
        config, found = best_student(method, second, students)
        return _ends(first, "removal") | _ends(second, "shrinkage") | _student(problem, config, found["reward"], run)


def _trained(search: Search, problem: Problem, run: Run) -> Search:
    return train_policy(search, problem.method.iterations, run.stage(search.name), run)


def _ends(search: Search, name: str) -> dict[str, float]:
    means = search.history.means()
    early, late = means[:_ENDS], means[-_ENDS:]
    return {f"{name}_early": sum(early) / len(early), f"{name}_late": sum(late) / len(late)}


def _student(problem: Problem, config: ChainConfig, reward: float, run: Run) -> dict[str, float]:
    test = accuracy(problem.large.taught(config, run.stage("student")), problem.test)
    return {
        "reward": reward,
        "test_accuracy": test,
        "accuracy_lost": problem.teacher_accuracy - test,
        "times_smaller": problem.large.parameters / parameters(config),
    }


def _n2n(problem: Problem) -> Mapping[str, float]:
    return _searched(problem, lambda search, _: search)


def _random(problem: Problem) -> Mapping[str, float]:
    return _searched(problem, _undirected)


def _narrower(problem: Problem) -> Mapping[str, float]:
    method, students = problem.method, problem.large
    candidates = [narrower(students.config, width, method.fewest_channels) for width in _WIDTHS]
    accuracies = torch.tensor([problem.large_scores(one) for one in candidates])
    sizes = torch.tensor([float(parameters(one)) for one in candidates])
    rewards = method.rewards(students, accuracies, sizes)
    with scratch_run() as run:
        return _student(problem, candidates[int(rewards.argmax())], float(rewards.max()), run)


def _transferred(problem: Problem) -> Mapping[str, float]:
    """Removal on the large teacher by a policy that has learnt it on the small one."""
    with scratch_run() as run:
        small = Scores(problem.small_scores)
        _trained(removal_search(problem.method, problem.small.config, problem.small, small), problem, run)
        method = dataclasses.replace(problem.method, start_from=str(run.directory))
        scores = Scores(problem.large_scores)
        search = removal_search(method, problem.large.config, problem.large, scores)
        return _ends(train_policy(search, method.iterations, run.stage("transferred"), run), "removal")


CLAIM = Claim(
    paper_id="n2n",
    says=(
        "Two policies trained by REINFORCE on accuracy and size, one that removes layers and one that shrinks them, "
        "find students many times smaller than their teacher at similar accuracy; a policy from a small teacher has a "
        "head start with a larger one."
    ),
    setting=(
        "A chain of 7 convolutions (24 and 48 channels, 68 thousand weights) trained on 4,000 pictures of "
        "Fashion-MNIST at 14x14. Each search draws 100 children in either stage (20 iterations of 5), trained for 2 "
        "passes over 500 pictures to match its logits; students found are trained for 8 passes over all. Policies "
        "have 20 updates instead of 100, at the paper's rate for shrinkage. Random search draws as many children with "
        "equal probabilities; uniform narrowing takes the best of nine widths. transfer starts removal with the policy "
        "of a teacher of 3 convolutions. early and late are mean rewards of the first and the last 5 iterations."
    ),
    prepare=_prepare,
    arms={
        "n2n": _n2n,
        "random search": _random,
        "uniform width": _narrower,
        "transfer": _transferred,
    },
    metrics=(
        "reward",
        "test_accuracy",
        "times_smaller",
        "removal_early",
        "removal_late",
        "shrinkage_early",
        "shrinkage_late",
    ),
    conditions=[
        Condition("removal_late", "n2n", "random search", margin=0.1),
        Condition("shrinkage_late", "n2n", "random search", margin=0.1),
        Condition("reward", "n2n", "random search", margin=-0.02),
        Condition("reward", "n2n", "uniform width"),
        Condition("times_smaller", "n2n", 5.0),
        Condition("accuracy_lost", "n2n", 0.03, less=True),
        Condition("removal_early", "transfer", "n2n"),
    ],
)
