"""Deformable sampling on a GPU: Triton's form against torch's, in values, gradients, time and memory."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from command_runs import run_pytest
from modeling_faseg.deformable_choice import sampling_form
from modeling_faseg.deformable_sampling import sample_maps


pytestmark = pytest.mark.gpu

ROUNDS = 10
SIZES = {"512x512": (512, 512), "1024x2048": (1024, 2048)}


def test_every_case_of_the_interpreter_on_the_gpu():
    run_pytest(Path(__file__).parents[1] / "modeling_faseg" / "sampling_on_triton.py", TRITON_INTERPRET="0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_what_a_gpu_takes(dtype):
    choice = sampling_form(torch.device("cuda"), dtype, needs_gradient=True, num_levels=3)
    assert choice.form == "triton", choice.reason


def encoder_case(height, width, dtype):
    """What a layer of the pixel decoder samples: 3 levels, 8 heads of 32 channels, 4 points near each token."""
    shapes = [(height // stride, width // stride) for stride in (32, 16, 8)]
    centres = [
        torch.stack(torch.meshgrid((torch.arange(w) + 0.5) / w, (torch.arange(h) + 0.5) / h, indexing="xy"), -1)
        for h, w in shapes
    ]
    tokens = torch.cat([each.flatten(0, 1) for each in centres]).cuda()
    offsets = torch.randn(1, len(tokens), 8, 3, 4, 2, device="cuda") * 0.02
    locations = tokens[None, :, None, None, None] + offsets
    value = torch.randn(1, len(tokens), 8, 32, device="cuda").to(dtype)
    weights = torch.randn(1, len(tokens), 8, 12, device="cuda").softmax(-1).unflatten(-1, (3, 4)).to(dtype)
    return shapes, [value, locations, weights]


def run(form, shapes, tensors):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = sample_maps(leaves[0], shapes, leaves[1], leaves[2], form)
    return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]


def cost(function):
    """Milliseconds and MiB on top of what was held, after a round that does not count."""
    function()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(ROUNDS):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / ROUNDS, (torch.cuda.max_memory_allocated() - held) / 2**20


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_values_gradients_time_and_memory(size, dtype, tolerance, capsys):
    """Float32: sums in another order, of up to hundreds of gradients, within 1e-4 of the largest. Bfloat16: one
    rounding of each result, and the plain form's weights likewise."""
    shapes, tensors = encoder_case(*SIZES[size], dtype)
    costs = {}
    results = {}
    for form in ("triton", "grid"):
        results[form] = run(form, shapes, tensors)
        costs[form] = cost(partial(run, form, shapes, tensors))
    for ours, theirs in zip(results["triton"], results["grid"], strict=True):
        scale = theirs.float().abs().max()
        assert (ours.float() - theirs.float()).abs().max() < tolerance * scale
    with capsys.disabled():
        for form, (milliseconds, mebibytes) in costs.items():
            print(f"\n{size} {dtype} {form}: {milliseconds:.2f} ms and {mebibytes:.0f} MiB, both passes", end="")
    assert costs["triton"][1] < costs["grid"][1]


def test_deterministic_gradients_are_the_same_every_time():
    shapes, tensors = encoder_case(256, 256, torch.float32)
    pytest.importorskip("modeling_faseg.deformable_triton").trial.cache_clear()  # the first call is one of these
    torch.use_deterministic_algorithms(True)
    try:
        first, second = run(None, shapes, tensors), run(None, shapes, tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(ours.equal(theirs) for ours, theirs in zip(first, second))
    for ours, theirs in zip(first, run("grid", shapes, tensors)):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_the_first_call_may_be_checkpointed():
    shapes, tensors = encoder_case(64, 64, torch.float32)
    pytest.importorskip("modeling_faseg.deformable_triton").trial.cache_clear()
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = checkpoint(sample_maps, leaves[0], shapes, *leaves[1:], use_reentrant=False)
    found = torch.autograd.grad(output.sin().sum(), leaves)
    assert sampling_form(tensors[0].device, torch.float32, True, len(shapes)).form == "triton"
    output = sample_maps(leaves[0], shapes, *leaves[1:], "grid")
    for ours, theirs in zip(found, torch.autograd.grad(output.sin().sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_compiled(capsys):
    shapes, tensors = encoder_case(256, 256, torch.float32)
    compiled = torch.compile(sample_maps, fullgraph=True)
    with torch.no_grad():
        expected = sample_maps(tensors[0], shapes, *tensors[1:], "triton")
        torch.testing.assert_close(compiled(tensors[0], shapes, *tensors[1:]), expected)
