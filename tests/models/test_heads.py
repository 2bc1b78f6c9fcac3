"""How a model makes logits of its states: asked of the model, for families that scale, cap, or do something else."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.families.tiny import make_tiny, tiny_config
from wmss.errors import ModelError
from wmss.models.heads import PLAIN, HeadForm, check_output_head, head_form

FORMS = {
    "llama": PLAIN,
    "phi": PLAIN,
    "nemotron_h": PLAIN,
    "cohere": HeadForm(0.0625),
    "minicpm3": HeadForm(4.0),
    "gemma2": HeadForm(1.0, 30.0),
}


@pytest.mark.parametrize("model_type", sorted(FORMS))
def test_forms_of_families(model_type):
    """Found without weights, and the model is left as it was."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(model_type))
    head = model.get_output_embeddings()
    form, expected = head_form(model), FORMS[model_type]
    assert form.scale == pytest.approx(expected.scale, rel=1e-12)
    assert form.cap == (None if expected.cap is None else pytest.approx(expected.cap, rel=1e-6))
    assert model.get_output_embeddings() is head


@pytest.mark.parametrize(
    "change",
    [lambda z: z + 1, lambda z: z**3, lambda z: z.clamp(-2, 2), lambda z: z[..., :-3]],
    ids=["shifted", "cubed", "clamped", "cut"],
)
def test_another_way_to_logits_is_refused(change, monkeypatch):
    model = make_tiny("llama")
    original = type(model).forward

    def forward(self, **options):
        output = original(self, **options)
        output.logits = change(output.logits)
        return output

    monkeypatch.setattr(type(model), "forward", forward)
    assert head_form(model) is None
    with pytest.raises(ModelError, match="model: LlamaForCausalLM makes its logits in another way") as caught:
        check_output_head(model, param="model")
    assert caught.value.param == "model"
