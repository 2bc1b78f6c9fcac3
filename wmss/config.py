"""Which knobs exist: names, bounds, units and defaults. One declaration for REST, TOML and the trainer.

Every model is frozen and refuses unknown keys; the text under a field is its help. Importing this loads no torch.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from wmss.errors import ConfigError, shortened, shown


class Knobs(BaseModel):
    """Base of every configuration model."""

    # Strict: `true` is not a batch size and "8" is not a number.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Spec = TypeVar("Spec", bound=Knobs)

MAX_COUNT = 2**24
"""Largest batch size and sample length that is taken for meant."""
DEFAULT_EPOCHS = 1
DEFAULT_LEARNING_RATE = 1e-5
"""What `n_epochs: auto` and `learning_rate_multiplier: auto` mean."""
DEFAULT_MIXING_WEIGHT = 0.5

Auto = Literal["auto"]
MaxLength = Annotated[int, Field(ge=2, le=MAX_COUNT)] | Auto

METADATA_KEY = r'^[^"\\\[\]\x00-\x1f]{1,64}$'
_METADATA_VALUE = r"^[^\x00]{0,512}$"
_SUFFIX = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_NO_NUL = r"^[^\x00]*$"
PATTERNS = {
    METADATA_KEY: "a key of 1 to 64 characters, without quotes, brackets, backslashes and control characters",
    _METADATA_VALUE: "up to 512 characters, none of them NUL",
    _SUFFIX: "up to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
    _NO_NUL: "text without NUL characters",
}
"""What each pattern asks for, in words."""

MetadataKey = Annotated[str, StringConstraints(pattern=METADATA_KEY)]
MetadataValue = Annotated[str, StringConstraints(pattern=_METADATA_VALUE)]
Suffix = Annotated[str, StringConstraints(pattern=_SUFFIX)]
FileName = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=_NO_NUL)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class LoraConfig(Knobs):
    """Low-rank adapters: W + (alpha / rank) B A on every linear layer of the model's blocks, with W held fixed."""

    rank: int = Field(default=16, ge=1, le=4096)
    """Rows of A and columns of B."""
    alpha: int = Field(default=32, ge=1, le=1_000_000)
    """Scale of the adapter, divided by `rank`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training."""


