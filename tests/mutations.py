"""Does a test fail for every mistake that matters? `python -m tests.mutations [NAME ...]`

Each mutation is made alone, in a copy of the package, and the fast tests that should see it are run on the copy. It
prints which test did, and fails if none does, or if the text that a mutation replaces is no longer there.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("wmss", "services", "tests", "benchmarks", "pyproject.toml")

MIXING, TELEMETRY = "tests/core/test_mixing.py", "tests/core/test_telemetry.py"
LOOP, EQUIVALENCES = "tests/training/test_loop.py", "tests/training/test_equivalences.py"
RUN = "tests/training/test_run.py"
DISTRIBUTED, BATCHES = "tests/training/test_distributed.py", "tests/training/test_batches.py"
PACKED = "tests/models/test_packed_attention.py"
RECURSION, LEVELS = "tests/theory/test_recursion.py", "tests/core/test_levels.py"
SANDBOX, HOST = "tests/verifiers/test_sandbox.py", "verifiers/sandbox/host.py"
ATTACK = f"{SANDBOX}::test_attacks_are_rejected_in_time"
WRONG_INPUTS = "tests/services/test_wrong_inputs.py::test_wrong_request"
MATHEMATICS = "tests/verifiers/test_mathematics.py"
ENGINE = "tests/scoring/test_vllm_engine.py"
TRAINER = "tests/services/test_trainer.py"
RECORDS, WEAK_DRIVEN = "tests/rounds/test_records.py", "tests/rounds/test_weak_driven.py"


class Mutation(NamedTuple):
    name: str
    file: str
    """Inside the repository."""
    replaced: tuple[tuple[str, str], ...]
    """Texts, each of which must be there exactly once, and what takes their place."""
    tests: tuple[str, ...]


def mutation(name: str, file: str, *replaced: tuple[str, str], tests: Iterable[str]) -> Mutation:
    return Mutation(name, f"wmss/{file}", replaced, tuple(tests))


def in_trainer(name: str, *replaced: tuple[str, str]) -> Mutation:
    return Mutation(name, "services/driver/trainer.py", replaced, (TRAINER,))


MUTATIONS = (
    mutation(
        "a change that keeps size and time is not seen",
        "models/kept_answers.py",
        (", s.st_ctime_ns]", "]"),
        tests=["tests/models/test_kept_answers.py"],
    ),
    mutation(
        "no answer about a folder is kept",
        "models/limited.py",
        ("if key is not None and _kept is not None:", "if key is None and _kept is not None:"),
        tests=["tests/models/test_kept_answers.py"],
    ),
    mutation(
        "the target's term of the gradient has the wrong sign",
        "core/softmax.py",
        ("torch.full_like(target_C1, -1.0)", "torch.full_like(target_C1, 1.0)"),
        tests=[MIXING],
    ),
    mutation(
        "the gradient points uphill", "core/softmax.py", ("z_CV.mul_(scale)", "z_CV.mul_(-scale)"), tests=[MIXING]
    ),
    mutation(
        "the target's term of the loss has the wrong sign",
        "core/softmax.py",
        ("(normaliser_C1.log() - target_C1)", "(normaliser_C1.log() + target_C1)"),
        tests=[MIXING],
    ),
    mutation(
        "the mean term of the entropy has the wrong sign",
        "core/entropy.py",
        ("entropy_B = log_normaliser_B - exp_BV", "entropy_B = log_normaliser_B + exp_BV"),
        tests=["tests/core/test_entropy.py"],
    ),
    mutation(
        "factors are not rounded to the precision asked for",
        "core/products.py",
        ("rounded = tensor.to(rounded_to)", "rounded = tensor"),
        tests=[MIXING],
    ),
    mutation(
        "the fused gradient forgets the label",
        "core/softmax.py",
        (".exp() - onehot_CV.to(z_CV.dtype)", ".exp()"),
        tests=["tests/core/test_softmax.py"],
    ),
    mutation(
        "a branch enters the mix without its weight",
        "core/mixing.py",
        (
            "self._add_product_(z_CV, chunk, self.weight)",
            "self._add_product_(z_CV, chunk, 1.0)",
        ),
        tests=[MIXING],
    ),
    mutation(
        "a soft cap has the slope of a line",
        "core/mixing.py",
        ("        if self.tanh_CV is not None:\n", "        if False and self.tanh_CV is not None:\n"),
        tests=[MIXING],
    ),
    mutation(
        "a capped branch is merged with others of its head",
        "core/mixing.py",
        ("branch.head.requires_grad or branch.cap is not None", "branch.head.requires_grad"),
        tests=[MIXING],
    ),
    mutation(
        "weak branches have plain logits",
        "training/branches.py",
        ("LogitBranch(hidden_RD, head, bias, weight, *weak.form(self))", "LogitBranch(hidden_RD, head, bias, weight)"),
        tests=["tests/training/test_branches.py"],
    ),
    mutation(
        "telemetry forgets caps and scales",
        "core/telemetry.py",
        ("return branch.cap_(z_CV if", "return (z_CV if"),
        tests=["tests/training/test_branches.py"],
    ),
    mutation(
        "a head whose padding is cut off is taken for plain",
        "models/heads.py",
        ("if small.shape != product.shape:", "product = product[..., : small.shape[-1]]\n    if False:"),
        tests=["tests/models/test_heads.py"],
    ),
    mutation(
        "the file of an adapter names layers by their last part",
        "models/adapters.py",
        ("sorted(config.target_modules)", "sorted({name.rsplit('.', 1)[-1] for name in config.target_modules})"),
        tests=["tests/training/test_adapters.py::test_an_adapters_file_names_its_layers_as_peft_does"],
    ),
    mutation(
        "a branch's hidden states receive their gradient without its weight",
        "core/mixing.py",
        ("grad_CV, self.head_VD, beta=0.0, alpha=self.weight)", "grad_CV, self.head_VD, beta=0.0)"),
        tests=[MIXING],
    ),
    mutation(
        "a branch's head receives its gradient without its weight",
        "core/mixing.py",
        ("grad_CV.t(), self.hidden_RD[chunk], alpha=self.weight)", "grad_CV.t(), self.hidden_RD[chunk])"),
        tests=[MIXING],
    ),
    mutation(
        "weak branches that share a frozen head enter without their weights",
        "core/mixing.py",
        (
            "sum(branch.hidden.to(dtype) * branch.weight for branch in group)",
            "sum(branch.hidden.to(dtype) for branch in group)",
        ),
        tests=[MIXING],
    ),
    mutation(
        "training forgets the weak models' 1-λ",
        "training/branches.py",
        ("[(1.0 - mixing_weight) * share for share in", "[share for share in"),
        tests=[LOOP],
    ),
    mutation(
        "λ keeps its first value",
        "training/loop.py",
        ("mixing_weight = mixing_weight_at(\n            step,", "mixing_weight = mixing_weight_at(\n            0,"),
        tests=[EQUIVALENCES],
    ),
    mutation(
        "a training run takes any λ",
        "training/run.py",
        ("    mixing_weight: MixingWeight\n", "    mixing_weight: float\n"),
        tests=[RUN],
    ),
    mutation(
        "a training run has no samples",
        "training/run.py",
        ("Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]", "tuple[int, ...]"),
        tests=[RUN],
    ),
    mutation(
        "a training run takes shares of weak models that it has not",
        "training/run.py",
        ("        check_shares(self.weak_shares, len(self.weak))\n", ""),
        tests=[RUN],
    ),
    mutation(
        "a changed copy is not validated",
        "config/base.py",
        ("type(model).model_validate(dict(model) | fields)", "model.model_copy(update=fields)"),
        tests=[RUN],
    ),
    mutation(
        "a target is predicted at its own position",
        "records.py",
        ("return np.flatnonzero(self.target_mask) - 1", "return np.flatnonzero(self.target_mask)"),
        tests=[BATCHES, "tests/data"],
    ),
    mutation(
        "a position is to predict its own token",
        "training/batches.py",
        ("labels.append(ids[positions + 1])", "labels.append(ids[positions])"),
        tests=[BATCHES],
    ),
    mutation(
        "the loss weighs the strong model with 1-λ",
        "core/mixing.py",
        (
            "LogitBranch(strong_hidden, strong_head, strong_bias, mixing_weight)",
            "LogitBranch(strong_hidden, strong_head, strong_bias, 1.0 - mixing_weight)",
        ),
        (
            "LogitBranch(weak_hidden, weak_head, weak_bias, 1.0 - mixing_weight)",
            "LogitBranch(weak_hidden, weak_head, weak_bias, mixing_weight)",
        ),
        tests=[MIXING],
    ),
    mutation(
        "training weighs the strong model with 1-λ",
        "training/branches.py",
        ("[(1.0 - mixing_weight) * share for share in", "[mixing_weight * share for share in"),
        ("batch), head, bias, mixing_weight, *self.form)]", "batch), head, bias, 1.0 - mixing_weight, *self.form)]"),
        tests=[LOOP],
    ),
    mutation(
        "the draw takes the weak model for the strong one",
        "core/sample_weights.py",
        ("delta = strong_entropy - weak_entropy", "delta = weak_entropy - strong_entropy"),
        tests=["tests/core/test_sample_weights.py"],
    ),
    mutation(
        "hard negatives are those the strong model finds harder",
        "core/telemetry.py",
        ("harder_CV = gap_CV < gap_CV", "harder_CV = gap_CV > gap_CV"),
        tests=[TELEMETRY],
    ),
    mutation(
        "the loss is taken on prompts too",
        "training/batches.py",
        ("positions = torch.from_numpy(sample.predicting_positions)", "positions = torch.arange(length - 1)"),
        tests=[BATCHES, LOOP],
    ),
    mutation(
        "rows without a label are not left out of the entropy's likelihood",
        "core/entropy.py",
        (
            "nll_B = (log_normaliser_B - target_B).masked_fill_(unlabelled_B, torch.nan)",
            "nll_B = log_normaliser_B - target_B",
        ),
        tests=["tests/core/test_entropy.py"],
    ),
    mutation(
        "a micro-batch is divided by its own number of targets",
        "training/loop.py",
        (
            "(loss * (host.world_size / num_targets)).backward()",
            "(loss * (host.world_size / max(1, micro.labels.numel()))).backward()",
        ),
        tests=[LOOP, EQUIVALENCES],
    ),
    mutation(
        "workers average what they should sum",
        "training/loop.py",
        ("(loss * (host.world_size / num_targets)).backward()", "(loss / num_targets).backward()"),
        tests=[DISTRIBUTED],
    ),
    mutation(
        "workers that divide the weights make different numbers of passes",
        "training/loop.py",
        ('self._run.parallelism == "fsdp"', "False"),
        tests=[DISTRIBUTED],
    ),
    mutation(
        "the second term of v2 is the weak model's entropy",
        "core/sample_weights.py",
        ('"v2": ("drop", "strong", "rise")', '"v2": ("drop", "weak", "rise")'),
        tests=["tests/core/test_sample_weights.py"],
    ),
    mutation(
        "per_term does not scale its terms",
        "core/sample_weights.py",
        ('if weighting == "per_term":', "if False:"),
        tests=["tests/core/test_sample_weights.py"],
    ),
    mutation(
        "a resumed run forgets the generator's state",
        "training/loop.py",
        ("            resumed.restore_rng()\n", ""),
        tests=[f"{LOOP}::test_resumed_run_is_bit_identical"],
    ),
    mutation(
        "a resumed run forgets the optimizer's moments",
        "training/loop.py",
        ("            checkpoints.restore_optimizer(resumed, self._branches, self._optimizer)\n", ""),
        tests=[f"{LOOP}::test_resumed_run_is_bit_identical"],
    ),
    mutation(
        "a resumed run forgets where its schedule was",
        "training/loop.py",
        ("            self._schedule.load_state_dict(resumed.schedule)\n", ""),
        tests=[f"{LOOP}::test_resumed_run_is_bit_identical"],
    ),
    mutation(
        "a resumed run takes the weak model from where it began",
        "training/build.py",
        ("stored = resumed.weak_folder(number) if resumed is not None and trained else None", "stored = None"),
        tests=[f"{LOOP}::test_resumed_run_is_bit_identical"],
    ),
    mutation(
        "a damaged checkpoint is used",
        "training/checkpoints.py",
        ("    verify(folder)\n", ""),
        tests=[f"{EQUIVALENCES}::test_damaged_checkpoint_is_refused_by_name"],
    ),
    mutation(
        "packed samples see each other",
        "models/packed_attention.py",
        ("    if packed_runs is None:\n", "    if True:\n"),
        tests=[PACKED],
    ),
    mutation(
        "packed rows are compared with themselves",
        "models/packing.py",
        ('    model.set_attn_implementation("eager")\n', ""),
        tests=[PACKED],
    ),
    mutation(
        "samples are padded where packing was asked for",
        "training/build.py",
        ("            if packing is True:\n                raise\n", ""),
        tests=["tests/training/test_packing_or_padding.py"],
    ),
    mutation(
        "a result is read back without a look at its tensors",
        "models/read_back.py",
        ("if digest_of(found[name].float()) != digest:", "if False:"),
        tests=["tests/models/test_read_back.py"],
    ),
    mutation(
        "the sliding window is one token too long",
        "models/packed_attention.py",
        ("(back < sliding_window)", "(back <= sliding_window)"),
        tests=[PACKED],
    ),
    mutation(
        "a frozen weak model is trained",
        "training/build.py",
        ("trained = run.hyperparameters.lora, not run.weak_frozen", "trained = run.hyperparameters.lora, True"),
        tests=[LOOP],
    ),
    mutation(
        "a frozen weak model has dropout",
        "training/branches.py",
        ("            model.eval()\n", ""),
        tests=[EQUIVALENCES],
    ),
    mutation(
        "weak adapters run under the strong one",
        "training/branches.py",
        ("using_adapter(model, self.adapter):", "using_adapter(model, STRONG_ADAPTER):"),
        ("import adapter_parameters, using_adapter", "import STRONG_ADAPTER, adapter_parameters, using_adapter"),
        tests=[EQUIVALENCES],
    ),
    mutation(
        "adapters are left out of the merge",
        "models/adapters.py",
        ("twin.adapted.merge_and_unload(safe_merge=True)", "twin.adapted.unload()"),
        tests=[EQUIVALENCES],
    ),
    mutation(
        "gradients are clipped to twice their bound",
        "training/loop.py",
        ("torch._foreach_mul_(gradients, limit / norm)", "torch._foreach_mul_(gradients, 2 * limit / norm)"),
        tests=[f"{EQUIVALENCES}::test_first_step_by_hand"],
    ),
    mutation(
        "the take-off threshold is the ceiling's twin",
        "theory/recursion.py",
        ("return c / v_plus, v_plus", "return 1 - c / v_plus, v_plus"),
        tests=[RECURSION],
    ),
    mutation(
        "accumulated data is forgotten",
        "theory/simulation.py",
        ("learned_from + accepted if accumulate", "accepted + accepted if accumulate"),
        tests=[RECURSION],
    ),
    mutation(
        "the rate of learning is ignored",
        "theory/simulation.py",
        (
            "np.where(num_accepted > 0, np.maximum(1 - (ratio if alpha == 1.0 else ratio**alpha), 0.0), v)",
            "np.where(num_accepted > 0, np.maximum(1 - ratio, 0.0), v)",
        ),
        tests=[RECURSION],
    ),
    mutation(
        "a starved run is called saturated",
        "theory/feedback.py",
        ("if unstable or latest", "if (unstable and not can_saturate) or latest"),
        tests=["tests/theory/test_feedback.py"],
    ),
    mutation(
        "a run past the fold is called saturated",
        "theory/feedback.py",
        ("can_saturate = points is not None and predicted", "can_saturate = predicted"),
        tests=["tests/theory/test_feedback.py"],
    ),
    mutation(
        "the difficulty is that of the latest round",
        "theory/feedback.py",
        ("for outcome in outcomes[-WINDOW:]", "for outcome in outcomes[-1:]"),
        tests=["tests/theory/test_feedback.py"],
    ),
    mutation(
        "stages begin at the ceiling of the easier level",
        "theory/bounds.py",
        ("_takes_off(max(ratio * ceiling, own), c, alpha)", "_takes_off(max(ceiling, own), c, alpha)"),
        tests=["tests/theory/test_bounds.py"],
    ),
    mutation(
        "harder levels do not follow easier ones",
        "theory/ladder.py",
        ("np.maximum(after[..., level], ratio * after[..., level - 1])", "np.maximum(after[..., level], 0 * ratio)"),
        tests=["tests/theory/test_ladder.py"],
    ),
    mutation(
        "a level in focus cannot fall",
        "theory/ladder.py",
        ("may_fall=focused & (not keep_best)", "may_fall=focused & False"),
        tests=["tests/theory/test_ladder.py"],
    ),
    mutation(
        "a level is lost after one bad round",
        "core/levels.py",
        ("DEMOTE_AFTER = 2", "DEMOTE_AFTER = 1"),
        tests=[LEVELS],
    ),
    mutation(
        "the focus jumps to the chosen level",
        "core/levels.py",
        ('return _moved(state, focus + 1, f"up to', 'return _moved(state, choice.level or focus + 1, f"up to'),
        tests=[LEVELS],
    ),
    mutation(
        "replay goes to what has not fallen",
        "core/levels.py",
        (
            "state.best[level] - (state.acceptance(level) or 0.0) + REPLAY_FLOOR",
            "(state.acceptance(level) or 0.0) + REPLAY_FLOOR",
        ),
        tests=[LEVELS],
    ),
    mutation(
        "patience runs on the hardest level",
        "core/levels.py",
        ("    if state.focus == curriculum.num_levels - 1:", "    if state.focus == curriculum.num_levels:"),
        tests=[LEVELS],
    ),
    mutation(
        "the budget doubles without end",
        "core/levels.py",
        (
            "return replace(state, budget_factor=2, rounds_waiting=0,",
            "return replace(state, budget_factor=1, rounds_waiting=0,",
        ),
        tests=[LEVELS],
    ),
    mutation(
        "decide misspells a field of the state",
        "rounds/improvement/decisions.py",
        ("changed(after, weak_driven=True", "changed(after, weak_drivn=True"),
        tests=["tests/rounds/test_decisions.py"],
    ),
    mutation(
        "a round that is taken back doubles the learning rate",
        "rounds/improvement/decisions.py",
        ("state.learning_rate_factor / 2", "state.learning_rate_factor * 2"),
        tests=["tests/rounds/test_decisions.py"],
    ),
    mutation(
        "the learning rate's factor has no bounds",
        "rounds/improvement/round_records.py",
        ("learning_rate_factor: float = Field(default=1.0, gt=0, le=1)", "learning_rate_factor: float = 1.0"),
        tests=["tests/rounds/test_improvement_records.py"],
    ),
    mutation(
        "a changed copy is not validated",
        "config/base.py",
        ("type(model).model_validate(dict(model) | fields)", "model.model_copy(update=fields)"),
        tests=["tests/rounds/test_improvement_records.py"],
    ),
    mutation(
        "a response that was cut is learned from",
        "rounds/improvement/judging.py",
        ('verdict.accepted and rollout.completion.finish_reason == "stop"', "verdict.accepted"),
        tests=["tests/rounds/test_judging.py"],
    ),
    mutation(
        "noise takes the width for the length",
        "training/branches.py",
        ("(self.lengths * embeddings.shape[-1]).sqrt()", "(0 * self.lengths + embeddings.shape[-1] ** 2).sqrt()"),
        tests=["tests/training/test_branches.py"],
    ),
    mutation(
        "cached states are those of the sample before",
        "data/states.py",
        (
            "self._states[self._offsets[index] : self._offsets[index + 1]]",
            "self._states[self._offsets[index - 1] : self._offsets[index]]",
        ),
        tests=["tests/data/test_states.py"],
    ),
    mutation(
        "states that were changed on disk are trained on",
        "data/states.py",
        ("if found != digest:", "if found is None:"),
        tests=["tests/data/test_states.py"],
    ),
    mutation(
        "entropies of different engines are subtracted",
        "scoring/tables.py",
        ("    if differing:", "    if differing == [None]:"),
        tests=["tests/scoring/test_tables.py"],
    ),
    mutation(
        "an engine's old weights are believed after a load that failed",
        "scoring/vllm_engine.py",
        ("        self._loaded = None\n        self._use_caches", "        self._use_caches"),
        tests=[ENGINE],
    ),
    mutation(
        "an engine takes weights without showing that it computes with them",
        "scoring/vllm_engine.py",
        ("        self._check(reference, self._before, weights)\n", ""),
        tests=[ENGINE],
    ),
    mutation(
        "an engine takes files that are not those that were asked for",
        "scoring/vllm_engine.py",
        ("if expected is not None and found != expected:", "if expected is not None and not found:"),
        tests=[ENGINE],
    ),
    mutation(
        "an engine that has a folder's weights does not see that it was written to",
        "scoring/weights.py",
        ("sorted(file_stamps(weight_files(folder)).items())", "sorted(file_stamps(weight_files(folder)))"),
        tests=[ENGINE, "tests/scoring/test_weights.py"],
    ),
    mutation(
        "an engine's prefix cache is not emptied after a load",
        "scoring/vllm_engine.py",
        ("        self._reset()\n        self._accept", "        self._accept"),
        tests=[ENGINE],
    ),
    mutation(
        "a prefix cache that was not emptied is passed over",
        "scoring/vllm_engine.py",
        ("        if not emptied:\n", "        if emptied is None:\n"),
        tests=[ENGINE],
    ),
    mutation(
        "a scorer with the weights before passes, where the new ones are near them",
        "scoring/self_check.py",
        ("if before is not None and _distance", "if before is None and _distance"),
        tests=["tests/scoring/test_self_check.py"],
    ),
    mutation(
        "weights that were not loaded stay those before",
        "scoring/vllm_weights.py",
        ("        _forget(model)\n", ""),
        tests=["tests/scoring/test_vllm_scorer.py"],
    ),
    mutation(
        "a point on a line is a step from the wrong end",
        "scoring/weights.py",
        ("ours.mul_(1 + line.step)", "ours.mul_(line.step)"),
        tests=["tests/scoring/test_weights.py"],
    ),
    Mutation(
        "two jobs change the weights of one engine under each other",
        "services/engines/engine_store.py",
        (("            if not in_use[row.app]:  #", "            if True:  #"),),
        ("tests/services/test_engines.py",),
    ),
    Mutation(
        "a replica answers with the weights that it has",
        "services/engines/replicas.py",
        (("        self._have(named)\n        return function", "        return function"),),
        ("tests/services/test_replicas.py",),
    ),
    mutation(
        "a record takes a misspelt field",
        "rounds/journal.py",
        ('ConfigDict(frozen=True, extra="forbid"', 'ConfigDict(frozen=True, extra="ignore"'),
        tests=[RECORDS],
    ),
    mutation(
        "a record takes a share above one",
        "rounds/phase_records.py",
        ("Annotated[float, Field(ge=0, le=1)]", "Annotated[float, Field(ge=0)]"),
        tests=[RECORDS],
    ),
    mutation(
        "a phase leaves the record of another",
        "rounds/journal.py",
        ("assert isinstance(record, kind)", "assert isinstance(record, Record)"),
        tests=[RECORDS],
    ),
    mutation(
        "a draw without entropies records nulls",
        "rounds/phase_records.py",
        ("    return value is None", "    return False"),
        tests=[RECORDS],
    ),
    mutation(
        "a phase misspells a field",
        "rounds/weighing.py",
        ("num_duplicates=num_samples - num_unique", "num_duplicate=num_samples - num_unique"),
        tests=[RECORDS],
    ),
    mutation(
        "a phase trains with a mixing weight out of range",
        "rounds/weak_driven.py",
        ("else wmss.mixing_weight,", "else 1.0 + wmss.mixing_weight,"),
        tests=[f"{WEAK_DRIVEN}::test_controls_train_the_strong_model_alone"],
    ),
    mutation(
        "a planned phase is not run",
        "rounds/weak_driven.py",
        ("stage.once(phase, Weighed, partial(stage.weigh, number))", "pass"),
        tests=[f"{WEAK_DRIVEN}::test_controls_train_the_strong_model_alone"],
    ),
    mutation(
        "a phase is planned that a job does not need",
        "rounds/phases.py",
        ('_knobs(spec).weighting != "all"', "number > 0"),
        tests=[f"{WEAK_DRIVEN}::test_a_draw_of_all_needs_no_scores"],
    ),
    mutation(
        "a round's weak model is its strong one",
        "rounds/weak_driven.py",
        ("return self.strong(number - 1)", "return self.strong(number)"),
        tests=[f"{WEAK_DRIVEN}::test_rounds_pair_each_model_with_its_predecessor"],
    ),
    mutation(
        "an evaluated model's own end tokens end no answer",
        "scoring/evaluation.py",
        ("sorted({*end_token_ids, *own_end_ids(checkpoint)})", "sorted({*end_token_ids})"),
        tests=["tests/scoring/test_evaluation.py"],
    ),
    mutation(
        "the table of tokens has the token before",
        "scoring/token_table.py",
        ("s.input_ids[where]", "s.input_ids[where - 1]"),
        tests=["tests/scoring/test_tables.py"],
    ),
    mutation(
        "a program has the machine's memory",
        HOST,
        ("resource.RLIMIT_AS: limits.memory_mb * mib", "resource.RLIMIT_AS: resource.RLIM_INFINITY"),
        tests=[f"{ATTACK}[more memory than allowed]"],
    ),
    mutation(
        "a program starts as many processes as it likes",
        HOST,
        ("limits.processes + OWN_PROCESSES", "1000"),
        tests=[f"{ATTACK}[more processes than allowed]"],
    ),
    mutation(
        "a program runs as the user of the service",
        HOST,
        ("os.setresuid(NOBODY, NOBODY, NOBODY)", "pass"),
        tests=[f"{SANDBOX}::test_a_right_program_passes"],
    ),
    mutation(
        "a program calls the kernel freely",
        HOST,
        ("kernel.filter_system_calls()", "pass"),
        tests=[f"{SANDBOX}::test_a_right_program_passes"],
    ),
    mutation(
        "the sandbox keeps the host's files",
        "verifiers/sandbox/kernel.py",
        ('_check(_LIBC.umount2(b".", _MNT_DETACH), ', "_check(0, "),
        tests=[f"{SANDBOX}::test_the_environment_and_the_host_are_hidden"],
    ),
    mutation("nobody keeps a program's time", HOST, ("deadline - time.monotonic()", "60"), tests=[f"{ATTACK}[daemon]"]),
    mutation(
        "a program killed from outside is judged by that",
        HOST,
        ('if ruling.detail == "exited" else ruling', "if False else ruling"),
        tests=[f"{SANDBOX}::test_killing_any_process_from_outside_changes_no_verdict"],
    ),
    mutation(
        "a program's own names judge it",
        "verifiers/sandbox/tester.py",
        (" and not hasattr(builtins, n)}", "}"),
        tests=[f"{SANDBOX}::test_the_tests_own_names_are_not_the_programs"],
    ),
    mutation(
        "a test may hide that the program is gone",
        "verifiers/sandbox/tester.py",
        ("if guest.gone else", "if False else"),
        tests=[f"{SANDBOX}::test_a_test_that_catches_everything_does_not_hide_an_exit"],
    ),
    mutation(
        "a verifier killed from outside decides",
        "verifiers/pool.py",
        ("ATTEMPTS = 2", "ATTEMPTS = 1"),
        tests=[MATHEMATICS],
    ),
    mutation(
        "the reference and the response change places",
        "verifiers/mathematics.py",
        ("verify(gold, parsed,", "verify(found, gold,"),
        tests=[MATHEMATICS],
    ),
    in_trainer(
        "failures count however far the run came between them",
        ("self._newest, self._count = newest, 0", "self._newest = newest"),
    ),
    in_trainer(
        "half of a checkpoint counts as progress",
        ('folder.glob("step-*") if is_complete(found)]', 'folder.glob("step-*")]'),
    ),
    in_trainer("waiting workers stay in another's way", ("if not self._is_room():\n", "if False:\n")),
    in_trainer("two groups of workers for one run", ("self._ended.wait()\n        if not told", "if not told")),
    Mutation(
        "half of what is handed over is taken for it",
        "services/driver/handover.py",
        (('.endswith("\\n"):  # half', ":  # half"),),
        (TRAINER,),
    ),
    mutation(
        "half a surrogate pair is text",
        "data/dataset.py",
        ("and not _is_unicode(value)", "and False"),
        tests=[f"{WRONG_INPUTS}[files: half a surrogate pair as a key]"],
    ),
    mutation(
        "data of any depth goes to a verifier",
        "data/tasks.py",
        ("for _ in range(MAX_DEPTH)", "for _ in range(9 * MAX_DEPTH)"),
        tests=[f"{WRONG_INPUTS}[files: data of 101 lists]"],
    ),
)


def killer(copy: Path, tests: Iterable[str]) -> str | None:
    """The first of `tests` that fails in a copy of the repository, None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    found = re.search(r"^(?:FAILED|ERROR) (tests/\S+)", done.stdout, flags=re.MULTILINE)
    # Anything but "all passed" and "a test failed" is no answer.
    if done.returncode not in (0, 1) or (done.returncode == 1) != (found is not None):
        raise RuntimeError(f"pytest ended with {done.returncode} and no result:\n{done.stdout}\n{done.stderr}")
    return found[1] if found else None


