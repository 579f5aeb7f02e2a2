"""The room: what the command runs, saves and compares."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from control_data import make_episodes

from thrifty.control.baselines import behaviour_cloning, labelled_only, oracle, point_mass, semi_supervised
from thrifty.control.episodes import Episodes
from thrifty.control.room import ROOM, Inputs
from thrifty.control.saving import load_policy
from thrifty.control.ss_orl import SSORL
from thrifty.core.errors import InputError
from thrifty.core.method import load_room

TINY = SSORL(idm_width=16, idm_steps=10, idm_batch_size=16, agent_steps=4, agent_batch_size=8, agent_width=16)


def test_with_no_arguments_it_collects_trains_plays_and_saves(run):
    summary = ROOM.run(TINY, Inputs(episodes=21, evaluation_episodes=3), run)
    who = {row["who"]: row for row in summary["table"]}
    assert set(who) == {
        "labelled episodes", "action-free episodes", "random behaviour", "expert behaviour", "trained policy"
    }  # fmt: skip
    assert who["labelled episodes"]["episodes"] == 2
    assert who["random behaviour"]["return"] < who["expert behaviour"]["return"]
    assert who["trained policy"]["low"] <= who["trained policy"]["return"] <= who["trained policy"]["high"]
    assert {"label_mse_in", "label_mse_out", "policy_action_mse"} <= set(summary["labels"])
    json.dumps(summary, allow_nan=False)
    assert load_policy(summary["policy"]).act(np.zeros(2)).shape == (2,)
    assert Episodes.load(run.directory / "labelled.safetensors").labelled.all()


def test_your_own_data_without_an_environment_is_measured_on_the_data(run, tmp_path):
    episodes = make_episodes([6] * 8).without_actions([i >= 4 for i in range(8)])
    episodes.save(tmp_path / "mine.safetensors")
    summary = ROOM.run(TINY, Inputs(data=str(tmp_path / "mine.safetensors")), run)
    assert [row["who"] for row in summary["table"]] == ["labelled episodes", "action-free episodes"]
    assert summary["labels"]["filled_in"] == 4
    assert "label_mse_in" not in summary["labels"]
    assert summary["settings"]["agent_steps"] == 4


def test_data_of_which_all_have_actions_needs_a_share(run, tmp_path):
    make_episodes([6] * 8).save(tmp_path / "mine.safetensors")
    inputs = Inputs(data=str(tmp_path / "mine.safetensors"))
    with pytest.raises(InputError, match="all episodes have actions"):
        ROOM.run(TINY, inputs, run)
    summary = ROOM.run(TINY, dataclasses.replace(inputs, labelled_share=0.25), run)
    assert summary["labels"]["filled_in"] == 6
    assert "label_mse_out" in summary["labels"]


def test_a_decision_transformer_runs_too(run):
    method = dataclasses.replace(TINY, agent="dt")
    summary = ROOM.run(method, Inputs(episodes=30, evaluation_episodes=2), run)
    assert "policy_action_mse" not in summary["labels"]


def test_sizes_are_small_without_data_and_the_papers_with_it():
    assert Inputs().small
    assert not Inputs(data="d.npz").small
    assert not Inputs(scale="full").small
    assert Inputs(data="d.npz", scale="small").small
    assert Inputs(env="Pendulum-v1").collection(3).env == "Pendulum-v1"


def test_the_room_is_found_by_its_name():
    assert load_room("control") is ROOM


def test_all_arms_of_a_problem_have_the_same_budget_and_data(tmp_path, monkeypatch):
    problem = point_mass(0, True, tmp_path)
    assert len(problem.truth) == 200
    assert len(problem.split.labelled) == 20
    assert problem.hidden.labelled.sum() == 20
    assert problem.labelled.returns().max() <= np.median(problem.truth.returns())
    monkeypatch.setattr(type(problem), "sized", lambda _self, method: dataclasses.replace(TINY, k=method.k))
    found = semi_supervised(SSORL(k=0), problem, "k0")
    assert {"return", "label_mse_in", "label_mse_out", "log10_label_mse"} <= set(found)
    assert found["log10_label_mse"] == pytest.approx(np.log10(found["label_mse"]))
    for baseline in (labelled_only, oracle, behaviour_cloning):
        assert set(baseline(problem)) == {"return"}


def test_quick_is_a_tenth_of_the_steps(tmp_path):
    problem = point_mass(0, True, tmp_path)
    full = dataclasses.replace(problem, quick=False).sized(SSORL())
    assert problem.sized(SSORL()).agent_steps * 10 == full.agent_steps
    assert full == SSORL().scaled_down()


def test_the_task_compares_methods_and_baselines(tmp_path, monkeypatch):
    task = ROOM.tasks["point-mass"]
    problem = task.prepare(0, True, tmp_path)
    monkeypatch.setattr(type(problem), "sized", lambda _self, method: dataclasses.replace(TINY, k=method.k))
    metrics = task.evaluate(task.variants["ss-orl, k = 0"](), problem)
    assert {name.lstrip("-") for name in task.metrics} <= set(metrics)
    assert len(task.baselines) == 3
