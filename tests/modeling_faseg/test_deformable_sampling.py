"""The forms of deformable sampling against each other: values and gradients, at borders, on maps of one pixel."""

import pytest
import torch

from modeling_faseg import deformable_choice
from modeling_faseg.deformable_attention import FASegMultiScaleDeformableAttention
from modeling_faseg.deformable_sampling import sample_by_gather, sample_by_grid, sample_maps


SHAPES = {
    "several levels": [(3, 5), (6, 10), (12, 20)],
    "one pixel": [(1, 1), (1, 7), (9, 1)],
    "one level": [(4, 6)],
}


def random_case(shapes, spread=1.6, batch_size=2, num_heads=2, head_dim=4, num_points=3):
    """Maps, locations of which a part lies outside, and weights; locations in the middle of a pixel and on borders."""
    num_tokens = sum(height * width for height, width in shapes)
    value = torch.randn(batch_size, num_tokens, num_heads, head_dim)
    locations = (torch.rand(batch_size, num_tokens, num_heads, len(shapes), num_points, 2) - 0.5) * spread + 0.5
    weights = torch.randn(locations.shape[:-1])
    return value, locations, weights


def values_and_gradients(function, shapes, *tensors):
    value, locations, weights = (tensor.clone().requires_grad_() for tensor in tensors)
    output = function(value, shapes, locations, weights)
    wanted = torch.cos(torch.arange(output.numel(), dtype=torch.float32)).view(output.shape)
    return [output, *torch.autograd.grad(output, (value, locations, weights), wanted)]


@pytest.mark.parametrize("spread", [1.0, 1.6, 50.0])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_gathering_equals_grid_sample(shapes, spread):
    case = random_case(shapes, spread)
    expected = values_and_gradients(sample_by_grid, shapes, *case)
    found = values_and_gradients(sample_maps, shapes, *case)
    assert "_GatherWithGradient" in type(found[0].grad_fn).__name__
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.125, 1.125, -1e6, 1e6])
def test_corners_and_the_far_outside(share):
    """An image's corner lies between one pixel and three zeros; half a pixel further out everything is zero."""
    shapes = [(4, 4)]
    value, locations, weights = random_case(shapes)
    locations = torch.full_like(locations, share)
    with torch.no_grad():
        found = sample_maps(value, shapes, locations, weights)
        torch.testing.assert_close(found, sample_by_grid(value, shapes, locations, weights))
    if 0 <= share <= 1:
        pixel = value[:, 0 if share == 0 else -1] / 4
        expected = weights.sum((3, 4))[..., None] * pixel[:, None]
        torch.testing.assert_close(found, expected.flatten(2))
    else:
        assert not found.any()


def test_inference_and_training_gather_alike():
    shapes = SHAPES["several levels"]
    value, locations, weights = random_case(shapes)
    with torch.no_grad():
        expected = sample_by_gather(value, shapes, locations, weights)
        assert sample_maps(value, shapes, locations, weights).equal(expected)
    assert sample_maps(value.requires_grad_(), shapes, locations, weights).equal(expected)


def test_only_wanted_gradients_are_computed():
    shapes = SHAPES["several levels"]
    value, locations, weights = random_case(shapes)
    weights.requires_grad_()
    sample_maps(value, shapes, locations, weights).sum().backward()
    assert value.grad is None and locations.grad is None
    expected = weights.grad
    weights = weights.detach().requires_grad_()
    sample_by_grid(value, shapes, locations, weights).sum().backward()
    torch.testing.assert_close(expected, weights.grad)


def test_training_keeps_no_samples():
    """Backward needs the arguments alone: 4 * levels * P times the output would otherwise be held."""
    shapes = SHAPES["several levels"]
    case = [tensor.requires_grad_() for tensor in random_case(shapes)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        sample_maps(case[0], shapes, *case[1:])
    assert sum(tensor.numel() for tensor in kept) == sum(tensor.numel() for tensor in case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values_are_sampled_in_float32(dtype):
    shapes = SHAPES["several levels"]
    value, locations, weights = random_case(shapes)
    sampling = FASegMultiScaleDeformableAttention()
    found = sampling(value.to(dtype), torch.tensor(shapes), shapes, torch.zeros(3), locations, weights, 64)
    assert found.dtype == dtype
    expected = sample_by_grid(value.to(dtype).float(), shapes, locations, weights)
    assert found.equal(expected.to(dtype)) or (found - expected).abs().max() < 2e-2
    leaf = value.to(dtype).requires_grad_()
    sampling(leaf, torch.tensor(shapes), shapes, torch.zeros(3), locations, weights, 64).sum().backward()
    assert leaf.grad.dtype == dtype and leaf.grad.any()


def test_exported_and_compiled_training_graphs_use_grid_sample(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not deformable_choice.gathers(torch.device("cpu"), needs_gradient=False)
    monkeypatch.undo()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert deformable_choice.gathers(torch.device("cpu"), needs_gradient=False)
    assert not deformable_choice.gathers(torch.device("cpu"), needs_gradient=True)
    assert not deformable_choice.gathers(torch.device("cuda"), needs_gradient=False)
