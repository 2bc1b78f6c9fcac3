"""Token entropy and NLL against torch.distributions in float64, by hand, and under relations that must hold."""

import math

import pytest
import torch

from tests import reference
from wmss.core import entropy as entropy_module
from wmss.core.entropy import entropy_of_logits_, token_entropy


def make(rows=45, vocabulary=67, width=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    head = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    return hidden, head, bias, labels


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("chunk_size", [1, 44, 45, None])
def test_equals_categorical(dtype, tolerance, chunk_size):
    hidden, head, bias, labels = make()
    logits = hidden @ head.T + bias
    labels[:9] = logits.argmax(dim=1)[:9]
    labels[3] = -100
    statistics = token_entropy(hidden.to(dtype), head.to(dtype), labels, bias=bias.to(dtype), chunk_size=chunk_size)
    assert {column.dtype for column in statistics} == {dtype}
    entropy, nll, logsumexp, top1 = statistics
    torch.testing.assert_close(logsumexp.double(), logits.logsumexp(dim=1), rtol=0, atol=tolerance)
    torch.testing.assert_close(entropy.double(), reference.entropy(logits), rtol=0, atol=tolerance)
    expected = torch.nn.functional.cross_entropy(logits, labels.clamp(min=0), reduction="none")
    kept = labels >= 0
    torch.testing.assert_close(nll[kept].double(), expected[kept], rtol=0, atol=tolerance)
    assert nll[3].isnan()
    assert top1[3].isnan()
    assert torch.equal(top1[kept] == 1, logits.argmax(dim=1)[kept] == labels[kept])
    assert 0 < top1[kept].sum() < kept.sum()


def test_low_precision_inputs_are_computed_in_float32():
    hidden, head, _, _ = make()
    entropy, nll, _, top1 = token_entropy(hidden.bfloat16(), head.bfloat16())
    truth = reference.entropy(hidden.bfloat16().double() @ head.bfloat16().double().T)
    assert entropy.dtype == torch.float32
    assert nll is None and top1 is None
    torch.testing.assert_close(entropy.double(), truth, rtol=0, atol=5e-6)


def test_bounds_and_shift():
    uniform = torch.zeros(2, 8)
    assert torch.allclose(entropy_of_logits_(uniform, None)[0], torch.tensor(math.log(8)))
    sharp = torch.tensor([[1e4, 0.0, -1e4]])
    assert float(entropy_of_logits_(sharp, None)[0]) == 0.0
    logits = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    shifted = entropy_of_logits_(logits + 123.0, None)[0]
    torch.testing.assert_close(shifted, entropy_of_logits_(logits.clone(), None)[0], rtol=0, atol=1e-12)


def test_padded_vocabulary_entries_do_not_count():
    logits = torch.tensor([[1.0, 2.0, -torch.inf]])
    padded = entropy_of_logits_(logits.clone(), torch.tensor([0]))
    expected = entropy_of_logits_(logits[:, :2].clone(), torch.tensor([0]))
    assert all(torch.equal(one, other) for one, other in zip(padded, expected, strict=True))


def test_top1_is_one_wherever_no_token_is_likelier():
    logits = torch.tensor([[1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [1.0, 2.0, 2.0]])
    assert entropy_of_logits_(logits, torch.tensor([0, 1, 2])).top1.tolist() == [0.0, 1.0, 1.0]


def test_blocks_of_rows_do_not_show(monkeypatch):
    hidden, head, bias, labels = make()
    whole = token_entropy(hidden, head, labels, bias=bias)
    monkeypatch.setattr(entropy_module, "_CPU_BLOCK_LOGITS", 7 * head.shape[0])
    for blocked, expected in zip(token_entropy(hidden, head, labels, bias=bias), whole, strict=True):
        torch.testing.assert_close(blocked, expected, rtol=0, atol=1e-12)


def test_no_rows_give_empty_columns():
    statistics = token_entropy(torch.zeros(0, 3), torch.zeros(5, 3), torch.zeros(0, dtype=torch.int64))
    assert [column.shape for column in statistics] == [(0,)] * 4


def test_refusals():
    hidden, head, _, labels = make()
    with pytest.raises(ValueError, match=r"hidden and head: expected \[N, D\] and \[V, D\]"):
        token_entropy(hidden, head[:, :5])
    with pytest.raises(ValueError, match=r"bias: expected \[67\], got \[1\]"):
        token_entropy(hidden, head, bias=torch.zeros(1))
    with pytest.raises(ValueError, match=r"labels: expected \[45\]"):
        token_entropy(hidden, head, labels[:4])
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 67\)"):
        token_entropy(hidden, head, labels + 67)