class Hyperparameters(Knobs):
    """How a model is trained. OpenAI's names where it has them, with its "auto"."""

    n_epochs: Annotated[int, Field(ge=1, le=100_000)] | Auto = DEFAULT_EPOCHS
    """Passes over the phase's samples; "auto" = 1. With `wmss`: of the weak-driven phase."""
    max_steps: int | None = Field(default=None, ge=1, le=10**9)
    """Upper bound on the optimizer steps of each training phase; null = none."""
    batch_size: Annotated[int, Field(ge=1, le=MAX_COUNT)] | Auto = "auto"
    """Samples per optimizer step, over all workers; "auto" = the preset's, but at most an eighth of the samples."""
    learning_rate: float | None = Field(default=DEFAULT_LEARNING_RATE, gt=0, le=1)
    """Peak learning rate of AdamW (0.9, 0.999); null = the default 1e-5 times `learning_rate_multiplier`."""
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1e5)] | Auto | None = None
    """OpenAI's way to say it: multiplies the default learning rate, in place of `learning_rate`; "auto" = 1."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay after warm-up: to 0 along a line or half a cosine, or none."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the phase's steps over which the learning rate rises from 0; 0 = no warm-up."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay of matrices; 0 = off. Norms and biases are never decayed."""
    gradient_clip: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm, both branches together; null = no clipping."""
    max_length: MaxLength = "auto"
    """Tokens per sample; longer completions are cut and reported. "auto" = 4096 or the model's context if shorter."""
    micro_batch_tokens: int = Field(default=8192, ge=1, le=2**24)
    """Tokens per forward pass and worker. It bounds memory and does not change the result."""
    packing: bool = True
    """Lay samples end to end in one row without padding, each seeing itself only; false = a padded row a sample."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the models' forward and backward passes; weights, optimizer and the mixed loss stay float32."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Keep all activations for the backward pass; only results of matrix products; or only each block's input."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW, or AdamW with 8-bit moments (a quarter of their memory; needs the package torchao)."""
    neftune_alpha: float | None = Field(default=None, gt=0, le=1e6)
    """NEFTune: uniform noise of at most alpha / sqrt(length x width) on the input embeddings; null = none."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights; null = all weights."""
    compile: bool = False
    """Compile the models' blocks with torch.compile; pays on GPUs and long runs, needs a C++ compiler on CPUs."""
    telemetry_every: int | None = Field(default=10, ge=1, le=10**9)
    """Steps between readings of margin, entropies and divergence from up to 256 targets a worker; null = none."""

    @model_validator(mode="before")
    @classmethod
    def _multiplier_in_place_of_the_default(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("learning_rate_multiplier") is not None:
            return {"learning_rate": None} | given
        return given

    @model_validator(mode="after")
    def _one_learning_rate(self) -> Self:
        if self.learning_rate is not None and self.learning_rate_multiplier is not None:
            raise ValueError(
                "learning_rate and learning_rate_multiplier: expected one of them, got both; remove the multiplier"
            )
        return self

    @property
    def num_epochs(self) -> int:
        """`n_epochs` with "auto" resolved."""
        return DEFAULT_EPOCHS if self.n_epochs == "auto" else self.n_epochs

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after warm-up: as given, or the default times the multiplier."""
        if self.learning_rate is not None:
            return self.learning_rate
        multiplier = self.learning_rate_multiplier
        return DEFAULT_LEARNING_RATE * (1.0 if multiplier is None or multiplier == "auto" else multiplier)


class WmssHyperparameters(Hyperparameters):
    """As `Hyperparameters`, plus the supervised phase that makes the strong checkpoint."""

    sft_epochs: int | None = Field(default=None, ge=1, le=1000)
    """Epochs of supervised fine-tuning that turn `model` into the strong checkpoint; null = 1, or none at all with
    `strong_model`, which makes the phase unnecessary."""


class SupervisedConfig(Knobs):
    """Plain supervised fine-tuning (`method.supervised`)."""

    hyperparameters: Hyperparameters = Hyperparameters()
    """How the model is trained."""


_COEFFICIENTS = ("alpha", "beta", "gamma")
WEIGHTINGS_BY_ENTROPY = ("v2", "v1", "per_term")
"""Weightings that read the entropy of every sample."""
_PAPER = {"weak_update": "joint", "deduplicate": True, "weighting": "v2", "alpha": 0.1, "beta": 0.8, "gamma": 0.1}

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
    weak_shares: list[Annotated[float, Field(gt=0, le=1)]] | None = None
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
    mixing_weight: float = Field(default=DEFAULT_MIXING_WEIGHT, ge=0, le=1)
    """λ, the weight of the strong logits; 1 = plain fine-tuning of the strong model."""
    mixing_weight_end: float | None = Field(default=None, ge=0, le=1)
    """λ of each weak-driven phase's last step; null = λ is constant."""
    mixing_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How λ goes from `mixing_weight` to `mixing_weight_end`."""
    weak_update: Literal["joint", "frozen"] = "joint"
    """Train the weak branch too (the paper's method), or hold it fixed."""
    weak_cache: bool = False
    """Keep the frozen weak model's hidden states from scoring on disk, so that training need not run it: 4 bytes x
    width for every supervised token."""
    weighting: Literal["v2", "v1", "per_term", "uniform", "all"] = "v2"
    """How entropies become sampling weights, see `wmss.core.sample_weights`; `all` = every sample once, without a draw."""
    alpha: float | None = Field(default=None, ge=0, le=1e6)
    """Coefficient of the first term (v2: entropy drop; v1 and per_term: weak entropy); null = the preset's."""
    beta: float | None = Field(default=None, ge=0, le=1e6)
    """Coefficient of the second term (v2: strong entropy; v1 and per_term: entropy drop); null = the preset's."""
    gamma: float | None = Field(default=None, ge=0, le=1e6)
    """Coefficient of the third term (entropy rise); null = the preset's. All three are null with `uniform`, `all`."""
    max_share: float | None = Field(default=None, gt=0, le=1)
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
            if len(self.weak_shares) != self.num_weak:
                raise ValueError(
                    f"weak_shares: expected {self.num_weak} numbers, one for weak_model and for each of "
                    f"more_weak_models, got {len(self.weak_shares)}"
                )
            if abs(sum(self.weak_shares) - 1.0) > 1e-6:
                raise ValueError(f"weak_shares: expected numbers that sum to 1, got a sum of {sum(self.weak_shares)}")
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


class FinalValueVerifier(Knobs):
    """The value after the last `####`, or in the last `\\boxed{}`, equals the row's answer."""

    type: Literal["final_value"] = "final_value"
    """Which verifier."""


class ExactVerifier(Knobs):
    """The whole response equals the row's answer, but for spaces at both ends."""

    type: Literal["exact"]
    """Which verifier."""
    ignore_case: bool = False
    """Take letters of both cases for equal."""


class RegexVerifier(Knobs):
    """What a pattern finds last in the response equals the row's answer."""

    type: Literal["regex"]
    """Which verifier."""
    pattern: Annotated[str, Field(min_length=1, max_length=1000)]
    """Python regular expression with one group: the answer."""


class ChoiceVerifier(Knobs):
    """The one choice the response ends in equals the row's answer."""

    type: Literal["choice"]
    """Which verifier."""
    choices: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(min_length=2, max_length=100)]
    """All the choices there are, e.g. A, B, C, D."""


class MathVerifier(Knobs):
    """Equal as mathematics to the row's answer, by the package math-verify."""

    type: Literal["math"]
    """Which verifier."""
    timeout_s: float = Field(default=5.0, gt=0, le=600)
    """Time for one response; its process is ended then."""


class GraphPathVerifier(Knobs):
    """A shortest path, as a JSON list of node names, in the graph of the row's `data`."""

    type: Literal["graph_path"]
    """Which verifier."""


class SandboxLimits(Knobs):
    """What a program in the sandbox may use; it has no network and may write in a folder of its own only."""

    timeout_s: float = Field(default=5.0, gt=0, le=600)
    """Wall-clock time for one response; the whole process group is ended then."""
    memory_mb: int = Field(default=512, ge=64, le=65_536)
    """Address space of each process, in MiB."""
    processes: int = Field(default=16, ge=1, le=1024)
    """Processes and threads at once."""
    file_mb: int = Field(default=16, ge=1, le=4096)
    """Bytes that may be written, in MiB."""


class CodeVerifier(Knobs):
    """The response's Python code passes the tests in the row's `data.tests`, in a sandbox."""

    type: Literal["code"]
    """Which verifier."""
    limits: SandboxLimits = SandboxLimits()
    """Of one response with all its tests."""


class PythonVerifier(Knobs):
    """A function of yours, `verify(task, response) -> bool`, in the same sandbox."""

    type: Literal["python"]
    """Which verifier."""
    source: Annotated[str, Field(min_length=1, max_length=65_536)]
    """Python source that defines `verify`; `task` is the row as a dict."""
    limits: SandboxLimits = SandboxLimits()
    """Of one call."""


VerifierConfig = Annotated[
    FinalValueVerifier
    | ExactVerifier
    | RegexVerifier
    | ChoiceVerifier
    | MathVerifier
    | GraphPathVerifier
    | CodeVerifier
    | PythonVerifier,
    Field(discriminator="type"),
]

CurriculumPolicy = Literal["clock", "acceptance_target", "uniform", "hard_only", "hard_to_easy"]
CURRICULUM_POLICIES: tuple[CurriculumPolicy, ...] = get_args(CurriculumPolicy)


class CurriculumConfig(Knobs):
    """Which difficulty levels a round's prompts come from."""

    policy: CurriculumPolicy = "acceptance_target"
    """Levels by the number of the round; by measured acceptance; all equally; the last only; the clock backwards."""
    target: float = Field(default=0.37, gt=0, lt=1)
    """Acceptance of the level to train on; 1/e teaches most new steps per sample."""
    band: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] = [0.2, 0.6]
    """Acceptance between which a level is worth training on."""
    probe_fraction: float = Field(default=0.1, ge=0, le=0.5)
    """Largest share of a round's samples that measures levels out of focus; they are trained on as well."""
    replay_fraction: float = Field(default=0.15, ge=0, le=0.5)
    """Share that goes back to lower levels, most to those that have fallen most."""
    patience: int = Field(default=3, ge=1, le=100)
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
        if self.probe_fraction + self.replay_fraction >= 1:
            raise ValueError("probe_fraction and replay_fraction: expected less than 1 together; lower one")
        if not low < self.target < high:
            raise ValueError(f"band: expected two numbers with the target {self.target} between them, got {self.band}")
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
    min_accepted: int = Field(default=64, ge=1, le=10**6)
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
    mixing_weight: float = Field(default=DEFAULT_MIXING_WEIGHT, ge=0, le=1)
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
    """Each update starts from the model of the round before, or from `model` anew."""
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


