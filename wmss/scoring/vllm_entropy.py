"""The vLLM plugin: a pooling model around any text-generation model, which answers with exact statistics per token.

vLLM offers no entropy: `prompt_logprobs` moves the vocabulary through Python. A pooling model receives the hidden
states that enter the output head; `EntropyPooler` projects them in row chunks with the model's own `compute_logits` and
keeps four numbers per position. Tied heads, biases, soft-capping, scaling and padded vocabularies are that method's
business, so nothing here knows a family.

Registered through the entry point `vllm.general_plugins`, so every process of an engine finds it by itself. An engine
is made with `overrides` and asked with `request`, as `vllm_scorer.py` does.

Runs on the V1 model runner (CPU). The V2 runner, the default on GPUs, calls poolers through the same metadata (cursor,
prompt ids on the CPU, one state per request) and is written for, but was not run.

Shape suffixes: N rows (token positions), C rows of one chunk, V vocabulary, D hidden width, S statistics.
"""

from collections.abc import Callable, Iterator, Set
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from vllm import ModelRegistry, PoolingParams
from vllm.model_executor.layers.pooler import Pooler, PoolingParamsUpdate
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.model_executor.models.interfaces import supports_multimodal
from vllm.model_executor.models.interfaces_base import is_text_generation_model
from vllm.plugins import load_general_plugins

from wmss.core.entropy import entropy_of_logits_
from wmss.core.rows import DEFAULT_IGNORE_INDEX, compute_dtype, resolve_chunk_size
from wmss.scoring.interfaces import NUM_STATISTICS
from wmss.scoring.vllm_families import families

TASK = "token_classify"
"""The pooling task whose answer has a row per token, and which never skips tokens that the prefix cache holds."""

_PREFIX = "WmssEntropy"
_START, _KEEP_STATES = "wmss_start", "wmss_keep_states"
"""Entries of a request's parameters."""


def register() -> None:
    """Tell vLLM about the entropy model of every family; runs in each of its processes, so it imports no model."""
    for family in families():
        ModelRegistry.register_model(_PREFIX + family, f"{__name__}:{_PREFIX}{family}")
        # What vLLM adjusts for an architecture (cache sizes of Mamba, attention of GPT-OSS) it looks up by name.
        if family in MODELS_CONFIG_MAP:
            MODELS_CONFIG_MAP[_PREFIX + family] = MODELS_CONFIG_MAP[family]


def register_here(family: str) -> None:
    """Register the class of one family itself, in this process: of a class that is only named vLLM first asks a process
    of its own what it can do, 10 s whenever a family is new to the machine."""
    load_general_plugins()
    ModelRegistry.register_model(_PREFIX + family, entropy_model(family))


def overrides(family: str) -> dict[str, Any]:
    """The engine's `hf_overrides`: its configuration is all that reaches every process of an engine."""
    return {"architectures": [_PREFIX + family]}


def request(start: int, *, keep_states: bool = False) -> PoolingParams:
    """Parameters of a sequence whose rows are wanted from position `start` on, perhaps with their hidden states."""
    return PoolingParams(extra_kwargs={_START: start, _KEEP_STATES: keep_states})


def __getattr__(name: str) -> type[nn.Module]:
    """vLLM resolves `module:class` strings with getattr; the class is made when first asked for."""
    if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) in families():
        return entropy_model(name.removeprefix(_PREFIX))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def entropy_model(family: str) -> type[nn.Module]:
    """A pooling model with the weights, the body and the head of `family`, and `EntropyPooler` on top."""
    base = ModelRegistry._try_load_model_cls(family)
    if base is None or not is_text_generation_model(base) or supports_multimodal(base):
        raise ImportError(f"{family}: expected a class that makes text from text and has compute_logits, got {base}")

    class EntropyModel(base):  # type: ignore[misc, valid-type]
        is_pooling_model = True

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.pooler = EntropyPooler(self.compute_logits)

    EntropyModel.__name__ = EntropyModel.__qualname__ = _PREFIX + family
    return EntropyModel


