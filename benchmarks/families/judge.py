"""What of the product holds for one family: everything but the engine, on a tiny random model.

Each question is answered on its own, so that one that fails takes no other with it. An answer is {"is": verdict,
"why": cause, "error": largest relative difference}.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.families.tiny import save_tiny
from wmss.config import Hyperparameters, LoraConfig
from wmss.errors import WmssError
from wmss.models.adapters import STRONG_ADAPTER, adapter_parameters, add_adapter, merged_model, save_adapter
from wmss.models.checkpoints import export_model, save_model
from wmss.models.examination import examine_folder
from wmss.models.loading import hidden_states, load_model, load_tokenizer
from wmss.models.read_back import Expected, compare, digest_of, last_logits
from wmss.records import TokenizedSample
from wmss.training.batches import collate
from wmss.training.branches import Branches
from wmss.training.build import build_branches
from wmss.training.run import ModelSource, TrainingRun

Answer = dict[str, Any]
LENGTHS = (33, 17, 9)
"""Of the rows, longest first as the training loop packs them; longer than the window of a tiny model."""
LORA = LoraConfig(rank=4, alpha=8)
TOLERANCE = 1e-4
"""Largest relative difference, in float32."""
EXACT = 1e-6
"""The same of merged weights, where both sides do the same arithmetic."""


def judge(model_type: str, folder: Path) -> Iterator[tuple[str, Answer]]:
    """(column, answer) one by one; `folder` is made."""
    model = folder / "model"
    questions: dict[str, Callable[[], Answer]] = {
        "made": lambda: _made(model_type, model),
        "plain": lambda: _plain(model, folder / "plain"),
        "preflight": lambda: _preflight(model, None),
        "preflight_lora": lambda: _preflight(model, LORA),
        "trains": lambda: _trains(model, packing=True),
        "padded": lambda: _trains(model, packing=False),
        "merge": lambda: _merges(model, folder),
        "saved": lambda: _saved(model, folder),
    }
    for column, ask in questions.items():
        answer = _answered(ask)
        yield column, answer
        if column == "made" and answer["is"] == "fails":
            return


def _answered(ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except WmssError as error:
        return {"is": "refused", "why": error.message}
    except Exception as error:  # the row says what went wrong, and the sweep goes on
        return {"is": "fails", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _made(model_type: str, folder: Path) -> Answer:
    save_tiny(model_type, folder)
    return {"is": "yes"}


def _plain(folder: Path, copied: Path) -> Answer:
    """Does plain transformers take a step on the model, and load what it saved?"""
    model = _plain_model(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    ids = torch.from_numpy(_samples(model)[0].input_ids)[None].long()
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    if not all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None):
        return {"is": "fails", "why": "gradients are not finite"}
    optimizer.step()
    model.eval().save_pretrained(copied)
    again = AutoModelForCausalLM.from_pretrained(copied, dtype=torch.float32).eval()
    with torch.no_grad():
        error = _apart(*(each(input_ids=ids, use_cache=False).logits for each in (again, model)))
    return {"is": "yes" if error <= TOLERANCE else "fails", "error": error, "why": "trains, saves and loads again"}


def _preflight(folder: Path, lora: LoraConfig | None) -> Answer:
    examine_folder(folder, param="model", lora=lora)
    return {"is": "accepted"}


def _eager(folder: Path) -> PreTrainedModel:
    """The model as plain transformers runs it with the family's own attention."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def _samples(model: PreTrainedModel) -> list[TokenizedSample]:
    rng = np.random.default_rng(0)
    samples = []
    for number, length in enumerate(LENGTHS):
        ids = rng.integers(3, model.config.get_text_config().vocab_size, length, dtype=np.int32)
        samples.append(TokenizedSample(line=number + 1, input_ids=ids, target_mask=np.arange(length) >= 1))
    return samples


@torch.no_grad()
def _trains(folder: Path, *, packing: bool) -> Answer:
    """Are the states and the loss that training computes those of the family's own attention, sample by sample?"""
    reference = _eager(folder)
    branches = _branches(folder, packing=packing)
    samples = _samples(reference)
    batch = collate(samples, device=torch.device("cpu"), packing=branches.packed)
    rows = [torch.from_numpy(sample.input_ids)[None].long() for sample in samples]
    alone = [hidden_states(reference, ids, torch.ones_like(ids))[0, :-1] for ids in rows]
    losses = [
        nn.functional.cross_entropy(
            reference(input_ids=ids, use_cache=False).logits[0, :-1].float(), ids[0, 1:], reduction="sum"
        )
        for ids in rows
    ]
    states = _apart(branches.states_of(branches.strong, batch), torch.cat(alone))
    loss = _apart(branches(batch, mixing_weight=1.0)[0], torch.stack(losses).sum())
    error = max(states, loss)
    form = "packed" if branches.packed else "padded"
    why = f"states differ by {states:.1e}, the loss by {loss:.1e}"
    return {"is": form if error <= TOLERANCE else f"{form}, wrong", "error": error, "why": why}


