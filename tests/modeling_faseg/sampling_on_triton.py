"""Triton's form of deformable sampling against the plain one, as `test_deformable_triton.py` runs it: on a GPU, or in
Triton's interpreter, which must be asked for before Triton is imported: `TRITON_INTERPRET=1 pytest THIS_FILE`.

Float32 agrees to 1e-5 (sums in another order). Half precision is compared with the plain form on the same rounded
maps, of which it differs by one rounding of the result: 2^-8 of it for bfloat16, 2^-11 for float16.
"""

import importlib.util
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_batch, tiny_model
from torch import library
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from modeling_faseg import deformable_choice, deformable_triton
from modeling_faseg.deformable_attention import set_sampling_form
from modeling_faseg.deformable_sampling import sample_by_grid, sample_maps
from modeling_faseg.deformable_triton import sample_by_triton


INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETS else "cuda")
SHAPES = [(3, 5), (1, 4), (2, 1), (4, 3)]


@pytest.fixture(autouse=True)
def default_mode():
    yield
    torch.use_deterministic_algorithms(False)


def case(shapes, batch_size=1, tokens=3, heads=2, dim=8, points=2, spread=1.6, dtype=torch.float32):
    """Maps, locations of which a part lies outside, and weights."""
    length = sum(height * width for height, width in shapes)
    value = torch.randn(batch_size, length, heads, dim, device=DEVICE).to(dtype)
    locations = (torch.rand(batch_size, tokens, heads, len(shapes), points, 2, device=DEVICE) - 0.5) * spread + 0.5
    return value, locations, torch.randn(locations.shape[:-1], device=DEVICE).to(dtype)


def values_and_gradients(sample, shapes, *tensors):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = sample(leaves[0], shapes, leaves[1], leaves[2])
    wanted = torch.cos(torch.arange(output.numel(), device=DEVICE)).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, wanted)]


def plain(value, shapes, locations, weights):
    return sample_by_grid(value.float(), shapes, locations, weights.float()).to(value.dtype)


def check(shapes, *tensors, atol=1e-5, rtol=1e-5):
    expected = values_and_gradients(plain, shapes, *tensors)
    for ours, theirs in zip(values_and_gradients(sample_by_triton, shapes, *tensors), expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    ("levels", "batch_size", "heads", "dim", "points"),
    [(1, 1, 2, 8, 1), (2, 2, 2, 20, 3), (3, 1, 1, 64, 4), (4, 2, 1, 32, 8)],
)
def test_equals_the_plain_form(levels, batch_size, heads, dim, points, deterministic):
    torch.use_deterministic_algorithms(deterministic)
    tensors = case(SHAPES[:levels], batch_size, heads=heads, dim=dim, points=points)
    if deterministic and DEVICE.type == "cuda":  # grid_sample has no deterministic backward pass there
        found = values_and_gradients(sample_by_triton, SHAPES[:levels], *tensors)
        torch.use_deterministic_algorithms(False)
        for ours, theirs in zip(found, values_and_gradients(plain, SHAPES[:levels], *tensors), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        return
    check(SHAPES[:levels], *tensors)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4),
    dim=st.integers(1, 12), points=st.integers(1, 3), tokens=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_equals_the_plain_form(shapes, dim, points, tokens, seed):
    torch.manual_seed(seed)
    check(shapes, *case(shapes, tokens=tokens, heads=1, dim=dim, points=points, spread=3.0))


def test_borders_corners_and_pixel_centres():
    """Shares of a side of 4 pixels that lie on corners, on borders of pixels, at centres, half a pixel outside and far
    away. The gradients of locations have kinks at the centres, where both forms must take the same side."""
    shares = torch.tensor([0.0, 1.0, 0.125, 0.875, 0.25, -0.125, 1.125, -0.126, 1.126, 0.5, -1e9, 1e9], device=DEVICE)
    locations = torch.stack(torch.meshgrid(shares, shares, indexing="ij"), -1).view(1, -1, 1, 1, 1, 2)
    value = torch.randn(1, 16, 1, 4, device=DEVICE)
    check([(4, 4)], value, locations, torch.randn(locations.shape[:-1], device=DEVICE))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)], ids=str)
def test_half_precision(dtype, tolerance):
    check(SHAPES[:3], *case(SHAPES[:3], dtype=dtype), atol=tolerance, rtol=tolerance)


