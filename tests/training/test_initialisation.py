"""One pass centres every convolution on its own output."""

import torch
from torch import nn

from foresight.training.initialisation import centre_convolutions


def test_outputs_get_the_deviation_asked_for_and_no_mean() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv3d(8, 4, 1))
    # A grey world: colour is a small deviation from a large common mean.
    video = 5.0 + 0.1 * torch.randn(4, 3, 3, 8, 8)
    with centre_convolutions(network, lambda name: 0.3 if name == "2" else 1.0):
        network(video)
    for depth, deviation in ((1, 1.0), (3, 0.3)):
        output = network[:depth](video)
        torch.testing.assert_close(output.mean((0, 2, 3, 4)), torch.zeros(output.shape[1]), atol=1e-3, rtol=0)
        torch.testing.assert_close(
            output.std((0, 2, 3, 4)), torch.full((output.shape[1],), deviation), atol=0.01, rtol=0
        )


def test_nothing_changes_outside_of_the_block() -> None:
    layer = nn.Conv3d(1, 1, 1)
    with centre_convolutions(layer, lambda _: 1.0):
        layer(torch.randn(2, 1, 2, 4, 4))
    weight = layer.weight.detach().clone()
    layer(torch.randn(2, 1, 2, 4, 4) * 9)
    assert torch.equal(layer.weight, weight)
