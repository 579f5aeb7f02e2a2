"""Policies from logged or live environment data."""

from thrifty.control.base import Agent, AgentConfig, Policy, Relabeller
from thrifty.control.collection import Collection, collect
from thrifty.control.cql import CQL
from thrifty.control.decision_transformer import DecisionTransformer
from thrifty.control.episode import Episode
from thrifty.control.episodes import Episodes
from thrifty.control.evaluation import Score, evaluate, rollout
from thrifty.control.inverse_dynamics import InverseDynamics, InverseDynamicsConfig
from thrifty.control.protocols import Split, coupled_split, decoupled_split, label_mse
from thrifty.control.saving import load_policy
from thrifty.control.ss_orl import SSORL, ProxyLabels
from thrifty.control.td3_bc import TD3BC
from thrifty.control.transitions import Spaces, Transitions

__all__ = [
    "CQL",
    "SSORL",
    "TD3BC",
    "Agent",
    "AgentConfig",
    "Collection",
    "DecisionTransformer",
    "Episode",
    "Episodes",
    "InverseDynamics",
    "InverseDynamicsConfig",
    "Policy",
    "ProxyLabels",
    "Relabeller",
    "Score",
    "Spaces",
    "Split",
    "Transitions",
    "collect",
    "coupled_split",
    "decoupled_split",
    "evaluate",
    "label_mse",
    "load_policy",
    "rollout",
]