class _Part(NamedTuple):
    """What one engine step has of one request."""

    rows: slice
    """Rows of the step's hidden states that are wanted."""
    labels: Tensor
    """The token that follows each of them, or -100."""
    keep_states: bool
    """Whether the rows themselves are wanted too."""
    is_first: bool
    """Its prefill begins with this step, for the first time or again after preemption."""
    num_expected: int | None
    """Rows of the whole answer, if its prefill ends with this step."""


class EntropyPooler(Pooler):
    """Hidden states of one engine step -> per finished request float32 [tokens - start, NUM_STATISTICS (+ D)].

    What is kept of a prompt prefilled in several chunks is its statistics, not its hidden states: four numbers a token
    instead of D. Rows before `start` are not projected. Where states are wanted, the D numbers that enter the head
    follow.
    """

    def __init__(self, compute_logits: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self._compute_logits = compute_logits

    def get_supported_tasks(self) -> Set[Any]:
        """The one task this pooler answers."""
        return {TASK}

    def get_pooling_updates(self, task: Any) -> PoolingParamsUpdate:
        """The pooler needs the prompts' ids: they are the labels."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
        """None for a request whose prefill goes on."""
        parts = list(_parts(pooling_metadata))
        sizes = [part.rows.stop - part.rows.start for part in parts]
        hidden_ND = torch.cat([hidden_states[part.rows] for part in parts])
        labels_N = torch.cat([part.labels for part in parts]).to(hidden_ND.device, non_blocking=True)
        statistics = torch.split(self._statistics(hidden_ND, labels_N), sizes)
        states = torch.split(hidden_ND, sizes)
        outputs: list[Tensor | None] = []
        for state, part, rows, hidden in zip(pooling_metadata.pooling_states, parts, statistics, states, strict=True):
            if part.is_first:
                state.clean()
            state.hidden_states_cache.append(torch.cat([rows, hidden.float()], dim=1) if part.keep_states else rows)
            if part.num_expected is None:
                outputs.append(None)
                continue
            answer = torch.cat(state.hidden_states_cache)
            assert len(answer) == part.num_expected, f"{len(answer)} rows of a request that has {part.num_expected}"
            outputs.append(answer)
            state.clean()
        return outputs

    def _statistics(self, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
        num_rows = hidden_ND.shape[0]
        out_NS = hidden_ND.new_full((num_rows, NUM_STATISTICS), torch.nan, dtype=torch.float32)
        size = resolve_chunk_size(None, hidden_ND.device)
        for start in range(0, num_rows, size):
            chunk = slice(start, start + size)
            logits_CV = self._compute_logits(hidden_ND[chunk])
            # With tensor parallelism every rank has to ask, but where logits are gathered only the first one gets them,
            # and only its answer is read.
            if logits_CV is not None:
                columns = entropy_of_logits_(logits_CV.to(compute_dtype(logits_CV)), labels_N[chunk])
                for number, column in enumerate(columns):
                    assert column is not None
                    out_NS[chunk, number] = column
        return out_NS


def _parts(metadata: Any) -> Iterator[_Part]:
    cursor = metadata.get_pooling_cursor()
    row = 0
    for params, ids, length, end, total in zip(
        metadata.pooling_params,
        metadata.get_prompt_token_ids_cpu(),
        cursor.num_scheduled_tokens_cpu.tolist(),
        cursor.seq_lens_cpu.tolist(),
        cursor.prompt_lens_cpu.tolist(),
        strict=True,
    ):
        # The engine's own rehearsals come without parameters.
        asked = params.extra_kwargs or {}
        start = asked.get(_START, 0)
        # The step has positions end - length .. end - 1 of this request.
        first = min(end, max(end - length, start))
        row += length
        yield _Part(
            rows=slice(row - (end - first), row),
            labels=next_tokens(ids, first, end),
            keep_states=asked.get(_KEEP_STATES, False),
            is_first=end == length,
            num_expected=total - start if end == total else None,
        )


def next_tokens(token_ids: Tensor, start: int, end: int) -> Tensor:
    """Tokens that positions start..end-1 predict: token_ids[start+1 .. end], -100 after the last one."""
    following = token_ids[start + 1 : end + 1].long()
    return nn.functional.pad(following, (0, end - start - following.numel()), value=DEFAULT_IGNORE_INDEX)
