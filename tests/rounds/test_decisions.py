"""What follows from a round: pure, so every case is a line."""

import pytest

from wmss.config import SelfImprovementConfig
from wmss.config.base import changed
from wmss.core.levels import Curriculum, start
from wmss.rounds.improvement.decisions import Round, decide
from wmss.rounds.improvement.round_records import Best, HeldOut, LevelCount, LevelScore, LoopState
from wmss.rounds.job import StoredCheckpoint, Trained

N = 2000
BASE = StoredCheckpoint(checkpoint="base")


def knobs(**changes):
    return SelfImprovementConfig.model_validate({"rounds": 10, "samples_per_round": N, **changes})


def held_out(*rates, pass_at_k=None, ood=None, error=0.005):
    def one(level, rate):
        best = rate if pass_at_k is None else pass_at_k
        return LevelScore(level=level, num_tasks=100, pass_at_1=rate, standard_error=error, pass_at_k=best)

    levels = tuple(one(level, rate) for level, rate in enumerate(rates, start=1))
    return HeldOut(levels=levels, out_of_distribution=None if ood is None else one(0, ood), samples_per_task=4)


def counts(*accepted, purpose="focus", sampled=N):
    return tuple(
        LevelCount(
            level=level,
            purpose=purpose if number is not None else "none",
            num_sampled=sampled if number is not None else 0,
            num_accepted=number or 0,
            interval_90=(0.0, 1.0),
            num_truncated=0,
            num_distinct=number or 0,
            num_selected=number or 0,
        )
        for level, number in enumerate(accepted, start=1)
    )


def model(number):
    """The model that a round trained."""
    return Trained(checkpoint=f"round {number}", num_steps=3)


class Run:
    """Rounds one after another, each with its own checkpoint."""

    def __init__(self, policy="uniform", first=(0.5,), **changes):
        self.knobs = knobs(curriculum={"policy": policy}, **changes)
        self.curriculum = Curriculum(policy=policy, num_levels=len(first), num_rounds=self.knobs.rounds)
        before = held_out(*first)
        self.state = LoopState(
            current=BASE,
            standing=before,
            best=Best(round=0, held_out=before, checkpoint=BASE),
            history=(before,),
            curriculum=start(self.curriculum),
        )

    def round(self, accepted, *rates, trained=True, hours=0.1, error=0.005, **scores):
        number = self.state.round + 1
        done = Round(
            levels=counts(*accepted) if isinstance(accepted, tuple) else counts(accepted),
            held_out=held_out(*rates, **scores),
            errors=dict.fromkeys(range(1, len(rates) + 1), error),
            checkpoint=model(number) if trained else None,
            hours=hours,
        )
        decision = decide(self.knobs, self.curriculum, self.state, done)
        self.state = decision.state
        return decision


def test_a_better_round_goes_on_from_its_model_and_is_the_best():
    run = Run()
    found = run.round(1000, 0.7)
    assert (found.label, found.stop, found.state.best.round) == ("improving", None, 1)
    assert found.state.current == model(1) and found.state.previous == BASE
    assert found.state.num_sampled == N and found.state.trained_rounds == 1


def test_a_plateau_ends_the_job_after_as_many_rounds_as_patience_says_and_tells_the_ceiling():
    """a = 100: n V = 1890 are accepted at V₊ = .947, and the next round gives V₊ again."""
    run = Run(first=(0.945,))
    assert run.round(1890, 0.9472).stop is None
    found = run.round(1894, 0.9472)
    assert found.label == "saturated" and found.stop.code == "saturated"
    assert found.reading.v_plus == pytest.approx(0.947, abs=0.002)
    assert "0.947" in found.stop.message and "twice the samples" in found.stop.message
    assert "weak_driven" in found.stop.message


def test_saturation_turns_the_update_weak_driven_once_where_asked():
    run = Run(first=(0.945,), weak_driven={"when": "on_saturation"})
    run.round(1890, 0.9472)
    found = run.round(1894, 0.9472)
    assert found.stop is None and found.state.weak_driven and found.state.previous == model(1)
    run.round(1894, 0.9472)
    assert run.round(1894, 0.9472).stop.code == "saturated"


def test_a_worse_round_is_taken_back_with_half_the_learning_rate_and_a_second_ends_the_job():
    run = Run()
    run.round(1000, 0.7)
    found = run.round(1400, 0.6)
    assert found.label == "regressed" and found.stop is None
    assert found.state.current == model(1) and found.state.learning_rate_factor == 0.5
    found = run.round(1400, 0.6)
    assert found.stop.code == "regressed" and found.state.best.round == 1


def test_too_few_accepted_responses_change_nothing_and_end_the_job_after_patience():
    run = Run()
    found = run.round(20, 0.5, trained=False)
    assert (found.label, found.reading, found.stop) == ("starved", None, None)
    assert found.state.current == BASE and found.state.outcomes == ()
    found = run.round(20, 0.5, trained=False)
    assert found.stop.code == "starved" and "samples_per_round" in found.stop.message


