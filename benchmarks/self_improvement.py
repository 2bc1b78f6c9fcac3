"""Easy-to-hard against a fixed mixture and the hardest level alone, on `graph_hops`, in one process.

    python -m benchmarks.self_improvement                    the three settings of EXPERIMENTS, all arms, two seeds
    python -m benchmarks.self_improvement window --seeds 4   one of them

Neither Ray nor vLLM: torch samples, and the product's own selection, batches, loss and optimizer train. Arms of one
experiment draw equally many samples and take equally many optimizer steps. Success is `graph_hops.success`: pass@1 at
temperature 1 in expectation, without the noise of sampling; the tasks it is measured on are the same for all arms.

The design is our reconstruction of an experiment whose text could not be read (arXiv 2602.10014).
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from wmss.config import Hyperparameters
from wmss.core.selection import Candidate, manifest_digest, select
from wmss.records import TokenizedSample
from wmss.tasks.fitting import fit
from wmss.tasks.graph_hops import BASE_SUCCESS, HOPS, MAX_NEW_TOKENS, make_base, make_task, solved, success

LEVELS = tuple(range(1, len(HOPS) + 1))
REHEARSED_FOCUS = 7
"""Parts of a rehearsed round that its own level has; each other level has one."""


def _stage(number: int, rounds: int) -> int:
    return LEVELS[number * len(LEVELS) // rounds]


def _rehearsed(number: int, rounds: int) -> tuple[int, ...]:
    focus = _stage(number, rounds)
    return (focus,) * REHEARSED_FOCUS + tuple(level for level in LEVELS if level != focus)


ARMS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "easy_to_hard": lambda number, rounds: (_stage(number, rounds),),
    "rehearsed": _rehearsed,
    "mixture": lambda number, rounds: LEVELS,
    "hard_only": lambda number, rounds: (LEVELS[-1],),
}
"""Levels that round `number` (0-based) of `rounds` draws from, in equal parts. `rehearsed` is easy-to-hard with a tenth
of each round for each other level: on one level alone the model forgets how long the answers of the others are."""


@dataclass(frozen=True)
class Setting:
    """What all arms of an experiment have in common."""

    samples_per_round: int
    rounds: int = 12
    steps_per_round: int = 120
    batch_size: int = 32
    learning_rate: float = 3e-4
    base_success: float = BASE_SUCCESS
    """Success on level 1 of the model to start from."""
    samples_per_prompt: int = 1
    max_level_share: float = 1.0
    num_held_out: int = 256
    """Held-out tasks per level."""


@dataclass(frozen=True)
class Round:
    """What one round did."""

    sampled: dict[int, int]
    accepted: dict[int, int]
    """Responses per level."""
    trained_on: int
    manifest: str
    success: tuple[float, ...]
    """On each level, after the update."""


EXPERIMENTS = {
    "window": Setting(samples_per_round=192),
    "parity": Setting(samples_per_round=384),
    "good_start": Setting(samples_per_round=24, rounds=8, base_success=0.9),
}


def run_arm(base: Path, arm: str, setting: Setting, *, seed: int) -> list[Round]:
    """All rounds of one arm; a function of its arguments on one machine and one thread."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    knobs = Hyperparameters(
        learning_rate=setting.learning_rate, warmup_ratio=0.0, lr_schedule="constant", weight_decay=0.01
    )
    held_out = _held_out(tokenizer, setting.num_held_out)
    done: list[Round] = []
    for number in range(setting.rounds):
        levels = ARMS[arm](number, setting.rounds)
        candidates, prompts = _sampled(model, tokenizer, levels, setting, seed=[seed, number])
        chosen = select(candidates, seed=seed * 1000 + number, max_level_share=setting.max_level_share)
        by_key = {candidate.key: candidate for candidate in candidates}
        samples = [_sample(prompts[key[0]], by_key[key].token_ids) for key in chosen.keys]
        if samples:
            fit(
                model,
                samples,
                knobs,
                batch_size=setting.batch_size,
                num_steps=setting.steps_per_round,
                seed=seed * 1000 + number,
            )
        done.append(
            Round(
                sampled=Counter(c.level or 0 for c in candidates),
                accepted=Counter(c.level or 0 for c in candidates if c.accepted),
                trained_on=len(samples),
                manifest=manifest_digest(chosen.keys, [by_key[key].token_ids for key in chosen.keys]),
                success=tuple(success(model, tests) for tests in held_out),
            )
        )
    return done