class SupervisedMethod(Knobs):
    """Plain supervised fine-tuning."""

    type: Literal["supervised"] = "supervised"
    """Which algorithm runs."""
    supervised: SupervisedConfig = SupervisedConfig()
    """Its knobs."""


class WmssMethod(Knobs):
    """Weak-driven training on mixed logits."""

    type: Literal["wmss"]
    """Which algorithm runs."""
    wmss: WmssConfig = WmssConfig()
    """Its knobs."""


class SelfImprovementMethod(Knobs):
    """Rounds on the model's own verified responses, from easy to hard tasks."""

    type: Literal["self_improvement"]
    """Which algorithm runs."""
    self_improvement: SelfImprovementConfig = SelfImprovementConfig()
    """Its knobs."""


class Resources(Knobs):
    """What a job may occupy."""

    num_workers: int = Field(default=1, ge=1, le=1024)
    """Training workers; each takes its share of every batch."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """Several workers: each with a copy of the model(s), or weights, gradients and optimizer divided among them."""
    use_gpu: bool | None = None
    """One GPU per training worker and engine; null = if the cluster has any."""


class Checkpointing(Knobs):
    """When training state is saved, for resuming and for use as a model."""

    every_steps: int = Field(default=100, ge=1, le=10**9)
    """Optimizer steps between checkpoints; the end of a phase always makes one."""
    keep_last: int = Field(default=2, ge=1, le=10_000)
    """Checkpoints kept per training phase."""


UNSUPPORTED = {
    "hyperparameters": 'deprecated by OpenAI; move it into the method: {"type": "supervised", "supervised": '
    '{"hyperparameters": ...}}, or "wmss" twice in place of "supervised"',
    "integrations": "not supported; remove it, and read the metrics of every step from the job's events",
}
"""Members of OpenAI's request that may only be empty, and what to do instead."""


