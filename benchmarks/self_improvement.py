"""Easy-to-hard against a fixed mixture and the hardest level alone, on `graph_hops`, in one process.

    python -m benchmarks.self_improvement                    all of EXPERIMENTS, all arms, two bases, two seeds
    python -m benchmarks.self_improvement window --seeds 3   one of them

Neither Ray nor vLLM: the product's own curriculum, PyTorch sampler, selection, batches, loss and optimizer, without its
stop rules and without going back to an earlier model. Arms of one experiment draw equally many samples and take equally
many optimizer steps. Success is `graph_hops.success`: pass@1 at temperature 1 in expectation, without the noise of
sampling; the tasks it is measured on are the same for all arms.

The design is our reconstruction of an experiment whose text could not be read (arXiv 2602.10014).
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from wmss.config import Hyperparameters
from wmss.core.levels import Curriculum, observe, plan_round, start
from wmss.core.selection import Candidate, manifest_digest, select
from wmss.records import TokenizedSample
from wmss.scoring.interfaces import Sampling
from wmss.scoring.torch_sampler import TorchSampler
from wmss.tasks.fitting import fit
from wmss.tasks.graph_hops import (
    BASE_SUCCESS,
    HOPS,
    MAX_NEW_TOKENS,
    PROMPT_TOKENS,
    make_base,
    make_task,
    solved,
    success,
)

LEVELS = range(1, len(HOPS) + 1)
ARMS = {"easy_to_hard": "clock", "mixture": "uniform", "hard_only": "hard_only"}
"""Policy of each arm."""


@dataclass(frozen=True)
class Setting:
    """What all arms of an experiment have in common."""

    samples_per_round: int
    rounds: int = 6
    steps_per_round: int = 100
    batch_size: int = 32
    learning_rate: float = 6e-4
    base_success: float = BASE_SUCCESS
    """Success on level 1 of the model to start from."""
    samples_per_prompt: int = 1
    max_level_share: float = 1.0
    min_accepted: int = 12
    window: int = 2
    """Rounds whose accepted responses are trained on."""
    num_held_out: int = 512
    """Held-out tasks per level."""


@dataclass(frozen=True)
class Round:
    """What one round did."""

    counts: tuple[tuple[int, int], ...]
    """Accepted and sampled responses of each level."""
    num_selected: int
    manifest: str
    success: tuple[float, ...]
    """On each level, after the update."""


EXPERIMENTS = {
    "window": Setting(samples_per_round=128),
    "parity": Setting(samples_per_round=768),
    "good_start": Setting(samples_per_round=48, steps_per_round=60, base_success=0.8),
}
"""Measured on the hardest level at the end, easy-to-hard and mixture. Window: .99 .99 .06 .42 .99 and .01 .65 .00 .08
.00 (base 0, seeds 0 to 4), both below .02 on base 1, which needs more (192 responses: .17 .47 and .03 .05, seeds 1
and 2). Parity: both above .97. Good start: all 1.00, easy-to-hard the last to get there."""


def run_arm(base: Path, arm: str, setting: Setting, *, seed: int) -> list[Round]:
    """All rounds of one arm; a function of its arguments on one machine and one thread."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    knobs = Hyperparameters(
        learning_rate=setting.learning_rate, warmup_ratio=0.0, lr_schedule="constant", weight_decay=0.01
    )
    curriculum = Curriculum(ARMS[arm], len(HOPS), setting.rounds, min_accepted=setting.min_accepted)
    state = start(curriculum)
    held_out = _held_out(tokenizer, setting.num_held_out)
    sampler = TorchSampler(max_length=PROMPT_TOKENS + MAX_NEW_TOKENS)
    past: list[list[tuple[Candidate, TokenizedSample]]] = []
    done: list[Round] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(setting.rounds):
            model.save_pretrained(folder)
            num_groups = setting.samples_per_round // setting.samples_per_prompt
            shares = plan_round(curriculum, state, num_groups=num_groups, group_size=setting.samples_per_prompt)
            levels = [share.level + 1 for share in shares for _ in range(share.num_groups)]
            drawn = _drawn(sampler, Path(folder), tokenizer, levels, setting, seed=seed, number=number)
            past.append(drawn)
            in_window = {c.key: (c, sample) for each in past[-setting.window :] for c, sample in each}
            chosen = select(
                (c for c, _ in in_window.values()),
                seed=seed * 1000 + number,
                max_level_share=setting.max_level_share,
                min_kept=setting.min_accepted,
            )
            if len(chosen.keys) >= setting.min_accepted:
                fit(
                    model,
                    [in_window[key][1] for key in chosen.keys],
                    knobs,
                    batch_size=setting.batch_size,
                    num_steps=setting.steps_per_round,
                    seed=seed * 1000 + number,
                )
            counts = _counts([c for c, _ in drawn])
            state = observe(curriculum, state, counts)
            done.append(
                Round(
                    counts=tuple(counts),
                    num_selected=len(chosen.keys),
                    manifest=manifest_digest(chosen.keys, [in_window[key][0].token_ids for key in chosen.keys]),
                    success=tuple(success(model, tests) for tests in held_out),
                )
            )
    return done


