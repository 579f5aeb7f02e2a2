"""Trains a tiny decoder on its own answers; started by the tests with and without processes set apart for sampling."""

import sys
from pathlib import Path
from typing import Any

import torch

from thrifty.align import GRPO, Sampling, Training, train
from thrifty.align.adapter import with_lora
from thrifty.core import processes
from thrifty.core.run import Run
from thrifty.lm.load import load_lm
from thrifty.lm.remote import sampling_processes

directory, folder, apart, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
if sampling_processes(apart):
    sys.exit()
processes.connect(torch.device("cpu"))


def reward(prompts: list[Any], completions: list[str]) -> list[float]:
    return [sum(word in "13579" for word in text.split()) / 6 for text in completions]


with Run(directory, seed=3, device="cpu", dtype="float32") as run:
    model, tokenizer = load_lm(folder)
    if rank:
        torch.manual_seed(0)
        model = with_lora(model, rank)
    training = Training(learning_rate=1e-2, micro_batch_size=4, epochs=2)
    sampling = Sampling(samples=4, prompts_per_rollout=3, max_new_tokens=6)
    prompts = [f"what is {number} plus 2" for number in range(1, 7)]
    train(model, GRPO(), prompts, run, training, tokenizer=tokenizer, reward=reward, sampling=sampling)
    if run.main:
        model.save_pretrained(directory / "model")
    run.finish({})