def test_any_strides():
    value, locations, weights = case(SHAPES[:2])
    strided = [tensor.transpose(1, -1).contiguous().transpose(1, -1) for tensor in (value, locations, weights)]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert sample_by_triton(strided[0], SHAPES[:2], *strided[1:]).equal(
        sample_by_triton(value, SHAPES[:2], locations, weights)
    )
    check(SHAPES[:2], *strided)


@pytest.mark.parametrize("deterministic", [False, True])
def test_no_tokens(deterministic):
    torch.use_deterministic_algorithms(deterministic)
    found = values_and_gradients(sample_by_triton, SHAPES[:2], *case(SHAPES[:2], tokens=0))
    assert found[0].shape == (1, 0, 16) and not found[1].any()


def test_gradcheck_in_float64():
    shapes = [(2, 3), (1, 2)]
    value, locations, weights = (each.double().requires_grad_() for each in case(shapes, 1, 1, 1, 2, 1, spread=1.0))
    assert torch.autograd.gradcheck(
        lambda *each: sample_by_triton(each[0], shapes, *each[1:]), (value, locations, weights)
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_what_is_not_finite_shows(deterministic):
    torch.use_deterministic_algorithms(deterministic)
    value, locations, weights = case(SHAPES[:2])
    locations[0, 1, 0] = torch.nan
    output = sample_by_triton(value, SHAPES[:2], locations, weights).view(3, 2, 8)
    assert output[1, 0].isnan().all() and output.isnan().sum() == 8
    for bad in (torch.inf, torch.nan):
        value, locations, weights = (each.requires_grad_() for each in case(SHAPES[:2], spread=0.5))
        sample_by_triton(value, SHAPES[:2], locations, weights).backward(torch.full((1, 3, 16), bad, device=DEVICE))
        assert not value.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1e4])
def test_deterministic_sums_hold_their_digits(scale):
    """All tokens read the same few pixels, at any scale of the gradient; the order of tokens does not matter."""
    torch.use_deterministic_algorithms(True)
    value, locations, weights = case([(2, 2)], tokens=40, spread=0.3)
    wanted = torch.randn(1, 40, 16, device=DEVICE) * scale
    results = []
    for order in (torch.arange(40), torch.randperm(40)):
        leaf = value.clone().requires_grad_()
        sample_by_triton(leaf, [(2, 2)], locations[:, order], weights[:, order]).backward(wanted[:, order])
        results.append(leaf.grad)
    assert results[0].equal(results[1])
    torch.use_deterministic_algorithms(False)
    leaf = value.double().requires_grad_()
    sample_by_grid(leaf, [(2, 2)], locations.double(), weights.double()).backward(wanted.double())
    torch.testing.assert_close(results[0].double(), leaf.grad, atol=1e-5 * scale, rtol=1e-5)


def test_deterministic_sums_have_room_for_all_tokens_on_one_pixel():
    torch.use_deterministic_algorithms(True)
    value = torch.zeros(1, 1, 1, 2, device=DEVICE, requires_grad=True)
    locations, weights = torch.full((1, 48, 1, 1, 2, 2), 0.5, device=DEVICE), torch.ones(1, 48, 1, 1, 2, device=DEVICE)
    sample_by_triton(value, [(1, 1)], locations, weights).backward(torch.full((1, 48, 2), -1.0, device=DEVICE))
    assert value.grad.flatten().tolist() == [-96.0, -96.0]


def test_checkpointing_and_autocast_change_nothing():
    value, locations, weights = case(SHAPES[:2], dtype=torch.bfloat16)

    def recomputed(*tensors):
        return checkpoint(sample_by_triton, *tensors, use_reentrant=False)

    expected = values_and_gradients(sample_by_triton, SHAPES[:2], value, locations, weights)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        found = values_and_gradients(recomputed, SHAPES[:2], value, locations, weights)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-2 if DEVICE.type == "cuda" else 0, rtol=0)


def test_operators_are_registered_as_torch_wants_them():
    value, locations, weights = case(SHAPES[:2])
    leaves = [value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()]
    # Strides that are not those of a contiguous tensor must not show in what the compiler expects.
    strided = [leaf.transpose(1, -1).contiguous().transpose(1, -1) for leaf in leaves]
    library.opcheck(deformable_triton._sample, (leaves[0], [3, 5, 1, 4], *leaves[1:]))
    only = ("test_schema", "test_faketensor")
    library.opcheck(deformable_triton._sample, (strided[0], [3, 5, 1, 4], *strided[1:]), test_utils=only)
    gradient = torch.randn(1, 3, 16, device=DEVICE)
    arguments = (gradient, value.detach(), [3, 5, 1, 4], locations.detach(), weights.detach(), True)
    library.opcheck(deformable_triton._sample_backward, arguments)