class JobSpec(Knobs):
    """A fine-tuning job, as posted to `/v1/fine_tuning/jobs` or written in a TOML file."""

    model: ModelName
    """Start checkpoint: a folder under an allowed root, or the name of a finished job's model."""
    training_file: FileName
    """File id (REST) or path (TOML, CLI) of JSON lines: chat `messages`, or `prompt` and `completion`; with
    self_improvement, tasks: a prompt with the answer a verifier compares, and a level."""
    validation_file: FileName | None = None
    """Held-out file of the same form, for the `evaluate` phase; null = that phase is skipped. Self-improvement needs
    it: held-out tasks decide when rounds stop, and which round's model is kept."""
    method: Annotated[SupervisedMethod | WmssMethod | SelfImprovementMethod, Field(discriminator="type")] = (
        SupervisedMethod()
    )
    """The algorithm and its knobs."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of the draw and of the order of samples."""
    suffix: Suffix | None = None
    """Part of the finished model's name, up to 64 letters, digits, '.', '_' or '-'."""
    metadata: Metadata | None = None
    """Up to 16 pairs of your own, for filtering the job list; keys of up to 64 characters without quotes, brackets or
    backslashes, values of up to 512."""
    resources: Resources = Resources()
    """What the job may occupy."""
    checkpointing: Checkpointing = Checkpointing()
    """When training state is saved."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_asked_of_what_is_not_supported(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if key not in UNSUPPORTED or value not in (None, [], {})}

    @model_validator(mode="after")
    def _held_out_tasks(self) -> Self:
        if isinstance(self.method, SelfImprovementMethod) and self.validation_file is None:
            raise ValueError(
                "validation_file: required with self_improvement, held-out tasks decide when rounds stop; add one"
            )
        return self

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The hyperparameters of whichever method was chosen."""
        method = self.method
        match method:
            case WmssMethod():
                return method.wmss.hyperparameters
            case SelfImprovementMethod():
                return method.self_improvement.hyperparameters
            case SupervisedMethod():
                return method.supervised.hyperparameters