def _branches(folder: Path, *, packing: bool, lora: LoraConfig | None = None) -> Branches:
    """What the product trains; without dropout."""
    run = TrainingRun(
        phase="sft",
        strong=ModelSource(folder=folder),
        samples=folder,
        indices=(0,),
        mixing_weight=1.0,
        batch_size=1,
        num_epochs=1,
        hyperparameters=Hyperparameters(packing=packing, lora=lora),
        seed=0,
        checkpoint_every=1,
    )
    return build_branches(run, None).eval()


@torch.no_grad()
def _merges(folder: Path, scratch: Path) -> Answer:
    """Is the product's merge of an adapter PEFT's own of the same matrices? And does PEFT read the adapter's file?"""
    from peft import PeftModel

    model = load_model(folder)
    add_adapter(model, STRONG_ADAPTER, LORA)
    torch.manual_seed(1)
    matrices = adapter_parameters(model, STRONG_ADAPTER)
    for matrix in matrices.values():
        matrix.normal_(0, 0.1)
    state = model.state_dict()
    save_adapter(model, state, scratch / "adapter", STRONG_ADAPTER, base=folder)
    ours = merged_model(model, state, STRONG_ADAPTER, LORA)
    # What PEFT refuses to adapt although it counts it among "all-linear".
    excluded = model.peft_config[STRONG_ADAPTER].exclude_modules
    theirs = _merged_by_peft(folder, matrices, excluded=excluded and sorted(excluded))
    base = load_model(folder).state_dict()
    changed = sum(not tensor.equal(base[name]) for name, tensor in ours.state_dict().items())
    save_model(ours, ours.state_dict(), scratch / "merged", tokenizer_from=folder)
    loaded = load_model(scratch / "merged").state_dict()
    error = max(_furthest(each, theirs) for each in (ours.state_dict(), loaded))
    from_file = PeftModel.from_pretrained(_plain_model(folder), str(scratch / "adapter")).merge_and_unload()
    why = f"{changed} tensors merged"
    if _furthest(from_file.state_dict(), theirs) > EXACT:
        why += "; PEFT does not find all matrices in an adapter's file of this family, nor in one of its own"
    return {"is": "equal" if changed > 0 and error <= EXACT else "wrong", "error": error, "why": why}


def _plain_model(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def _merged_by_peft(folder: Path, matrices: Mapping[str, Tensor], *, excluded: list[str] | None) -> dict[str, Tensor]:
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    config = PeftLoraConfig(
        r=LORA.rank,
        lora_alpha=LORA.alpha,
        target_modules="all-linear",
        exclude_modules=excluded,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(_plain_model(folder), config)
    parameters = {
        name.removeprefix("base_model.model.").replace(".default.", "."): parameter
        for name, parameter in adapted.named_parameters()
        if ".lora_" in name
    }
    if parameters.keys() != matrices.keys():
        raise ValueError(f"adapters differ: {sorted(parameters.keys() ^ matrices.keys())[:4]}")
    for name, parameter in parameters.items():
        parameter.copy_(matrices[name])
    merged: dict[str, Tensor] = adapted.merge_and_unload().state_dict()
    return merged


@torch.no_grad()
def _saved(folder: Path, scratch: Path) -> Answer:
    """Is the exported folder, read back by plain transformers, the model in memory, with weights that moved?"""
    model = load_model(folder)
    torch.manual_seed(2)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.01)
    trained = copy.deepcopy(model.state_dict())
    save_model(model, trained, scratch / "trained", tokenizer_from=folder)
    ends = [int(load_tokenizer(folder).eos_token_id)]
    export_model(scratch / "trained", scratch / "result", base=folder, end_token_ids=ends)
    model.set_attn_implementation("eager")
    problem = compare(scratch / "result", Expected(tensors={}, logits=last_logits(model).tolist(), tolerance=TOLERANCE))
    if problem is not None:
        return {"is": "wrong", "why": problem}
    loaded = AutoModelForCausalLM.from_pretrained(scratch / "result", dtype=torch.float32).state_dict()
    same = loaded.keys() == trained.keys() and all(digest_of(loaded[n]) == digest_of(t) for n, t in trained.items())
    return {"is": "equal" if same else "wrong", "why": f"{len(trained)} tensors, bit for bit"}


def _furthest(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    if ours.keys() != theirs.keys():
        raise ValueError(f"names differ: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    return max(_apart(ours[name], tensor) for name, tensor in theirs.items() if tensor.is_floating_point())


def _apart(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    size = float(expected.double().norm())
    return float((found.double() - expected.double()).norm()) / (size or 1.0)
