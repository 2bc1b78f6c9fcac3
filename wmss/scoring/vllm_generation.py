"""Greedy generation with a vLLM engine in this process."""

from pathlib import Path

from wmss.scoring.vllm_engine import check_alive, telling_deaths


class VllmGenerator:
    """A vLLM engine that continues token sequences under one checkpoint."""

    def __init__(
        self, checkpoint: Path, *, max_length: int, dtype: str = "float32", gpu_memory_utilization: float = 0.5
    ) -> None:
        from vllm import LLM

        self._llm = LLM(
            model=str(checkpoint),
            dtype=dtype,
            max_model_len=max_length,
            enforce_eager=True,
            generation_config="vllm",
            gpu_memory_utilization=gpu_memory_utilization,
            disable_log_stats=True,
        )

    def generate(self, prompts: list[list[int]], max_tokens: list[int], *, end_token_ids: list[int]) -> list[list[int]]:
        """Greedy continuation of each prompt up to, without, one of `end_token_ids`, or `max_tokens[i]` ids."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(temperature=0.0, max_tokens=limit, stop_token_ids=end_token_ids, detokenize=False)
            for limit in max_tokens
        ]
        with telling_deaths():
            outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
        return [_without_end(output.outputs[0]) for output in outputs]

    def check_alive(self) -> None:
        """Raise `EngineDiedError` if the engine's process is gone."""
        check_alive(self._llm)


def _without_end(completion: object) -> list[int]:
    """vLLM returns the end token as the last id of an answer that stopped by itself."""
    ids = list(completion.token_ids)  # type: ignore[attr-defined]
    return ids[:-1] if completion.finish_reason == "stop" else ids  # type: ignore[attr-defined]