class ScoreSpec(Knobs):
    """A request for entropy scores, as posted to `/v1/entropy_scores`: every sample of a file under each checkpoint."""

    file: FileName
    """File id (REST) or path (CLI) of JSON lines, as a training file."""
    models: list[ModelName] = Field(min_length=1, max_length=8)
    """1 to 8 checkpoints with one tokenizer, each scored in turn; the first one's chat template renders the file."""
    max_length: MaxLength = "auto"
    """Tokens per sample; longer completions are cut and reported. "auto" = 4096 or the shortest context if shorter."""
    tokens: bool = False
    """A table of every supervised token as well as the one of every sample."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the models; entropies are float32 sums either way. Scores of two precisions are not comparable."""
    num_replicas: int = Field(default=1, ge=1, le=1024)
    """Engines that share the samples of one checkpoint, each with a CPU or a GPU of its own."""
    use_gpu: bool | None = None
    """One GPU per engine; null = if the cluster has any."""
    metadata: Metadata | None = None
    """Up to 16 pairs of your own, as in a job."""

    @property
    def resources(self) -> Resources:
        """What the request may occupy, in a job's terms."""
        return Resources(num_workers=self.num_replicas, use_gpu=self.use_gpu)


def resolve_batch_size(spec: JobSpec, num_samples: int) -> int:
    """Samples per optimizer step: as given, or min(the preset's, an eighth of the samples), at least 1; in
    self-improvement 32."""
    given = spec.hyperparameters.batch_size
    if given != "auto":
        return given
    if isinstance(spec.method, SelfImprovementMethod):
        return IMPROVEMENT_BATCH_SIZE
    preset = spec.method.wmss.preset if isinstance(spec.method, WmssMethod) else "wmss-v2"
    return max(1, min(PRESET_BATCH_SIZE[preset], num_samples // 8))


def resolve_max_length(spec: JobSpec | ScoreSpec, context_length: int) -> int:
    """Tokens per sample: as given (refused above the model's context), or 4096 capped by the context."""
    if isinstance(spec, JobSpec):
        given, param = spec.hyperparameters.max_length, f"method.{spec.method.type}.hyperparameters.max_length"
    else:
        given, param = spec.max_length, "max_length"
    if given == "auto":
        return min(4096, context_length)
    if given > context_length:
        raise ConfigError(
            f"max_length: expected at most the model's context of {context_length} tokens, got {given}", param=param
        )
    return given


def parse_job(values: Any) -> JobSpec:
    """Validate a job from JSON values; every problem becomes one `ConfigError` that names the fields."""
    return _parse(JobSpec, values)


def parse_scores(values: Any) -> ScoreSpec:
    """Validate a request for entropy scores in the same way."""
    return _parse(ScoreSpec, values)


def _parse(kind: type[Spec], values: Any) -> Spec:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)) from None


