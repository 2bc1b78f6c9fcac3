"""Sampling with a vLLM engine whose weights change in place, and which has to show each time that they did."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from wmss.records import Completion
from wmss.scoring.interfaces import Sampling, Weights, response_limits
from wmss.scoring.sampling_probe import Probe, check_probe, check_room, make_probe
from wmss.scoring.self_check import check_dtype
from wmss.scoring.vllm_engine import VllmEngine, telling_deaths
from wmss.scoring.vllm_scorer import device_here, provenance

MAX_BATCHED_TOKENS = 8192
"""Prompt tokens a step."""


class VllmSampler(VllmEngine[Probe]):
    """A vLLM engine made for one checkpoint, which samples from every model of the same shape.

    A call is a function of its arguments where the engine runs in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`, as
    the service sets): an engine in a process of its own begins with the first requests before it has the last, and what
    is in a step together decides how its figures are rounded.
    """

    calls_at_once = 1

    def __init__(
        self,
        weights: Weights,
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
        self._max_length = max_length
        self.probe_difference = 0.0
        """What the last probe found, in nats."""
        arguments = {
            "max_model_len": max_length,
            "max_num_batched_tokens": max(MAX_BATCHED_TOKENS, max_length),
            "gpu_memory_utilization": gpu_memory_utilization,
            "generation_config": "vllm",
            "enforce_eager": True,
            "enable_prefix_caching": True,
            # A prompt in two parts makes vLLM 0.32 wind back the request's random numbers, which those of a CPU cannot.
            "enable_chunked_prefill": False,
            "async_scheduling": False,
            "disable_log_stats": True,
        }
        super().__init__(
            weights,
            start=lambda make: make(**arguments | engine),
            reference=partial(make_probe, max_length=max_length),
            dtype=dtype,
        )

    def sample(
        self,
        weights: Weights,
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

    def provenance(self) -> dict[str, Any]:
        """Engine, version, precision and batch invariance."""
        return provenance(self._dtype, device_here())

    def _check(self, reference: Probe, before: Probe | None, weights: Weights) -> None:
        self.probe_difference = check_probe(self._forced, reference, before, weights=weights, dtype=self._dtype)

    def _use_caches(self, reference: Probe) -> None:
        # What the probe begins with lies in the prefix cache then, computed with the old weights: a cache that is not
        # emptied shows, whatever was asked before.
        self._forced(reference.prompts, reference.tokens, 1)

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