def test_no_accepted_response_at_all_ends_the_job_at_once():
    found = Run().round(0, 0.5, trained=False)
    assert found.stop.code == "starved" and "none of the round's 2000 responses" in found.stop.message


def test_the_clock_passes_a_saturated_level():
    run = Run("clock", first=(0.94, 0.1))
    for _ in range(4):
        assert run.round((1894, None), 0.9472, 0.1).stop is None
    assert run.state.saturated >= run.knobs.stop.patience


def test_acceptance_target_is_promoted_where_its_level_is_saturated():
    run = Run("acceptance_target", first=(0.5, 0.05))
    run.round((1000, 100), 0.8, 0.06)  # probes of both: the first is in the band
    assert run.state.curriculum.focus == 0
    found = None
    for _ in range(4):
        found = run.round((1600, None), 0.8, 0.06)
        if run.state.curriculum.focus == 1:
            break
    assert run.state.curriculum.focus == 1 and found.stop is None and run.state.saturated == 0


def test_only_rounds_on_the_same_levels_are_read_together():
    run = Run("clock", first=(0.5, 0.1), rounds=2)
    run.round((1000, None), 0.7, 0.1)
    assert len(run.state.outcomes) == 1 and run.state.active == (1,)
    run.round((None, 600), 0.7, 0.5)
    assert len(run.state.outcomes) == 1 and run.state.active == (2,)


@pytest.mark.parametrize("fallen", [{"pass_at_k": 0.7}, {"pass_at_k": 0.95, "ood": 0.2}])
def test_a_reversal_ends_the_job(fallen):
    run = Run()
    run.state = changed(run.state, history=(held_out(0.5, pass_at_k=0.9, ood=0.4),))
    assert run.round(1000, 0.6, pass_at_k=0.9, ood=0.4).stop is None
    found = run.round(1200, 0.7, **fallen)
    assert found.stop.code == "reversal" and "while pass@1 rose" in found.stop.message


def test_budgets_end_the_job_before_the_round_that_would_exceed_them():
    run = Run(stop={"max_samples": 2 * N})
    assert run.round(1000, 0.6).stop is None
    assert run.round(1200, 0.7).stop.code == "max_samples"
    assert Run(stop={"max_hours": 1.0}).round(1000, 0.6, hours=1.5).stop.code == "max_hours"
    assert Run(rounds=1).round(1000, 0.6).stop.code == "rounds"


def test_a_decision_reads_back_as_itself():
    found = Run().round(1000, 0.7)
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_a_collapse_is_taken_back_however_little_was_accepted():
    run = Run("acceptance_target", first=(0.5, 0.2))
    run.round((1000, 400), 0.55, 0.25)
    found = run.round((None, 60), 0.10, 0.01)
    assert found.label == "regressed" and found.state.current == model(1)
    assert found.state.standing.pass_at_1 == pytest.approx(0.4) and found.state.previous is None


def test_what_fell_on_the_level_in_focus_and_rose_on_all_together_stays():
    run = Run("hard_only", first=(0.3, 0.5))
    found = run.round((None, 800), 0.6, 0.45)
    assert found.label == "regressed" and found.stop is None
    assert found.state.current == model(1) and found.state.learning_rate_factor == 1.0
    assert run.round((None, 800), 0.8, 0.40).stop is None


def test_by_acceptance_a_starved_level_is_left_for_an_easier_one():
    run = Run("acceptance_target", first=(0.5, 0.2))
    run.round((1800, 700), 0.9, 0.35)
    assert run.state.curriculum.focus == 1
    first = run.round((None, 50), 0.9, 0.35)
    second = run.round((None, 50), 0.9, 0.35)
    assert first.label == second.label == "starved" and second.stop is None
    assert run.state.curriculum.focus == 0 and run.state.starved == 0


def test_hard_to_easy_survives_a_level_that_accepts_nothing():
    run = Run("hard_to_easy", first=(0.5, 0.0))
    assert run.round((None, 0), 0.5, 0.0, trained=False).stop is None


def test_a_round_that_trained_on_earlier_ones_is_not_stopped_for_accepting_nothing():
    run = Run()
    run.round(1000, 0.6)
    assert run.round(0, 0.6).stop is None


def test_a_fall_within_the_error_is_no_reversal():
    run = Run()
    run.state = changed(run.state, history=(held_out(0.5, pass_at_k=0.9, ood=0.4),))
    run.round(1000, 0.6, pass_at_k=0.9, ood=0.4)
    assert run.round(1200, 0.7, pass_at_k=0.84, ood=0.4).stop is None


def test_models_that_were_taken_back_are_not_looked_back_at():
    run = Run()
    run.round(1000, 0.7)
    run.round(1000, 0.5)
    assert [one.pass_at_1 for one in run.state.history] == [0.5, 0.7] and run.state.standing_round == 1