def test_compiled_without_a_break():
    shapes = SHAPES[:2]
    tensors = case(shapes)

    def sample(value, shapes, locations, weights):
        return sample_maps(value * 1.5, shapes, locations, weights, "triton") + 1

    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    expected = values_and_gradients(sample, shapes, *tensors)
    for ours, theirs in zip(values_and_gradients(compiled, shapes, *tensors), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_second_copy_of_the_file_has_operators_of_its_own():
    """As a model does that is loaded as remote code beside the installed packages; and a copy that is read again."""
    value, locations, weights = case(SHAPES[:1])
    expected = sample_by_triton(value, SHAPES[:1], locations, weights)
    spec = importlib.util.spec_from_file_location(
        "transformers_modules.a_b.deformable_triton", deformable_triton.__file__
    )
    copies = [importlib.util.module_from_spec(spec) for _ in range(2)]
    for copy in copies:
        spec.loader.exec_module(copy)
        assert copy.sample_by_triton(value, SHAPES[:1], locations, weights).equal(expected)
    for each in (*copies, deformable_triton):
        assert each.sample_by_triton(value, SHAPES[:1], locations, weights).equal(expected)


def test_whole_model_in_either_form():
    batch = {
        name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in tiny_batch((32, 32)).items()
    }
    model = tiny_model().to(DEVICE)
    found = {}
    for form in ("triton", "grid"):
        set_sampling_form(model, form)
        output = model(batch["pixel_values"], output_auxiliary_logits=True)
        model.zero_grad()
        output.masks_queries_logits.sin().mean().backward()
        sampled = model.model.pixel_decoder.layers[0].self_attn
        found[form] = [
            output.masks_queries_logits,
            sampled.sampling_offsets.weight.grad,
            sampled.value_proj.weight.grad,
        ]
    for ours, theirs in zip(found["triton"], found["grid"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_the_trial_finds_wrong_values(monkeypatch):
    assert deformable_triton.trial(DEVICE) is None
    assert deformable_triton._error_of_small_case(DEVICE) < 1e-5
    monkeypatch.setattr(
        deformable_triton, "sample_by_triton", lambda value, *rest: sample_by_triton(value + 0.01, *rest)
    )
    assert deformable_triton._error_of_small_case(DEVICE) > 1e-3


@pytest.mark.parametrize("strict", [False, True])
def test_the_trial_does_not_depend_on_the_modes_of_its_first_caller(strict):
    def refuse(_):
        raise AssertionError("nothing that was saved here may be asked for")

    torch.use_deterministic_algorithms(strict)
    with torch.inference_mode(), torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert deformable_triton._error_apart(DEVICE) < 1e-5
    with FakeTensorMode(), saved_tensors_hooks(lambda _: None, refuse):  # as an estimate of memory runs it
        assert deformable_triton._error_apart(DEVICE) < 1e-5
    assert torch.are_deterministic_algorithms_enabled() == strict


def test_the_trial_may_be_in_a_checkpointed_layer():
    """Once, in the forward pass alone: its answer is kept, and the recomputation saves as many tensors."""
    errors = []

    def layer(value):
        if not errors:
            errors.append(deformable_triton._error_apart(DEVICE))
        return value.sin().cos()

    value = torch.ones(2, device=DEVICE, requires_grad=True)
    checkpoint(layer, value, use_reentrant=False).sum().backward()
    expected = value.detach().clone().requires_grad_()
    expected.sin().cos().sum().backward()
    assert errors[0] < 1e-5 and value.grad.equal(expected.grad)


def test_the_chooser_takes_it_where_it_was_asked_for():
    dtype = torch.float32
    assert deformable_choice.sampling_form(DEVICE, dtype, True, 3, "triton").form == "triton"
    with pytest.raises(ValueError, match="up to 4 levels, not 5"):
        deformable_choice.sampling_form(DEVICE, dtype, True, 5, "triton")
    with pytest.raises(ValueError, match="not float64"):
        deformable_choice.sampling_form(DEVICE, torch.float64, True, 3, "triton")