def _held_out(tokenizer: PreTrainedTokenizerFast, num_tasks: int) -> list[list[TokenizedSample]]:
    rng = np.random.default_rng(2**32)
    return [solved([make_task(rng, level=level) for _ in range(num_tasks)], tokenizer) for level in LEVELS]


def _sampled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    levels: tuple[int, ...],
    setting: Setting,
    *,
    seed: list[int],
) -> tuple[list[Candidate], list[list[int]]]:
    """Candidates, keyed by prompt and number of the sample, and the prompts' ids; prompts are new every round."""
    rng = np.random.default_rng([*seed, 0])
    num_prompts = setting.samples_per_round // setting.samples_per_prompt
    rows = [make_task(rng, level=levels[i % len(levels)]) for i in range(num_prompts)]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    generator = torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))
    repeated = [prompt for prompt in prompts for _ in range(setting.samples_per_prompt)]
    candidates = []
    for place, response in enumerate(sample(model, repeated, end=tokenizer.eos_token_id, generator=generator)):
        prompt, number = divmod(place, setting.samples_per_prompt)
        text = tokenizer.decode(response, skip_special_tokens=True)
        stopped = response[-1] == tokenizer.eos_token_id
        candidates.append(
            Candidate(
                key=(prompt, number),
                prompt=prompt,
                level=rows[prompt]["level"],
                token_ids=tuple(response),
                text=text,
                finish_reason="stop" if stopped else "length",
                accepted=stopped and text == rows[prompt]["answer"],
            )
        )
    return candidates, prompts


@torch.no_grad()
def sample(
    model: PreTrainedModel, prompts: list[list[int]], *, end: int, generator: torch.Generator
) -> list[list[int]]:
    """One response at temperature 1 to each prompt, all of one length, with the end token where there was one."""
    model.eval()
    cache = DynamicCache(config=model.config)
    ids = torch.tensor(prompts)
    drawn: list[torch.Tensor] = []
    for _ in range(MAX_NEW_TOKENS):
        logits = model(ids, past_key_values=cache, use_cache=True).logits[:, -1].float()
        ids = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)
        drawn.append(ids)
    responses = torch.cat(drawn, 1).tolist()
    return [response[: response.index(end) + 1] if end in response else response for response in responses]


def _sample(prompt: list[int], response: tuple[int, ...]) -> TokenizedSample:
    ids = np.array([*prompt, *response], dtype=np.int32)
    return TokenizedSample(line=0, input_ids=ids, target_mask=np.arange(len(ids)) >= len(prompt))


def main() -> None:
    """Run experiments and print a line for each arm: success on the hardest level and its mean over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=list(EXPERIMENTS), help=f"of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each arm on each base")
    parser.add_argument("--bases", type=int, default=2, help="base models to start from")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.experiments:
            setting = EXPERIMENTS[name]
            for base_seed in range(arguments.bases):
                base = Path(folder) / f"{base_seed}-{setting.base_success}"
                if not base.exists():
                    start = make_base(base, seed=base_seed, until=setting.base_success)
                    print(f"base {base_seed}: success {_shown(start)}", flush=True)
                for arm in ARMS:
                    for seed in range(arguments.seeds):
                        began = time.monotonic()
                        rounds = run_arm(base, arm, setting, seed=seed)
                        hardest = [one.success[-1] for one in rounds]
                        print(
                            f"{name:10} base {base_seed} seed {seed} {arm:12} {_shown(rounds[-1].success)}  hardest, "
                            f"mean over rounds {np.mean(hardest):.3f}  {time.monotonic() - began:.0f} s",
                            flush=True,
                        )


def _shown(values: tuple[float, ...] | list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
