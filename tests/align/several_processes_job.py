"""Trains a tiny decoder on logged answers; started by the tests with one process and with two, also sharded."""

import atexit
import os
import sys
import time
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from thrifty.align import SFT, TOPR, train
from thrifty.align.base import Training
from thrifty.align.ppo import PPO
from thrifty.core import processes, sharding
from thrifty.core.run import Run
from thrifty.lm import states
from thrifty.lm.sequences import from_rows


def no_thread_is_left() -> None:
    """A thread of the exchange that outlives the interpreter now and then aborts the process."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text() for task in tasks.iterdir()] if tasks.exists() else []
    if any("gloo" in name for name in names):
        sys.stderr.write(f"threads are left: {names}\n")
        os._exit(9)


atexit.register(no_thread_is_left)  # the first registered is the last called
directory, name, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
torch.set_num_threads(1)
with Run(directory, seed=3, device="cpu", dtype="float32", config={"objective": name}) as run:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.0,
    )
    model = LlamaForCausalLM(config)
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 9, (22,), generator=draw).tolist()
    tokens = [torch.randint(0, 50, (3 + length,), generator=draw).tolist() for length in lengths]
    data = from_rows(
        [(row, [False] * 3 + [True] * (len(row) - 3)) for row in tokens],
        pad_id=0,
        row_columns={
            "reward": [1.0 if i % 3 else -1.0 for i in range(22)],
            "group": list(range(22)),
            "finished": [i % 5 > 0 for i in range(22)],
        },
        token_columns={"behaviour_logps": [[-3.9] * length for length in lengths]},
    )
    objective = {"topr": TOPR(), "sft": SFT(), "ppo": PPO()}[name]

    if sharding.on() and processes.is_main():  # has less memory, so that it cuts its part into more segments
        states.activation_tokens = lambda *_, **__: 12

    class Slow(type(objective)):  # gives the test time to kill it
        def loss(self, net, *batch):
            time.sleep(pause)
            assert any(isinstance(part, DTensor) for part in net.parameters()) == sharding.on()
            return super().loss(net, *batch)

    # sft keeps 14 good answers: one batch, in parts of four and of three
    batch_size, epochs = {"topr": (8, 4), "ppo": (8, 4), "sft": (16, 7)}[name]
    training = Training(learning_rate=1e-2, batch_size=batch_size, micro_batch_size=4, epochs=epochs)
    train(model, Slow(), data, run, training, save_every=2)
    if run.main:
        model.save_pretrained(directory / "model")
    run.finish({})
