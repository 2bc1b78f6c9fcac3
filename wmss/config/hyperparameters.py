"""How a model is trained: the knobs that every method has."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wmss.choices import ActivationCheckpointing, TooLong
from wmss.config.base import Auto, BatchSize, Knobs, MaxLength, Steps

DEFAULT_EPOCHS = 1
DEFAULT_LEARNING_RATE = 1e-5
"""What `n_epochs: auto` and `learning_rate_multiplier: auto` mean."""


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
    max_steps: Steps | None = None
    """Upper bound on the optimizer steps of each training phase; null = none."""
    batch_size: BatchSize | Auto = "auto"
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
    """Tokens per sample; for longer rows see `too_long`. "auto" = 4096 or the model's context if shorter."""
    too_long: TooLong = "auto"
    """Rows longer than `max_length`: "refuse" the file, "drop" them, or "cut" their ends; a row that has no supervised
    token left then, and a held-out row, whose answer could not be judged, is dropped. What is dropped is reported.
    "auto" = cut, but such rows refuse the file."""
    micro_batch_tokens: int = Field(default=8192, ge=1, le=2**24)
    """Tokens per forward pass and worker. It bounds memory and does not change the result."""
    packing: bool | Auto = "auto"
    """Lay samples end to end in one row without padding, each seeing itself only; false = a padded row a sample.
    "auto" = packed where the model's states are the same then, which is looked at; true refuses other models."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the factors of every product in models and loss; weights, optimizer, sums and softmax stay float32."""
    activation_checkpointing: ActivationCheckpointing = "none"
    """Keep all activations for the backward pass; only results of matrix products; or only each block's input."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW, or AdamW with 8-bit moments (a quarter of their memory; needs the package torchao)."""
    neftune_alpha: float | None = Field(default=None, gt=0, le=1e6)
    """NEFTune: uniform noise of at most alpha / sqrt(length x width) on the input embeddings; null = none."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights; null = all weights."""
    compile: bool = False
    """Compile the models' blocks with torch.compile; pays on GPUs and long runs, needs a C++ compiler on CPUs."""
    telemetry_every: Steps | None = 10
    """Steps between readings of margin, entropies and divergence from up to 256 targets a worker; null = none."""
    eval_every: Steps | None = None
    """Steps between readings of the loss on the validation file (`valid_loss`); null = at checkpoints alone."""

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
