"""Triton's form of deformable sampling without a GPU: in Triton's interpreter, compiled for GPUs, and not at all."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from clean_process import run_clean
from command_runs import run_pytest
from modeling_faseg import deformable_choice, deformable_sampling
from modeling_faseg.deformable_attention import set_sampling_form


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Loads a saved model as remote code where `import triton` fails.
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch, transformers
folder, images, expected = sys.argv[1:]
Model = transformers.AutoModelForUniversalSegmentation
model = Model.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    found = model(torch.load(images)).masks_queries_logits
torch.testing.assert_close(found, torch.load(expected), atol=1e-5, rtol=1e-4)
choice = sys.modules[type(model).__module__.rpartition(".")[0] + ".deformable_choice"]
assert choice.sampling_form(torch.device("cuda"), torch.float32, True, 3) == ("grid", "Triton is not installed")
print("loaded")
"""
# Compiles both kernels for each architecture; needs no GPU, but Triton's own assembler.
COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from modeling_faseg import deformable_triton

cases = ((75, "fp16", 20, False), (80, "bf16", 8, True), (90, "fp32", 32, False))
for architecture, dtype, dim, deterministic in cases:
    constants = dict(
        HEADS=8, DIM=dim, LEVELS=3, POINTS=4, BLOCK_ROWS=32, BLOCK_DIM=triton.next_power_of_2(dim), SUM=tl.float32,
        DETERMINISTIC=deterministic,
    )
    types = dict(value=dtype, weights=dtype, output=dtype, gradient=dtype, weight_gradient=dtype, locations="fp32")
    types |= dict(location_gradient="fp32", units="fp32", value_gradient="i64" if deterministic else "fp32")
    for kernel in (deformable_triton._forward_kernel, deformable_triton._backward_kernel):
        signature, constexprs = {}, {}
        for index, name in enumerate(kernel.arg_names):
            signature[name] = "*" + types[name] if name in types else "constexpr" if name in constants else "i32"
            if name in constants:
                constexprs[index,] = constants[name]
        source = ASTSource(kernel, signature=signature, constexprs=constexprs)
        ptx = triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm["ptx"]
        assert ("add.u64" in ptx) == (deterministic and kernel is deformable_triton._backward_kernel)
print("compiled")
"""


@pytest.mark.system
@pytest.mark.timeout(900)
@needs_triton
def test_every_case_in_the_interpreter():
    run_pytest(Path(__file__).with_name("sampling_on_triton.py"), TRITON_INTERPRET="1")


@pytest.mark.system
@needs_triton
def test_kernels_compile_for_gpus(tmp_path):
    (tmp_path / "program.py").write_text(COMPILE)  # Triton reads the source of what it compiles
    places = {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, **places, "TRITON_INTERPRET": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.strip() == "compiled"


@pytest.mark.system
def test_saved_models_load_where_triton_is_missing(tmp_path):
    model, images = tiny_model(), tiny_batch()["pixel_values"]
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "deformable_triton.py").exists()
    torch.save(images, tmp_path / "images.pt")
    with torch.no_grad():
        torch.save(model(images).masks_queries_logits, tmp_path / "expected.pt")
    files = [str(tmp_path / name) for name in ("model", "images.pt", "expected.pt")]
    assert run_clean(WITHOUT_TRITON, files, tmp_path).strip() == "loaded"


def choice_of(device, dtype=torch.float32, needs_gradient=True, levels=3, form=None):
    return deformable_choice.sampling_form(device, dtype, needs_gradient, levels, form)


def test_what_is_chosen_where(monkeypatch):
    assert choice_of(CPU).form == "gather"
    assert choice_of(torch.device("mps")) == ("grid", "the only form on mps")
    obstacles = []
    monkeypatch.setattr(deformable_choice, "triton_obstacle", lambda device, levels: obstacles[-1])
    obstacles.append(None)
    assert choice_of(CUDA).form == choice_of(CUDA, torch.bfloat16, False).form == "triton"
    assert choice_of(CUDA, torch.float64).form == "grid"
    assert choice_of(CUDA, form="grid") == ("grid", "it was asked for")
    obstacles.append("no C compiler")
    assert choice_of(CUDA) == ("grid", "no C compiler")
    with pytest.raises(ValueError, match="by 'triton' cannot run here: no C compiler"):
        choice_of(CUDA, form="triton")
    with pytest.raises(ValueError, match="by 'gather' cannot run here: gathering needs a CPU"):
        choice_of(CUDA, form="gather")
    with pytest.raises(ValueError, match="form of deformable sampling 'cuda': choose one of grid, gather, triton"):
        choice_of(CUDA, form="cuda")


@pytest.mark.parametrize("form", [None, "triton", "gather", "grid"])
def test_exported_graphs_never_take_triton(monkeypatch, form):
    monkeypatch.setattr(deformable_choice, "triton_obstacle", lambda device, levels: None)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert choice_of(CUDA, form=form).form == choice_of(CPU, form=form).form == "grid"


def test_triton_is_not_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(deformable_choice, "is_triton_available", lambda: False)
    assert choice_of(CUDA) == ("grid", "Triton is not installed")


@torch.no_grad()
def test_a_model_samples_in_the_form_it_is_set_to(monkeypatch):
    model, images = tiny_model(), tiny_batch()["pixel_values"]
    expected = model(images).masks_queries_logits
    calls = []
    by_grid = deformable_sampling.sample_by_grid
    monkeypatch.setattr(deformable_sampling, "sample_by_grid", lambda *each: calls.append(1) or by_grid(*each))
    model(images)
    assert not calls
    set_sampling_form(model, "grid")
    torch.testing.assert_close(model(images).masks_queries_logits, expected, atol=1e-4, rtol=1e-4)
    assert len(calls) == len(model.model.pixel_decoder.layers)
    set_sampling_form(model, None)
    model(images)
    assert len(calls) == len(model.model.pixel_decoder.layers)
    with pytest.raises(ValueError, match="Linear has no deformable attention"):
        set_sampling_form(torch.nn.Linear(1, 1), "grid")
