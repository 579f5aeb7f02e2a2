"""Language-model plumbing: load, chat rendering, sequences, token log-probabilities, sampling."""

from thrifty.lm.chat import prompt_ids, render_prompt
from thrifty.lm.draw import Draw
from thrifty.lm.image_sampler import ImageTextSampler
from thrifty.lm.images import ImagePrompts
from thrifty.lm.load import load_lm, load_vlm
from thrifty.lm.logps import sequence_logps, token_logps
from thrifty.lm.records import from_records, pairs_from_records
from thrifty.lm.sample import sample
from thrifty.lm.sampler import ModelSampler, Request, Sampler, VLLMSampler
from thrifty.lm.sequences import Sequences

__all__ = [
    "Draw",
    "ImagePrompts",
    "ImageTextSampler",
    "ModelSampler",
    "Request",
    "Sampler",
    "Sequences",
    "VLLMSampler",
    "from_records",
    "load_lm",
    "load_vlm",
    "pairs_from_records",
    "prompt_ids",
    "render_prompt",
    "sample",
    "sequence_logps",
    "token_logps",
]
