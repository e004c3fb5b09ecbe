"""Cross-entropy in chunks against all logits at once and autograd."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from artkv.models.opt.answers import CHUNK_TOKENS, answer_cross_entropy, answer_log_probabilities

WIDTH, VOCABULARY = 24, 1000


def inputs(tokens: int, dtype: torch.dtype) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
    head.weight.data = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype)
    hidden_AD = torch.randn(tokens, WIDTH, generator=generator).to(dtype).requires_grad_()
    ids_A = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    return hidden_AD, head, ids_A, torch.randint(0, 3, (tokens,), generator=generator).float()


def reference(hidden_AD: Tensor, head: nn.Linear, ids_A: Tensor, weight_A: Tensor) -> Tensor:
    logits_AV = head(hidden_AD)
    logits_AV = logits_AV.to(torch.promote_types(logits_AV.dtype, torch.float32))
    return (cross_entropy(logits_AV, ids_A, reduction="none") * weight_A).sum()


# Seen: fp64 2e-16, fp32 4e-7, bf16 4e-3 (a bf16 gradient is rounded once more when it is scaled).
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 8e-3)]
)
@pytest.mark.parametrize("tokens", [1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 3 * CHUNK_TOKENS - 5])
def test_loss_and_gradient(tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    hidden_AD, head, ids_A, weight_A = inputs(tokens, dtype)
    results = []
    for function in (reference, answer_cross_entropy):
        loss = function(hidden_AD, head, ids_A, weight_A)
        (gradient_AD,) = torch.autograd.grad(loss * 0.37, hidden_AD)
        assert gradient_AD.dtype == dtype
        results.append((loss.detach(), gradient_AD.double()))
    (expected, expected_gradient), (loss, gradient) = results
    assert loss.dtype == expected.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(loss, expected, rtol=min(tolerance, 2e-6), atol=0)
    assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()


class LargestVocabularyTensor(TorchDispatchMode):
    """The most rows of a tensor as wide as the vocabulary that any operation makes."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.dim() == 2 and leaf.shape[1] == VOCABULARY:
                self.rows = max(self.rows, leaf.shape[0])
        return result


def test_no_more_logits_than_a_chunk_at_a_time() -> None:
    hidden_AD, *others = inputs(5 * CHUNK_TOKENS, torch.float32)
    with LargestVocabularyTensor() as largest:
        answer_cross_entropy(hidden_AD, *others).backward()
    assert largest.rows == CHUNK_TOKENS


def test_without_gradients_and_without_tokens() -> None:
    hidden_AD, head, ids_A, weight_A = inputs(7, torch.float32)
    with torch.no_grad():
        loss = answer_cross_entropy(hidden_AD, head, ids_A, weight_A)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference(hidden_AD, head, ids_A, weight_A).detach())
    nothing = answer_cross_entropy(hidden_AD[:0], head, ids_A[:0], weight_A[:0])
    nothing.backward()
    assert nothing == 0
    assert not hidden_AD.grad.any()


def test_a_head_that_trains_is_refused() -> None:
    hidden_AD, head, ids_A, weight_A = inputs(3, torch.float32)
    head.requires_grad_()
    with pytest.raises(ValueError, match="must be frozen"):
        answer_cross_entropy(hidden_AD, head, ids_A, weight_A)
    with pytest.raises(ValueError, match="without bias"):
        answer_cross_entropy(hidden_AD, nn.Linear(WIDTH, VOCABULARY).requires_grad_(False), ids_A, weight_A)


# Beside the reference in fp64, of which bfloat16's logits would be up to 6e-2 away.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)]
)
def test_log_probabilities_are_read_at_each_tokens_own_column(dtype: torch.dtype, tolerance: float) -> None:
    columns = 2 * CHUNK_TOKENS + 7
    hidden_CD, head, _, _ = inputs(columns, dtype)
    generator = torch.Generator().manual_seed(3)
    answers = 10 * CHUNK_TOKENS
    places_A = torch.randint(0, columns, (answers,), generator=generator)  # unsorted, and some of them twice
    ids_A = torch.randint(0, VOCABULARY, (answers,), generator=generator)
    places_A[:2], places_A[2:4] = 0, columns - 1
    with torch.no_grad():
        log_p_A = answer_log_probabilities(hidden_CD, head, places_A, ids_A)
        logits_AO = (hidden_CD.double() @ head.weight.double().T)[places_A]
    assert log_p_A.dtype == torch.promote_types(dtype, torch.float32)
    expected_A = -cross_entropy(logits_AO, ids_A, reduction="none")
    torch.testing.assert_close(log_p_A.double(), expected_A, rtol=0, atol=tolerance)


@torch.no_grad()
def test_likely_tokens_that_bfloat16_takes_for_one_are_told_apart() -> None:
    """Their logits, from 23 on, are 0.002 apart, where bfloat16's steps are an eighth."""
    hidden_CD = torch.ones(1, WIDTH, dtype=torch.bfloat16)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
    head.weight.data = torch.ones(VOCABULARY, WIDTH, dtype=torch.bfloat16)
    head.weight.data[:, 0] = 0
    head.weight.data[:8, 0] = torch.arange(8) / 512
    assert len(head(hidden_CD)[0, :8].unique()) == 1
    log_p_A = answer_log_probabilities(hidden_CD, head, torch.zeros(8, dtype=torch.int64), torch.arange(8))
    torch.testing.assert_close(log_p_A.diff(), torch.full((7,), 1 / 512), rtol=0, atol=1e-5)