METHODS = ("wmss", "supervised", "self_improvement")


def read_toml(path: Path) -> dict[str, Any]:
    """Values of a TOML job file, not yet validated: keys of `JobSpec`, with a table of a method's name as method."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: expected a readable TOML file: {error}") from error
    methods = [name for name in METHODS if name in values]
    if "method" in values or len(methods) > 1:
        raise ConfigError(
            f"{path}: expected one table, [wmss], [supervised] or [self_improvement], in place of `method`; keep one"
        )
    if methods:
        values["method"] = {"type": methods[0], methods[0]: values.pop(methods[0])}
    return values


def explain(errors: Sequence[Mapping[str, Any]]) -> ConfigError:
    """One message for all of pydantic's `errors()`, `param` naming the first field (e.g. `method.wmss.alpha`)."""
    texts: dict[str, tuple[list[str], str]] = {}  # of one field, all that it could have been
    for item in errors:
        field, text = _explain_one(item)
        got = "" if item["type"] in _SELF_EXPLAINED else f" (got {shown(item['input'])})"
        texts.setdefault(field, ([], got))[0].append(text)
    lines = []
    for field, (said, got) in list(texts.items())[:MAX_REPORTED]:
        text = " or ".join([said[0], *(other.removeprefix("expected ") for other in said[1:])]) + got
        lines.append(f"{field}: {text}" if field else text)
    if len(texts) > MAX_REPORTED:
        lines.append(f"and {len(texts) - MAX_REPORTED} more")
    return ConfigError("; ".join(lines), param=next(iter(texts)) or None)


MAX_REPORTED = 100
"""Fields that one message speaks of."""
_OBJECT_EXPECTED = ("model_type", "model_attributes_type", "dict_type")
_SELF_EXPLAINED = ("extra_forbidden", "missing", "value_error", "union_tag_invalid", "union_tag_not_found")


def _explain_one(item: Mapping[str, Any]) -> tuple[str, str]:
    """The field of one of pydantic's errors, and what was expected of it."""
    field = field_path(item["loc"])
    match item["type"]:
        case "extra_forbidden":
            return field, UNSUPPORTED.get(field, "unknown field; remove it or correct its spelling")
        case "missing":
            return field, "required field is missing"
        case "union_tag_invalid":
            known, got = item["ctx"]["expected_tags"], item["ctx"]["tag"]
            return f"{field}.type", f"expected one of {known}, got {shown(got)}; others are not offered here"
        case "union_tag_not_found":
            return f"{field}.type", "required field is missing"
        case "string_pattern_mismatch":
            return field, f"expected {PATTERNS[item['ctx']['pattern']]}"
        case kind if kind in _OBJECT_EXPECTED:
            return field, "expected an object with fields"
        case _:
            return field, item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")


_PYDANTICS_OWN = ("str", "int", "constrained-int", "float", "constrained-float", "[key]")


def field_path(location: tuple[int | str, ...]) -> str:
    """A field's dotted path as the caller wrote it, without the union branches and "[key]" marks that pydantic adds."""
    parts = [str(part) for part in location]
    if parts[:1] == ["method"] and len(parts) > 1:
        del parts[1]
    if parts[1:3] == ["self_improvement", "verifier"] and len(parts) > 4:
        del parts[3]
    of_the_caller = parts[:1] == ["metadata"] and parts[-1] != "[key]"
    if parts and not of_the_caller and (parts[-1] in _PYDANTICS_OWN or parts[-1].startswith(("literal[", "list["))):
        del parts[-1]
    return shortened(".".join(parts))
