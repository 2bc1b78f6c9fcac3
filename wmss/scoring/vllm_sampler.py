"""Sampling with a vLLM engine whose weights change in place, and which has to show each time that they did."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from wmss.errors import ModelError, ScoringError
from wmss.models.files import file_stamps
from wmss.models.loading import model_config, weight_files
from wmss.records import Completion
from wmss.scoring.interfaces import Sampling, response_limits
from wmss.scoring.sampling_probe import Probe, check_probe, check_room, make_probe
from wmss.scoring.self_check import check_dtype
from wmss.scoring.vllm_engine import load_vllm, telling_deaths
from wmss.scoring.vllm_scorer import VllmEngine, keep_freed_memory

MAX_BATCHED_TOKENS = 8192
"""Prompt tokens a step."""

_MAY_DIFFER = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
"""Fields of config.json that say nothing of a model's arithmetic or shape."""


class VllmSampler(VllmEngine):
    """A vLLM engine made for one checkpoint, which samples from every model of the same shape.

    A call is a function of its arguments where the engine runs in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`, as
    the service sets): an engine in a process of its own begins with the first requests before it has the last, and what
    is in a step together decides how its figures are rounded.
    """

    calls_at_once = 1

    def __init__(
        self,
        checkpoint: Path,
        *,
        max_length: int,
        dtype: str = "float32",
        gpu_memory_utilization: float = 0.5,
        **engine: Any,
    ) -> None:
        """`max_length` bounds prompt and response together; `engine` takes further arguments of `vllm.LLM`.

        Raises:
            ConfigError: `dtype` is none of float32, float16, bfloat16.
            ScoringError: the engine does not give what PyTorch does with the same weights.
        """
        check_dtype(dtype)
        check_room(max_length)
        engine_class = load_vllm()
        # Before the engine is there: the two do not hold their weights at the same time.
        first = make_probe(checkpoint, max_length=max_length)
        keep_freed_memory()
        self._checkpoint = checkpoint
        self._max_length = max_length
        self._dtype = dtype
        self._loaded: Any = None
        self._probe: Probe | None = None
        self.probe_difference = 0.0
        """What the last probe found, in nats."""
        self._llm = engine_class(
            model=str(checkpoint),
            dtype=dtype,
            max_model_len=max_length,
            max_num_batched_tokens=max(MAX_BATCHED_TOKENS, max_length),
            gpu_memory_utilization=gpu_memory_utilization,
            worker_extension_cls="wmss.scoring.vllm_weights.WeightLoading",
            generation_config="vllm",
            **{
                "enforce_eager": True,
                "enable_prefix_caching": True,
                # A prompt in two parts makes vLLM 0.32 wind back the request's random numbers, which those of a CPU
                # cannot.
                "enable_chunked_prefill": False,
                "async_scheduling": False,
                "use_tqdm_on_load": False,
                "disable_log_stats": True,
            }
            | engine,
        )
        self._check(first, checkpoint)
        self._loaded = _state(checkpoint)

    def load(self, weights: Path) -> None:
        """Compute with the weights in this folder from now on, unless the engine already does.

        Raises:
            ModelError: it is a model of another shape.
            ScoringError: the engine does not give what PyTorch does with these weights; the next call loads them anew.
        """
        wanted = _state(weights)
        if wanted == self._loaded:
            return
        self._check_shape(weights)
        probe = self._make_probe(weights)
        self._loaded = None
        # What it begins with lies in the prefix cache then, computed with the old weights: a cache that is not emptied
        # shows, whatever was asked before.
        self._forced(probe.prompts, probe.tokens, 1)
        with telling_deaths():
            self._llm.collective_rpc("load_checkpoint", args=(str(weights),))
        self._reset()
        self._check(probe, weights)
        self._loaded = wanted

    def sample(
        self,
        weights: Path,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        end_token_ids: Sequence[int],
    ) -> list[Completion]:
        """As `Sampler.sample`."""
        limits = response_limits(prompts, sampling, max_length=self._max_length)
        self.load(weights)
        # What earlier calls left would change which tokens are computed together, and so the last bits of their
        # probabilities.
        self._reset()
        drawn = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or 0,
            "stop_token_ids": list(end_token_ids),
        }
        parameters = [{**drawn, "seed": seed, "max_tokens": limit} for seed, limit in zip(seeds, limits, strict=True)]
        return [
            Completion(
                token_ids=tuple(output.token_ids),
                finish_reason="stop" if output.finish_reason == "stop" else "length",
                logprob=output.cumulative_logprob,
            )
            for output in self._generate(prompts, parameters)
        ]

    def _make_probe(self, weights: Path) -> Probe:
        if not self._llm.llm_engine.model_config.using_transformers_backend():
            return make_probe(weights, max_length=self._max_length)
        # vLLM runs this family on transformers' own classes and has changed them for good: in this process they would
        # no longer be what the engine is compared with.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            return apart.submit(make_probe, weights, max_length=self._max_length).result()

    def _check(self, probe: Probe, weights: Path) -> None:
        self.probe_difference = check_probe(self._forced, probe, self._probe, weights=weights, dtype=self._dtype)
        self._probe = probe

    def _generate(self, prompts: Sequence[Sequence[int]], parameters: Sequence[dict[str, Any]]) -> list[Any]:
        from vllm import SamplingParams

        # Log-probabilities are those of the model itself: vLLM takes them before temperature and filters.
        always = {"logprobs": 0, "ignore_eos": True, "detokenize": False}
        with telling_deaths():
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(ids)} for ids in prompts],
                [SamplingParams(**always, **own) for own in parameters],
                use_tqdm=False,
            )
        return [output.outputs[0] for output in outputs]

    def _forced(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int], count: int) -> list[list[float]]:
        parameters = [{"temperature": 0.0, "max_tokens": count, "allowed_token_ids": [token]} for token in tokens]
        outputs = self._generate(prompts, parameters)
        return [
            [step[token].logprob for step in output.logprobs] for output, token in zip(outputs, tokens, strict=True)
        ]

    def _reset(self) -> None:
        with telling_deaths():
            emptied = self._llm.reset_prefix_cache()
        if not emptied:
            raise ScoringError(
                "prefix cache: the engine did not empty it, and would mix answers of different weights; try again with "
                "a new engine"
            )

    def _check_shape(self, weights: Path) -> None:
        ours, theirs = (model_config(folder).to_dict() for folder in (self._checkpoint, weights))
        differing = sorted(
            name for name in (ours.keys() | theirs.keys()) - _MAY_DIFFER if ours.get(name) != theirs.get(name)
        )
        if differing:
            told = ", ".join(f"{name} {ours.get(name)!r} and {theirs.get(name)!r}" for name in differing[:3])
            raise ModelError(
                f"weights: {weights} is a model of another shape than {self._checkpoint}, for which this engine was "
                f"made ({told}); start another engine for it",
                param="weights",
            )


def _state(weights: Path) -> tuple[Path, dict[str, list[int]]]:
    return weights, file_stamps(weight_files(weights))
