"""The cross-entropy that is compiled on a CPU, against torch's own."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from toolkit.training.cpu_cross_entropy import summed_cross_entropy
from toolkit.training.loss import IGNORE_INDEX


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("ignored", [slice(0, 0), slice(0, None, 3), slice(None)], ids=["none", "a third", "all"])
def test_it_is_the_cross_entropy_with_its_gradient(dtype: torch.dtype, tolerance: float, ignored: slice) -> None:
    torch.manual_seed(0)
    logits = (20 * torch.randn(30, 257)).to(dtype).requires_grad_()
    targets = torch.randint(257, (30,))
    targets[ignored] = IGNORE_INDEX
    exact = logits.detach().double().requires_grad_()
    expected = cross_entropy(exact, targets, reduction="sum")
    (slope,) = torch.autograd.grad(expected, exact)
    found = summed_cross_entropy(logits, targets)
    (3 * found).backward()
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits.grad, (3 * slope).to(dtype), rtol=tolerance, atol=tolerance)