def mutated(source: str, change: Mutation) -> str:
    for old, new in change.replaced:
        if source.count(old) != 1:
            raise LookupError(
                f"{change.name}: expected once in {change.file}, found {source.count(old)} times: {old!r}"
            )
        source = source.replace(old, new)
    return source


def survivors(changes: Iterable[Mutation]) -> list[str]:
    """Names of the mutations that no test saw; prints a line for each as it goes."""
    changes, alive = list(changes), []
    sources = {change.name: mutated((ROOT / change.file).read_text(encoding="utf-8"), change) for change in changes}
    with tempfile.TemporaryDirectory(prefix="wmss-mutations-") as name:
        copy = Path(name)
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, copy / part)
        # Without it, a test that always fails would be said to see everything.
        broken = killer(copy, sorted({test.split("::")[0] for change in changes for test in change.tests}))
        if broken is not None:
            raise RuntimeError(f"{broken} fails without any mutation")
        for change in changes:
            file = copy / change.file
            original = file.read_text(encoding="utf-8")
            file.write_text(sources[change.name], encoding="utf-8")
            found = killer(copy, change.tests)
            file.write_text(original, encoding="utf-8")
            print(f"{'SURVIVED' if found is None else 'seen'}  {change.name}  {found or ''}".rstrip(), flush=True)
            if found is None:
                alive.append(change.name)
    return alive


def main(names: list[str]) -> int:
    unknown = set(names) - {change.name for change in MUTATIONS}
    if unknown:
        raise SystemExit(f"no such mutation: {sorted(unknown)}")
    return 1 if survivors(change for change in MUTATIONS if not names or change.name in names) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
