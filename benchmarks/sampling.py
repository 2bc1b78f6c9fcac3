"""Drawing responses: vLLM and the torch sampler against transformers' `generate`, and other weights in place against a
new engine. All in this process, every response of the same length.

python -m benchmarks.sampling
"""

import gc
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.measure import Line, interleave, line, print_lines, require_close, skipped
from benchmarks.models import Shape, make_model, make_samples
from wmss.models.loading import load_model
from wmss.records import Completion
from wmss.scoring.interfaces import Sampler, Sampling
from wmss.scoring.torch_sampler import TorchSampler
from wmss.scoring.torch_scorer import TorchEntropyScorer

REPETITIONS = 3
SHAPE = Shape(vocabulary=4096, width=256, layers=12)
NUM_PROMPTS, RESPONSES = 16, 4
PROMPT_TOKENS, NEW_TOKENS = 64, 32
NAIVE_BATCH = 8
TOLERANCE = 1e-4
"""Of the responses' log-probabilities against a forward over prompt and response, relative; all in float32."""


def run(
    *,
    shape: Shape = SHAPE,
    num_prompts: int = NUM_PROMPTS,
    new_tokens: int = NEW_TOKENS,
    repetitions: int = REPETITIONS,
) -> Iterator[Line]:
    """Tokens a second, and seconds until an engine samples from other weights."""
    from services.settings import engine_environment

    samples = make_samples([PROMPT_TOKENS] * num_prompts, vocabulary=shape.vocabulary)
    prompts = [sample.input_ids.tolist() for sample in samples for _ in range(RESPONSES)]
    told = {**shape._asdict(), "prompts": num_prompts, "responses": RESPONSES, "prompt_tokens": PROMPT_TOKENS}
    told |= {"new_tokens": new_tokens}
    max_length = PROMPT_TOKENS + new_tokens
    with ExitStack() as stack:
        # Standard output is for the benchmark's lines.
        environment = engine_environment() | {"TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
        stack.enter_context(mock.patch.dict(os.environ, environment))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weights = [folder / "first", folder / "other"]
        for seed, each in enumerate(weights):
            make_model(shape, seed=seed, attention="sdpa").save_pretrained(each)
        model = load_model(weights[0]).eval()
        arms: dict[str, Callable[[], Any]] = {
            f"generate batch {size}": partial(_generate, model, prompts, new_tokens, size)
            for size in (NAIVE_BATCH, NUM_PROMPTS * RESPONSES)
        }
        samplers: dict[str, Sampler] = {"torch ours": TorchSampler(max_length=max_length)}
        if has_vllm():
            samplers["vllm ours"] = _engine(weights[0], max_length)
        else:
            yield skipped("sampling", "vllm ours", "vllm is not installed")
        for name, sampler in samplers.items():
            arms[name] = partial(_sample, sampler, weights[0], prompts, new_tokens)
            _gate(name, weights[0], prompts, arms[name]())
        seconds = interleave(arms, repetitions=repetitions)
        for name, taken in seconds.items():
            figures = {"tokens_per_s": len(prompts) * new_tokens / min(taken)}
            figures |= {
                f"{peer.replace(' ', '_')}_over_this": min(seconds[peer]) / min(taken)
                for peer in arms
                if peer.startswith("generate")
            }
            yield line("sampling", name, told, seconds=taken, figures=figures)
        if has_vllm():
            engine: Any = samplers.pop("vllm ours")
            arms.clear()
            yield from _changes(engine, weights, told, repetitions)


def has_vllm() -> bool:
    """Whether the arms that need vLLM can run."""
    return importlib.util.find_spec("vllm") is not None


def _engine(weights: Path, max_length: int) -> Any:
    from wmss.scoring.vllm_sampler import VllmSampler

    return VllmSampler(weights, max_length=max_length, skip_tokenizer_init=True)


def _changes(engine: Any, weights: Sequence[Path], told: dict[str, Any], repetitions: int) -> Iterator[Line]:
    """Other weights into the engine, with its probe, and an engine made for them."""
    in_place, anew, differences = [], [], []
    for repetition in range(repetitions):
        started = time.process_time()
        engine.load(weights[(repetition + 1) % 2])
        in_place.append(time.process_time() - started)
        differences.append(engine.probe_difference)
    # An engine takes the process's groups along when it goes: it must be gone before the next one comes.
    del engine
    for repetition in range(repetitions):
        gc.collect()
        started = time.process_time()
        _engine(weights[repetition % 2], PROMPT_TOKENS + told["new_tokens"])
        anew.append(time.process_time() - started)
    figures = {"probe_difference_nat": max(differences), "new_engine_over_this": min(anew) / min(in_place)}
    yield line("sampling", "weights in place", told, seconds=in_place, figures=figures)
    yield line("sampling", "new engine", told, seconds=anew, note="with vLLM imported already")


def _sample(sampler: Sampler, weights: Path, prompts: Sequence[list[int]], new_tokens: int) -> list[Completion]:
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=None, max_new_tokens=new_tokens)
    return sampler.sample(weights, prompts, range(len(prompts)), sampling=sampling, end_token_ids=[])


@torch.no_grad()
def _generate(model: Any, prompts: Sequence[list[int]], new_tokens: int, batch: int) -> None:
    """What people write: transformers' own sampling, in batches of prompts that need no padding."""
    for start in range(0, len(prompts), batch):
        input_ids = torch.tensor(prompts[start : start + batch])
        mask = torch.ones_like(input_ids)
        limits = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        model.generate(input_ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, **limits)


def _gate(name: str, weights: Path, prompts: Sequence[list[int]], found: Sequence[Completion]) -> None:
    sequences = [[*prompt, *completion.token_ids] for prompt, completion in zip(prompts, found, strict=True)]
    rows = TorchEntropyScorer(weights).score(sequences, [len(prompt) - 1 for prompt in prompts])
    exact = torch.tensor([-float(each[:-1, 1].sum(dtype=np.float64)) for each in rows])
    ours = torch.tensor([completion.logprob for completion in found])
    require_close(f"sampling {name}", {"logprob": ours}, {"logprob": exact}, tolerance=TOLERANCE)


if __name__ == "__main__":
    print_lines(run())
