"""The knobs of weak-driven training (`method.wmss`, `[wmss]` in TOML)."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from wmss.choices import (
    DEFAULT_ALPHA,
    DEFAULT_BETA,
    DEFAULT_GAMMA,
    DEFAULT_MIXING_WEIGHT,
    MixingSchedule,
    Weighting,
)
from wmss.config.base import Knobs, MixingWeight, ModelName, Share, check_shares
from wmss.config.hyperparameters import Hyperparameters


class WmssHyperparameters(Hyperparameters):
    """As `Hyperparameters`, plus the supervised phase that makes the strong checkpoint."""

    sft_epochs: int | None = Field(default=None, ge=1, le=1000)
    """Epochs of supervised fine-tuning that turn `model` into the strong checkpoint; null = 1, or none at all with
    `strong_model`, which makes the phase unnecessary."""


_COEFFICIENTS = ("alpha", "beta", "gamma")
WEIGHTINGS_BY_ENTROPY = ("v2", "v1", "per_term")
"""Weightings that read the entropy of every sample."""
_PAPER = {
    "weak_update": "joint",
    "deduplicate": True,
    "weighting": "v2",
    "alpha": DEFAULT_ALPHA,
    "beta": DEFAULT_BETA,
    "gamma": DEFAULT_GAMMA,
}

PRESETS: dict[str, dict[str, Any]] = {
    "wmss-v2": _PAPER | {"hyperparameters": {"sft_epochs": 1}},
    "wmss-v1": _PAPER
    | {"weighting": "per_term", "deduplicate": False, "hyperparameters": {"sft_epochs": 1, "warmup_ratio": 0.0}},
    "efficient": _PAPER | {"weak_update": "frozen", "hyperparameters": {"sft_epochs": 1}},
}
"""Values a preset gives to knobs that the caller left out: the paper's current text, what the official code runs,
and the current text with a frozen weak model (a third of the extra cost; a different algorithm from the paper's)."""

PRESET_BATCH_SIZE = {"wmss-v2": 512, "wmss-v1": 256, "efficient": 512}
"""What `batch_size: auto` starts from."""


class WmssConfig(Knobs):
    """Weak-driven training (`method.wmss`; `[wmss]` in TOML)."""

    preset: Literal["wmss-v2", "wmss-v1", "efficient"] = "wmss-v2"
    """Named set of values for the knobs left out below."""
    weak_model: ModelName | None = None
    """The weak checkpoint; null = `model`."""
    strong_model: ModelName | None = None
    """The strong checkpoint; null = made from `model` by supervised fine-tuning."""
    more_weak_models: list[ModelName] = Field(default=[], max_length=15)
    """Further weak checkpoints that are mixed in as well."""
    weak_shares: list[Share] | None = None
    """How 1-λ is divided among `weak_model` and `more_weak_models`, in this order; sums to 1; null = equally."""
    start_at: Literal["end", "saturation"] = "end"
    """When supervised fine-tuning gives way: after `sft_epochs`, or as soon as the logit margin has flattened; then the
    weak checkpoint, unless named, is the latest stored one whose entropy is still far enough from the strong one's."""
    rounds: int = Field(default=1, ge=1, le=100)
    """K: how often the weak-driven phase runs. In round t, M_{t-1} is the weak model and M_t the strong one, with
    `model` as M_0 and the fine-tuned one as M_1; the result is M_{K+1}."""
    mixing: Literal["logits", "strong_scaled", "off"] = "logits"
    """What the weak-driven phase trains on: mixed logits; as a control, λ z_strong without a weak model; or plain
    z_strong (the curriculum alone)."""
    mixing_weight: MixingWeight = DEFAULT_MIXING_WEIGHT
    """λ, the weight of the strong logits; 1 = plain fine-tuning of the strong model."""
    mixing_weight_end: MixingWeight | None = None
    """λ of each weak-driven phase's last step; null = λ is constant."""
    mixing_schedule: MixingSchedule = "constant"
    """How λ goes from `mixing_weight` to `mixing_weight_end`."""
    weak_update: Literal["joint", "frozen"] = "joint"
    """Train the weak branch too (the paper's method), or hold it fixed."""
    weak_cache: bool = False
    """Keep the frozen weak model's hidden states from scoring on disk, so that training need not run it: 4 bytes x
    width for every supervised token."""
    weighting: Weighting = "v2"
    """How entropies become sampling weights, see `wmss.core.sample_weights`; `all` = every sample once, without
    a draw."""
    alpha: float | None = Field(default=None, ge=0, le=1e6)
    """Coefficient of the first term (v2: entropy drop; v1 and per_term: weak entropy); null = the preset's."""
    beta: float | None = Field(default=None, ge=0, le=1e6)
    """Coefficient of the second term (v2: strong entropy; v1 and per_term: entropy drop); null = the preset's."""
    gamma: float | None = Field(default=None, ge=0, le=1e6)
    """Coefficient of the third term (entropy rise); null = the preset's. All three are null with `uniform`, `all`."""
    max_share: Share | None = None
    """Largest sampling probability of one sample; what is cut goes to the others in proportion; null = no bound."""
    deduplicate: bool = True
    """Train on each drawn sample once, however often it was drawn."""
    hyperparameters: WmssHyperparameters = WmssHyperparameters()
    """How the models are trained."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, given: Any) -> Any:
        name = given.get("preset", "wmss-v2") if isinstance(given, dict) else None
        if not isinstance(name, str) or name not in PRESETS:
            return given  # refused by the fields' own types
        preset = PRESETS[name]
        hyperparameters = given.get("hyperparameters", {})
        if isinstance(hyperparameters, BaseModel):
            hyperparameters = hyperparameters.model_dump(exclude_unset=True)
        if not isinstance(hyperparameters, dict):
            return given
        given = {key: value for key, value in given.items() if key not in _COEFFICIENTS or value is not None}
        if hyperparameters.get("sft_epochs") is None:
            hyperparameters = {key: value for key, value in hyperparameters.items() if key != "sft_epochs"}
        values = preset | given
        values["hyperparameters"] = preset["hyperparameters"] | hyperparameters
        # What cannot be used is left null, so that the resolved configuration reads back as itself.
        if values.get("strong_model") is not None:
            values["hyperparameters"]["sft_epochs"] = hyperparameters.get("sft_epochs")
        if values["weighting"] not in WEIGHTINGS_BY_ENTROPY:
            values |= {key: given.get(key) for key in _COEFFICIENTS}
        return values

    @model_validator(mode="after")
    def _no_unused_knob(self) -> Self:
        if self.strong_model is not None and self.hyperparameters.sft_epochs is not None:
            raise ValueError(
                "hyperparameters.sft_epochs: unused when strong_model is given (no supervised phase runs); remove one"
            )
        given = [value for value in (self.alpha, self.beta, self.gamma) if value is not None]
        if self.weighting not in WEIGHTINGS_BY_ENTROPY and given:
            raise ValueError(f"alpha, beta, gamma: unused with weighting {self.weighting!r}; remove them")
        if self.weighting in WEIGHTINGS_BY_ENTROPY and not any(given):
            raise ValueError("alpha, beta, gamma: expected at least one above 0, got three zeros")
        return self

    @model_validator(mode="after")
    def _sensible_mix(self) -> Self:
        alone = f"unused with mixing {self.mixing!r}, which has no weak model; remove it"
        if self.mixing != "logits" and self.more_weak_models:
            raise ValueError(f"more_weak_models: {alone}")
        if self.mixing != "logits" and self.weak_cache:
            raise ValueError(f"weak_cache: {alone}")
        if self.mixing != "logits" and self.weak_shares is not None:
            raise ValueError(f"weak_shares: {alone}")
        if self.mixing != "logits" and self.weak_model is not None and not self.reads_entropy:
            raise ValueError(
                f"weak_model: unused with mixing {self.mixing!r} and weighting {self.weighting!r}, which neither mix "
                "nor score it; remove it"
            )
        if self.mixing == "off" and self.mixing_weight_end is not None:
            raise ValueError("mixing_weight_end: unused with mixing 'off', which has no λ; remove it")
        if self.mixing == "off" and self.mixing_weight != DEFAULT_MIXING_WEIGHT:
            raise ValueError("mixing_weight: unused with mixing 'off', which has no λ; remove it")
        if self.mixing == "strong_scaled" and self.mixing_weight == 0 and not self.mixing_weight_end:
            raise ValueError("mixing_weight: expected above 0 with mixing 'strong_scaled', 0 z_strong teaches nothing")
        if (self.mixing_schedule == "constant") != (self.mixing_weight_end is None):
            raise ValueError(
                "mixing_schedule and mixing_weight_end: expected both, a schedule other than 'constant' and the λ it "
                "ends at, or neither; add the other"
            )
        if self.weak_cache and self.more_weak_models:
            raise ValueError("weak_cache: for a single weak model only; remove more_weak_models")
        if self.weak_cache and self.weak_update != "frozen":
            raise ValueError("weak_cache: expected weak_update 'frozen', a model in training changes its states")
        return self

    @model_validator(mode="after")
    def _sensible_weak_models(self) -> Self:
        if self.weak_shares is not None:
            check_shares(self.weak_shares, self.num_weak)
        if self.start_at == "saturation" and self.strong_model is not None:
            raise ValueError("start_at: 'saturation' watches supervised fine-tuning, which strong_model replaces")
        if self.start_at == "saturation" and self.hyperparameters.telemetry_every is None:
            raise ValueError("start_at: 'saturation' reads the margin; give hyperparameters.telemetry_every a number")
        if not self.reads_entropy and self.max_share is not None:
            raise ValueError(f"max_share: unused with weighting {self.weighting!r}, all shares are equal; remove it")
        return self

    @model_validator(mode="after")
    def _sensible_adapters(self) -> Self:
        knobs = self.hyperparameters
        if knobs.lora is not None and self.trains_weak and knobs.activation_checkpointing != "none":
            raise ValueError(
                "hyperparameters.activation_checkpointing: not with two adapters in training on one model, whose "
                "blocks would be computed again under the wrong one; use 'none', or weak_update 'frozen'"
            )
        return self

    @property
    def num_weak(self) -> int:
        """Weak checkpoints in the mix."""
        return 1 + len(self.more_weak_models)

    @property
    def trains_weak(self) -> bool:
        """Whether there is a weak branch that is trained."""
        return self.mixing == "logits" and self.weak_update == "joint"

    @property
    def shares(self) -> tuple[float, ...]:
        """`weak_shares` with null resolved."""
        return tuple(self.weak_shares or [1.0 / self.num_weak] * self.num_weak)

    @property
    def reads_entropy(self) -> bool:
        """Whether the draw needs the entropy of every sample."""
        return self.weighting in WEIGHTINGS_BY_ENTROPY

    @property
    def coefficients(self) -> dict[str, float]:
        """α, β and γ by name; empty with `uniform` and `all`, which have none."""
        values = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
        return {name: value for name, value in values.items() if value is not None}


class WmssMethod(Knobs):
    """Weak-driven training on mixed logits."""

    type: Literal["wmss"]
    """Which algorithm runs."""
    wmss: WmssConfig = WmssConfig()
    """Its knobs."""
