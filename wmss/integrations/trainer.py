"""Weak-driven training in transformers' `Trainer`, TRL's `SFTTrainer`, or any other subclass of `Trainer`.

class WeakDrivenSFTTrainer(WeakDriven, SFTTrainer): ...
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from wmss.core.mixing import LogitBranch, branch_cross_entropy
from wmss.models.heads import check_output_head
from wmss.models.loading import body_of, output_head

_WEAK = "weak_model"


class WeakDriven:
    """Mixin, to stand before a `Trainer`: its model is the strong branch, trained on the logits mixed with a weak one.

        L = −Σ log softmax(λ z_strong + (1-λ) z_weak)[label] / number of labels        (Eq. 5 and 6)

    While `train` runs the weak model is a submodule of the strong one, so one optimizer, one gradient norm and one
    device hold both; checkpoints and the model afterwards are the strong branch alone. Everything else (data, collator,
    schedule, callbacks) stays the trainer's own.
    """

    def __init__(
        self,
        *args: Any,
        weak_model: PreTrainedModel,
        mixing_weight: float,
        weak_update: Literal["joint", "frozen"] = "joint",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            weak_model: of the strong model's vocabulary; for the paper's method the checkpoint fine-tuning began with.
            mixing_weight: λ in [0, 1], the weight of the strong logits; the paper takes 0.5.
            weak_update: train the weak model too, or hold it fixed.

        Raises:
            ValueError: λ or `weak_update` out of range, vocabularies of different sizes, more than one process, or
                label smoothing, which the mixed loss does not have.
            ModelError: a model changes its logits after the output head.
        """
        if not 0.0 <= mixing_weight <= 1.0:
            raise ValueError(f"mixing_weight: expected a number in [0, 1], got {mixing_weight}")
        if weak_update not in ("joint", "frozen"):
            raise ValueError(f'weak_update: expected "joint" or "frozen", got {weak_update!r}')
        super().__init__(*args, **kwargs)
        if self._trainer.accelerator.num_processes > 1:
            raise ValueError(
                "WeakDriven runs in one process: the hidden states are taken past the wrapper that would synchronise "
                "gradients; for several workers use wmss.training.loop or the service"
            )
        if self._trainer.args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor: expected 0, the mixed loss has no smoothing; remove it")
        sizes = [output_head(model)[0].shape[0] for model in (self._strong, weak_model)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"weak_model: expected a vocabulary of {sizes[0]} as the strong model's, got {sizes[1]}")
        self._forms = [
            check_output_head(self._strong, param="model"),
            check_output_head(weak_model, param="weak_model"),
        ]
        self._weak = weak_model.requires_grad_(weak_update == "joint")
        self._mixing_weight = mixing_weight
        self._frozen = weak_update == "frozen"

    @property
    def _trainer(self) -> Trainer:
        assert isinstance(self, Trainer), "WeakDriven is a mixin: put it before a Trainer among the base classes"
        return self

    @property
    def _strong(self) -> PreTrainedModel:
        model: Any = self._trainer.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT wraps

    def train(self, *args: Any, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As the trainer's own, with the weak model aboard; starting again from a checkpoint is refused."""
        if resume_from_checkpoint:
            raise ValueError("resume_from_checkpoint: checkpoints hold the strong branch only; train from the start")
        model: nn.Module = self._trainer.model
        model.add_module(_WEAK, self._weak.to(next(model.parameters()).device))
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            delattr(model, _WEAK)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mixed loss of a batch; while evaluating, the strong model's own, as the trainer computes it."""
        if not model.training:
            return super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        labels_BT = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
        body = {name: value for name, value in inputs.items() if name != "labels"} | {"use_cache": False}
        if self._frozen:
            self._weak.eval()
        # The bodies are called past the wrapper in which accelerate casts.
        with self._trainer.accelerator.autocast():
            strong_ND = body_of(self._strong)(**body).last_hidden_state.flatten(0, 1)
            with torch.set_grad_enabled(not self._frozen):
                weak_ND = body_of(self._weak)(**body).last_hidden_state.flatten(0, 1)
        (strong_head, strong_bias), (weak_head, weak_bias) = output_head(self._strong), output_head(self._weak)
        strong, weak = self._forms
        loss = branch_cross_entropy(
            [
                LogitBranch(strong_ND, strong_head, strong_bias, self._mixing_weight, *strong),
                LogitBranch(weak_ND, weak_head, weak_bias, 1.0 - self._mixing_weight, *weak),
            ],
            labels_BT.flatten(),
            reduction="mean" if num_items_in_batch is None else "sum",
        )
        loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return (loss, None) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        state = self._trainer.model.state_dict() if state_dict is None else state_dict
        strong = {name: tensor for name, tensor in state.items() if not name.startswith(f"{_WEAK}.")}
        super()._save(output_dir, strong)  # type: ignore[misc]


class WeakDrivenTrainer(WeakDriven, Trainer):
    """transformers' `Trainer` with a weak model; see `WeakDriven`."""
