"""Muon steps along orthogonalised momentum."""

import pytest
import torch
from torch import nn

from foresight.training.muon import Muon, orthogonalise, split_parameters


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4), (3, 6, 12)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_a_step_of_equal_size_whatever_the_gradient() -> None:
    sizes = []
    for scale in (1e-4, 1e4):
        weight = nn.Parameter(torch.zeros(32, 64))
        optimizer = Muon([weight], torch.tensor(0.01))
        weight.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * scale
        optimizer.step()
        sizes.append(weight.detach().square().mean().sqrt())
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0.02, atol=0)
    assert 0.001 < sizes[0] < 0.003


def test_solves_a_linear_regression_with_convolution_shaped_weights() -> None:
    torch.manual_seed(0)
    wanted, inputs = torch.randn(6, 2, 3), torch.randn(256, 6)
    weight = nn.Parameter(torch.zeros(6, 2, 3))
    rate = torch.tensor(0.0)
    optimizer = Muon([weight], rate)
    for step in range(200):
        rate.fill_(0.2 * (1 - step / 200))
        loss = (inputs @ (weight - wanted).flatten(1)).square().mean()
        weight.grad = torch.autograd.grad(loss, weight)[0]
        optimizer.step()
    assert (weight - wanted).abs().max() < 0.1


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        Muon([nn.Parameter(torch.zeros(5))], torch.tensor(0.1))


def test_split_gives_hidden_matrices_to_muon_and_the_rest_to_adamw() -> None:
    module = nn.ModuleDict({"first": nn.Linear(2, 3), "hidden": nn.Linear(3, 3), "norm": nn.LayerNorm(3)})
    matrices, rest = split_parameters(module, ("first",))
    assert [weight is module["hidden"].weight for weight in matrices] == [True]
    assert len(rest) == 5
