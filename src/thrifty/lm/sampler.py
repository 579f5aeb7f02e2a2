"""What samples: this machine's model, or a vLLM engine, behind one small protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.core.seeding import derive_seed
from thrifty.lm.chat import Prompt, prompt_ids
from thrifty.lm.draw import Draw
from thrifty.lm.sample import sample
from thrifty.lm.sequences import Sequences, from_rows

Numbering = tuple[int, Sequence[int]]
"""Where prompts are a part of more: how many there are in all, and which of them these are."""


@dataclass(frozen=True)
class Request:
    """What is asked of a sampler.

    Parameters
    ----------
    n
        Samples of each prompt.
    max_new_tokens
        Tokens after which a row is cut off.
    draw
        The distribution of each token.
    seed
        The same seed and prompts give the same samples.
    numbering
        Where the prompts are a part of more: each then gets the answers that it would get among all.
    """

    n: int
    _: KW_ONLY
    max_new_tokens: int
    draw: Draw
    seed: int
    numbering: Numbering | None = None


class Sampler(Protocol):
    """Anything that answers prompts with sequences as :func:`thrifty.lm.sample.sample` returns them."""

    def sample(self, prompts: Sequence[Prompt], request: Request) -> Sequences:
        """``request.n`` samples of each prompt in order, with columns behaviour_logps, group and finished."""

    def refresh(self, model: Any) -> None:
        """Take over the weights of a model that was trained in the meantime."""


@dataclass(frozen=True)
class ModelSampler:
    """Samples from a transformers model in this process.

    Parameters
    ----------
    model, tokenizer
        As for :func:`thrifty.lm.sample.sample`.
    batch_size
        Rows decoded at once; None chooses.
    stop_ids
        As for :func:`thrifty.lm.sample.sample`.
    """

    model: Any
    tokenizer: Any
    batch_size: int | None = None
    stop_ids: Iterable[int] | None = None

    def sample(self, prompts: Sequence[Prompt], request: Request) -> Sequences:
        """See :class:`Sampler`."""
        draw = request.draw
        return sample(
            self.model,
            self.tokenizer,
            prompts,
            request.n,
            max_new_tokens=request.max_new_tokens,
            temperature=draw.temperature,
            top_k=draw.top_k,
            top_p=draw.top_p,
            greedy=draw.greedy,
            stop_ids=self.stop_ids,
            generator=request.seed,
            batch_size=self.batch_size,
            numbering=request.numbering,
        )

    def refresh(self, model: Any) -> None:
        """Nothing to do: the model that is trained is the one that samples."""


class VLLMSampler:
    """Samples from a vLLM engine.

    Parameters
    ----------
    engine
        A ``vllm.LLM``, created with ``logprobs_mode="processed_logprobs"`` so that its log-probabilities
        are those of the distribution drawn from; or the name of a model, from which one is created.
    tokenizer
        Of the same model.
    stop_ids
        Further tokens that end a row; vLLM knows the model's own end-of-sequence tokens.

    Raises
    ------
    InputError
        If a model is named and vLLM is not installed.
    """

    def __init__(self, engine: Any, tokenizer: Any, *, stop_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = sorted(set(stop_ids))
        self.engine = _engine(engine) if isinstance(engine, str) else engine

    def sample(self, prompts: Sequence[Prompt], request: Request) -> Sequences:
        """See :class:`Sampler`."""
        n, draw, seed = request.n, request.draw, request.seed
        ids = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        # The engine numbers what it is given; parts of more must not get the same random numbers.
        if request.numbering is not None:
            seed = derive_seed(seed, *request.numbering[1][:1]) % 2**31
        outputs = self.engine.generate(
            [{"prompt_token_ids": prompt} for prompt in ids],
            _sampling_params(
                n=n,
                temperature=0.0 if draw.greedy else draw.temperature,
                top_p=1.0 if draw.top_p is None else draw.top_p,
                top_k=-1 if draw.top_k is None else draw.top_k,
                max_tokens=request.max_new_tokens,
                logprobs=0,
                seed=seed,
                stop_token_ids=self.stop_ids,
                detokenize=False,
            ),
            use_tqdm=False,
        )
        rows, logps, groups, finished = [], [], [], []
        for number, (prompt, output) in enumerate(zip(ids, outputs, strict=True)):
            if len(output.outputs) != n:
                raise InputError(f"vLLM returned {len(output.outputs)} samples of prompt {number}, {n} were asked for")
            for answer in output.outputs:
                tokens = list(answer.token_ids)
                rows.append((prompt + tokens, [False] * len(prompt) + [True] * len(tokens)))
                logps.append([step[token].logprob for token, step in zip(tokens, answer.logprobs, strict=True)])
                groups.append(number)
                finished.append(answer.finish_reason == "stop")
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        return from_rows(
            rows,
            pad_id=pad or 0,
            row_columns={"group": groups, "finished": finished},
            token_columns={"behaviour_logps": logps},
        )

    def refresh(self, model: Any) -> None:
        """Loads the model's weights into the engine, adapters added to them, and forgets cached prefixes."""
        with merged_adapters(model):
            weights = list(named_weights(model))
            if hasattr(self.engine, "apply_model"):
                self.engine.apply_model(lambda inner: inner.load_weights(weights))
            else:
                worker = self.engine.llm_engine.model_executor.driver_worker
                worker.model_runner.model.load_weights(weights)
        self.engine.reset_prefix_cache()


@contextlib.contextmanager
def merged_adapters(model: Any) -> Iterator[None]:
    """Within it PEFT's adapters are added to the weights; nothing happens without adapters."""
    if not hasattr(model, "merge_adapter"):
        yield
        return
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()


def named_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names that the model has without PEFT around it; adapters' own are left out."""
    prefix = getattr(model, "prefix", None)  # of the adapters' parameters, such as lora_
    for name, parameter in model.named_parameters():
        if prefix is not None:
            if prefix in name:
                continue
            name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        yield name, parameter.data


def _engine(name: str) -> Any:
    try:
        from vllm import LLM
    except ImportError as error:
        raise InputError("vLLM is not installed: `pip install vllm`, or use ModelSampler") from error
    return LLM(model=name, logprobs_mode="processed_logprobs")


def _sampling_params(**settings: Any) -> Any:
    try:
        from vllm import SamplingParams
    except ImportError:  # an engine that speaks the same protocol reads the settings from any object
        from types import SimpleNamespace

        return SimpleNamespace(**settings)
    return SamplingParams(**settings)