def _held_out(tokenizer: PreTrainedTokenizerFast, num_tasks: int) -> list[list[TokenizedSample]]:
    rng = np.random.default_rng(2**32)
    return [solved([make_task(rng, level=level) for _ in range(num_tasks)], tokenizer) for level in LEVELS]


def _counts(candidates: list[Candidate]) -> list[tuple[int, int]]:
    verdicts = [[c.accepted for c in candidates if c.level == level] for level in LEVELS]
    return [(sum(each), len(each)) for each in verdicts]


def _drawn(
    sampler: TorchSampler,
    weights: Path,
    tokenizer: PreTrainedTokenizerFast,
    levels: list[int],
    setting: Setting,
    *,
    seed: int,
    number: int,
) -> list[tuple[Candidate, TokenizedSample]]:
    """Responses to a new task for each of `levels`, as candidates keyed by round, task and number, and as samples."""
    rng = np.random.default_rng([seed, number])
    rows = [make_task(rng, level=level) for level in levels]
    asked = [(place, repeat) for place in range(len(rows)) for repeat in range(setting.samples_per_prompt)]
    prompts = [tokenizer(rows[place]["prompt"])["input_ids"] for place, _ in asked]
    completions = sampler.sample(
        weights,
        prompts,
        rng.integers(2**63 - 1, size=len(asked)).tolist(),
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=None, max_new_tokens=MAX_NEW_TOKENS),
        end_token_ids=[tokenizer.eos_token_id],
    )
    drawn = []
    for (place, repeat), prompt, completion in zip(asked, prompts, completions, strict=True):
        text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        candidate = Candidate(
            key=(number, place, repeat),
            prompt=number * setting.samples_per_round + place,
            level=rows[place]["level"],
            token_ids=completion.token_ids,
            text=text,
            finish_reason=completion.finish_reason,
            accepted=completion.finish_reason == "stop" and text == rows[place]["answer"],
        )
        ids = np.array([*prompt, *completion.token_ids], dtype=np.int32)
        sample = TokenizedSample(line=place, input_ids=ids, target_mask=np.arange(len(ids)) >= len(prompt))
        drawn.append((candidate, sample))
    return drawn


def main() -> None:
    """Run experiments and print a line for each arm: success on every level, and the hardest's mean over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=list(EXPERIMENTS), help=f"of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each arm on each base")
    parser.add_argument("--bases", type=int, default=2, help="base models to start from")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.experiments:
            setting = EXPERIMENTS[name]
            for base_seed in range(arguments.bases):
                base = Path(folder) / f"{base_seed}-{setting.base_success}"
                if not base.exists():
                    began = time.monotonic()
                    values = make_base(base, seed=base_seed, until=setting.base_success)
                    print(f"base {base_seed}: success {_shown(values)}  {time.monotonic() - began:.0f} s", flush=True)
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
