"""From a `TrainingRun` to its models, ready to train."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from wmss.config.base import Auto
from wmss.errors import ModelError, TrainingError
from wmss.models.adapters import STRONG_ADAPTER, add_adapter, switch_on
from wmss.models.heads import check_output_head
from wmss.models.loading import load_model, output_head
from wmss.models.packing import check_packing, check_padding
from wmss.records import ADAPTER_FOLDER, STRONG_FOLDER
from wmss.training.branches import Branches, CachedWeak, Weak, WeakAdapter, WeakModel
from wmss.training.checkpoints import Resumed
from wmss.training.parallel import blocks_of, checkpoint_activations, models_of
from wmss.training.run import ModelSource, TrainingRun

logger = logging.getLogger(__name__)


def build_branches(run: TrainingRun, resumed: Resumed | None) -> Branches:
    """The models of a phase, from their own checkpoints or, where they were trained already, from the phase's."""
    knobs = run.hyperparameters
    strong = _strong(run, resumed)
    weak = [_weak(run, number, strong, resumed) for number in range(len(run.weak))]
    if knobs.lora is not None:
        switch_on(strong, {STRONG_ADAPTER, *(w.adapter for w in weak if isinstance(w, WeakAdapter) and w.trained)})
    branches = Branches(
        strong,
        weak,
        weak_shares=run.weak_shares,
        bfloat16=knobs.precision == "bfloat16",
        neftune_alpha=knobs.neftune_alpha,
    )
    branches.packed = _pack_or_pad(models_of(branches), knobs.packing)
    if knobs.precision == "bfloat16" and knobs.lora is None:
        _halve_frozen(branches)
    for model in models_of(branches):
        checkpoint_activations(model, knobs.activation_checkpointing)
        if knobs.compile:
            for block in blocks_of(model):
                block.compile()
    return branches


def _pack_or_pad(models: Sequence[PreTrainedModel], packing: bool | Auto) -> bool:
    """Lay all models out for packed rows, or for padded ones where one of them cannot be packed: a batch has one form
    for all of them. Returns whether rows are packed."""
    if packing:
        try:
            for model in models:
                check_packing(model, param="model")
            return True
        except ModelError as error:
            if packing is True:
                raise
            logger.warning("samples are padded, not packed: %s", error.message)
    for model in models:
        check_padding(model, param="model")
    return False


def _halve_frozen(branches: Branches) -> None:
    """Nothing is added to a frozen model's weights, so they need no float32 masters: half the memory.

    It comes after the check of packing, whose tolerance is float32's.
    """
    for weak in branches.weak:
        if isinstance(weak, WeakModel) and not weak.trained:
            weak.model.to(torch.bfloat16)


def _strong(run: TrainingRun, resumed: Resumed | None) -> PreTrainedModel:
    lora, source = run.hyperparameters.lora, run.strong
    _check_adapter(run, source)
    if lora is None:
        folder = source.folder if resumed is None else resumed.folder / STRONG_FOLDER
        return _load(run, folder, param="model")
    model = _load(run, source.folder, param="model")
    weights = source.adapter if resumed is None else resumed.folder / ADAPTER_FOLDER
    add_adapter(model, STRONG_ADAPTER, lora, weights=weights)
    return model


def _weak(run: TrainingRun, number: int, strong: PreTrainedModel, resumed: Resumed | None) -> Weak:
    source, param = run.weak[number], "method.wmss.weak_model"
    lora, trained = run.hyperparameters.lora, not run.weak_frozen
    _check_adapter(run, source)
    if source.states is not None:
        cached = sum(earlier.states is not None for earlier in run.weak[:number])
        return _cached(source.folder, number=cached, param=param)
    stored = resumed.weak_folder(number) if resumed is not None and trained else None
    if lora is None:
        return WeakModel(_load(run, stored or source.folder, param=param), trained=trained)
    adapted = trained or source.adapter is not None
    if source.folder == run.strong.folder:
        if not adapted:
            return WeakAdapter(None, trained=False)
        name = f"weak_{number}"
        add_adapter(strong, name, lora, weights=stored or source.adapter)
        return WeakAdapter(name, trained=trained)
    model = _load(run, source.folder, param=param)
    if adapted:
        add_adapter(model, STRONG_ADAPTER, lora, weights=stored or source.adapter)
        switch_on(model, {STRONG_ADAPTER})
    return WeakModel(model, trained=trained)


def _cached(folder: Path, *, number: int, param: str) -> CachedWeak:
    model = load_model(folder, param=param)
    weight, bias = output_head(model)
    form = check_output_head(model, param=param)
    return CachedWeak(weight.detach().clone(), None if bias is None else bias.detach().clone(), form, number=number)


def _check_adapter(run: TrainingRun, source: ModelSource) -> None:
    if source.adapter is not None and run.hyperparameters.lora is None:
        raise TrainingError(f"{source.adapter}: an adapter to start from, but lora is not set", param="method")


def _load(run: TrainingRun, folder: Path, *, param: str) -> PreTrainedModel:
    model = load_model(folder, param=param)
    check_output_head(model, param=param)
    return model
