"""The knobs of self-improvement (`method.self_improvement`, `[self_improvement]` in TOML)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wmss.choices import (
    DEFAULT_BAND,
    DEFAULT_MIN_ACCEPTED,
    DEFAULT_MIXING_WEIGHT,
    DEFAULT_PATIENCE,
    DEFAULT_PROBE_FRACTION,
    DEFAULT_REPLAY_FRACTION,
    DEFAULT_TARGET,
    CurriculumPolicy,
    check_curriculum,
)
from wmss.config.base import MAX_COUNT, Knobs, MixingWeight
from wmss.config.hyperparameters import DEFAULT_EPOCHS, Hyperparameters
from wmss.config.verifiers import FinalValueVerifier, VerifierConfig


class CurriculumConfig(Knobs):
    """Which difficulty levels a round's prompts come from."""

    policy: CurriculumPolicy = "acceptance_target"
    """Levels by the number of the round; by measured acceptance; all equally; the last only; the clock backwards."""
    target: float = Field(default=DEFAULT_TARGET, gt=0, lt=1)
    """Acceptance of the level to train on; 1/e teaches most new steps per sample."""
    band: list[Annotated[float, Field(ge=0, le=1)]] = Field(default=list(DEFAULT_BAND), min_length=2, max_length=2)
    """Acceptance between which a level is worth training on."""
    probe_fraction: float = Field(default=DEFAULT_PROBE_FRACTION, ge=0, le=0.5)
    """Largest share of a round's samples that measures levels out of focus; they are trained on as well."""
    replay_fraction: float = Field(default=DEFAULT_REPLAY_FRACTION, ge=0, le=0.5)
    """Share that goes back to lower levels, most to those that have fallen most."""
    patience: int = Field(default=DEFAULT_PATIENCE, ge=1, le=100)
    """Rounds without promotion after which the samples of a round are doubled, once."""

    @model_validator(mode="after")
    def _no_unused_knob(self) -> Self:
        if self.policy != "acceptance_target":
            for name in ("target", "band", "probe_fraction", "replay_fraction", "patience"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: unused with policy {self.policy!r}, which measures nothing; remove it")
        return self

    @model_validator(mode="after")
    def _sensible_band(self) -> Self:
        low, high = self.band
        check_curriculum(
            target=self.target,
            band=(low, high),
            probe_fraction=self.probe_fraction,
            replay_fraction=self.replay_fraction,
        )
        return self


class SamplingConfig(Knobs):
    """How responses are drawn from the model."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """Of the softmax; 1 samples the model itself, as the theory does; 0 = greedy, with one sample per prompt only."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Mass of the likeliest tokens that may be drawn; 1 = all."""
    top_k: int | None = Field(default=None, ge=1, le=2**24)
    """Number of the likeliest tokens that may be drawn; null = all."""
    max_new_tokens: int = Field(default=256, ge=1, le=MAX_COUNT)
    """Tokens of a response; one that is cut is never accepted."""


class AcceptConfig(Knobs):
    """Which of the responses found correct are learned from."""

    max_per_prompt: int | None = Field(default=None, ge=1, le=4096)
    """Accepted responses per prompt, over all rounds of the `window`; null = all. It corrects the tilt towards prompts
    already solved."""
    deduplicate: Literal["off", "exact", "normalized"] = "normalized"
    """Of one prompt's equal responses keep one: not at all, by token ids, or by text without case and spaces too."""
    min_accepted: int = Field(default=DEFAULT_MIN_ACCEPTED, ge=1, le=10**6)
    """Fewer are not trained on: the model would learn a handful of lucky samples by heart."""
    max_level_share: float = Field(default=0.7, gt=0, le=1)
    """Largest share of one level where several are accepted from; what is above it is left out."""
    window: int | None = Field(default=1, ge=1, le=1000)
    """Rounds whose accepted responses are trained on: 1 = this round's alone, as the theory has it; null = all."""


class StopConfig(Knobs):
    """When rounds end before `rounds`."""

    min_gain: float = Field(default=0.005, gt=0, lt=1)
    """Gain in held-out pass@1 that counts, unless two standard errors are more."""
    patience: int = Field(default=2, ge=1, le=100)
    """Rounds in a row that must look saturated."""
    max_samples: int | None = Field(default=None, ge=1, le=10**12)
    """Responses over all rounds; null = no bound."""
    max_hours: float | None = Field(default=None, gt=0, le=10_000)
    """Hours since the job began after which no round begins; null = no bound."""
    max_drop: float = Field(default=0.03, gt=0, lt=1)
    """Fall of pass@k, or of pass@1 out of distribution, over two rounds in which pass@1 rose, that ends a job unless
    two standard errors are more: the reversal guard."""


class WeakDrivenUpdate(Knobs):
    """The update on mixed logits, with the model of the round before as the weak one."""

    when: Literal["off", "on_saturation"] = "off"
    """Never, or in the rounds after the feedback loop has saturated."""
    mixing_weight: MixingWeight = DEFAULT_MIXING_WEIGHT
    """λ, the weight of the strong logits; 1 = plain maximum likelihood."""
    weak_update: Literal["joint", "frozen"] = "frozen"
    """Train the weak branch too, or hold it fixed."""

    @model_validator(mode="after")
    def _no_unused_knob(self) -> Self:
        if self.when == "off" and (self.mixing_weight, self.weak_update) != (DEFAULT_MIXING_WEIGHT, "frozen"):
            raise ValueError("mixing_weight, weak_update: unused with when 'off'; remove them, or set 'on_saturation'")
        return self


class SelfImprovementConfig(Knobs):
    """Rounds of generate, verify, keep what was right, fine-tune (`method.self_improvement`)."""

    verifier: VerifierConfig = FinalValueVerifier()
    """What says whether a response is right."""
    rounds: int = Field(default=6, ge=1, le=100)
    """Most rounds that run."""
    samples_per_round: int = Field(default=1024, ge=1, le=10**7)
    """Responses drawn in a round, over all levels."""
    samples_per_prompt: int = Field(default=4, ge=1, le=4096)
    """Responses to one prompt; divides `samples_per_round`."""
    estimate_levels: int | None = Field(default=None, ge=2, le=20)
    """Number of levels to make from the start model's pass rates; null = the rows' own `level`."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """Which levels a round's prompts come from."""
    sampling: SamplingConfig = SamplingConfig()
    """How responses are drawn."""
    accept: AcceptConfig = AcceptConfig()
    """Which of the correct ones are learned from."""
    steps_per_round: int | None = Field(default=128, ge=1, le=10**6)
    """Optimizer steps of each round's update; null = `n_epochs` over what was accepted, which makes runs that accept
    less also train less."""
    start_from: Literal["continue", "restart"] = "continue"
    """Each update starts from the model of the round before, or from `model` each time."""
    weak_driven: WeakDrivenUpdate = WeakDrivenUpdate()
    """The update on mixed logits, off by default."""
    evaluation_samples: int = Field(default=4, ge=1, le=1024)
    """Responses per held-out task after each round: pass@1 is their mean, pass@k for k up to this number."""
    stop: StopConfig = StopConfig()
    """When rounds end early."""
    hyperparameters: Hyperparameters = Hyperparameters()
    """How each update trains; `batch_size: auto` = 32."""

    @model_validator(mode="after")
    def _consistent_counts(self) -> Self:
        if self.samples_per_round % self.samples_per_prompt:
            raise ValueError(
                f"samples_per_round: expected a multiple of samples_per_prompt ({self.samples_per_prompt}), got "
                f"{self.samples_per_round}"
            )
        cap = self.accept.max_per_prompt
        if cap is not None and cap > self.samples_per_prompt:
            raise ValueError(
                f"accept.max_per_prompt: expected at most samples_per_prompt ({self.samples_per_prompt}), got {cap}"
            )
        if self.accept.min_accepted > self.samples_per_round:
            raise ValueError(
                f"accept.min_accepted: expected at most samples_per_round ({self.samples_per_round}), got "
                f"{self.accept.min_accepted}: no round could ever train"
            )
        if self.sampling.temperature == 0 and (self.samples_per_prompt > 1 or self.evaluation_samples > 1):
            raise ValueError(
                "sampling.temperature: at 0 all responses to a prompt are the same; raise it, or set "
                "samples_per_prompt and evaluation_samples to 1"
            )
        most = self.stop.max_samples
        if most is not None and most < self.samples_per_round:
            raise ValueError(
                f"stop.max_samples: expected at least samples_per_round ({self.samples_per_round}), got {most}"
            )
        return self

    @model_validator(mode="after")
    def _no_unused_knob(self) -> Self:
        if self.hyperparameters.max_steps is not None:
            raise ValueError("hyperparameters.max_steps: unused with self_improvement; set steps_per_round")
        if self.hyperparameters.too_long != "auto":
            raise ValueError(
                "hyperparameters.too_long: unused with self_improvement, whose rows are prompts; remove it, and "
                "shorten prompts that are too long"
            )
        if self.start_from == "restart" and self.weak_driven.when != "off":
            raise ValueError(
                "weak_driven: with start_from 'restart' the model of the round before would be the stronger one; use "
                "'continue', or leave weak_driven off"
            )
        if self.sampling.temperature == 0 and self.estimate_levels is not None:
            raise ValueError("estimate_levels: needs pass rates, and at temperature 0 all responses are the same")
        if self.steps_per_round is not None and self.hyperparameters.num_epochs != DEFAULT_EPOCHS:
            raise ValueError("hyperparameters.n_epochs: unused with steps_per_round; set that to null, or remove this")
        return self


IMPROVEMENT_BATCH_SIZE = 32
"""What `batch_size: auto` means in self-improvement."""


class SelfImprovementMethod(Knobs):
    """Rounds on the model's own verified responses, from easy to hard tasks."""

    type: Literal["self_improvement"]
    """Which algorithm runs."""
    self_improvement: SelfImprovementConfig = SelfImprovementConfig()
    """Its knobs."""
