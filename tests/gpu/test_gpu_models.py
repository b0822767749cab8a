"""Whole models on a GPU: the reference's numbers, half precision, mixed precision, and a run that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from golden_cases import (
    head_inputs,
    head_state_dict,
    indexed,
    load_case,
    normalized_batch,
    official_state_dict,
    tiny_config,
)
from modeling_faseg import FASegForUniversalSegmentation
from scripts.models.parameter_names import convert_state_dict


pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
CLASS_TOLERANCE, MASK_TOLERANCE = 1e-4, 3e-4  # as on a CPU


@pytest.fixture(autouse=True)
def float32_is_float32():
    """Without TF32, whose 10 bits of mantissa would hide mistakes."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def on_gpu(batch):
    def moved(value):
        if isinstance(value, list):
            return [moved(each) for each in value]
        return value.cuda() if torch.is_tensor(value) else value

    return {name: moved(value) for name, value in batch.items()}


@torch.no_grad()
def test_predictions_of_the_reference():
    tensors, meta = load_case(None, "full_r50narrow")
    config = tiny_config(meta)
    model = FASegForUniversalSegmentation(config)
    model.load_state_dict(convert_state_dict(official_state_dict(tensors), config))
    images = normalized_batch(indexed(tensors, "in/image_")).cuda()
    outputs = model.eval().cuda()(images, output_auxiliary_logits=True)
    earlier = [(each["class_queries_logits"], each["masks_queries_logits"]) for each in outputs.auxiliary_logits]
    found = [*earlier, (outputs.class_queries_logits, outputs.masks_queries_logits)]
    names = [*(f"aux{layer}." for layer in range(5)), ""]
    for (classes, masks), name in zip(found, names, strict=True):
        expected, expected_masks = tensors[f"out/{name}pred_logits"].float(), tensors[f"sub4/{name}pred_masks"].float()
        torch.testing.assert_close(classes.cpu(), expected, atol=CLASS_TOLERANCE, rtol=0)
        torch.testing.assert_close(masks[..., ::4, ::4].cpu(), expected_masks, atol=MASK_TOLERANCE, rtol=0)


@torch.no_grad()
def test_decoded_maps_of_the_reference():
    """Of the pixel decoder, whose deformable attention is the Triton kernel's, and of the decoder behind it."""
    tensors, meta = load_case(None, "head64_omega_zero_windows")
    model = FASegForUniversalSegmentation(tiny_config(meta)).eval()
    model.load_state_dict(head_state_dict(tensors, model.config), strict=False)
    head = model.cuda().model
    decoded = head.pixel_decoder([each.cuda() for each in head_inputs(tensors)])
    queries = head.transformer_decoder(
        decoded.feature_maps, decoded.positions, decoded.mask_features, output_all_masks=True
    )
    classes = model.class_predictor(queries.intermediate_states[-1])
    torch.testing.assert_close(classes.cpu(), tensors["out/pred_logits"].float(), atol=CLASS_TOLERANCE, rtol=0)
    masks = queries.masks_queries_logits[-1].cpu()
    torch.testing.assert_close(masks, tensors["out/pred_masks"].float(), atol=MASK_TOLERANCE, rtol=0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
@torch.no_grad()
def test_few_decisions_change_in_half_precision(dtype, bound):
    """As `test_reduced_precision.py` on a CPU: the share of pixels whose side of a mask's median changes."""
    images = torch.randn(4, 3, 128, 128)
    expected = tiny_model()(images).masks_queries_logits.flatten(2)
    threshold = expected.median(-1, keepdim=True).values
    with torch.autocast("cuda", dtype=dtype):
        autocast = tiny_model().cuda()(images.cuda()).masks_queries_logits
    for masks in (tiny_model().cuda().to(dtype)(images.cuda().to(dtype)).masks_queries_logits, autocast):
        changed = (masks.float().cpu().flatten(2) > threshold) != (expected > threshold)
        assert changed.float().mean() < bound


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_in_mixed_precision(dtype, tolerance, checkpointing):
    """The loss is the CPU's in float32 but for the rounding of activations; the weights move and stay finite."""
    torch.manual_seed(0)
    expected = tiny_model().train()(**tiny_batch()).loss.item()
    model = tiny_model().train().cuda()
    if checkpointing:
        model.gradient_checkpointing_enable()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.amp.GradScaler("cuda", init_scale=256.0)
    torch.manual_seed(0)
    with torch.autocast("cuda", dtype=dtype):
        loss = model(**on_gpu(tiny_batch())).loss
    # Points at which masks are compared are drawn at random, on each device others.
    assert loss.item() == pytest.approx(expected, rel=0.2 + tolerance)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    moved = sum(not ours.equal(theirs) for ours, theirs in zip(model.parameters(), before))
    assert moved > 0.9 * len(before)


@pytest.mark.timeout(900)
def test_killed_and_resumed(tmp_path):
    """A run of `train.py` on the GPU, killed after its first checkpoint, ends as the run that was never stopped.

    Convolutions and sums on a GPU may differ in their last digits from run to run: weights agree to 1e-3.
    """
    pytest.importorskip("datasets", reason="train.py reads its data through the package datasets")
    sys.path.insert(0, str(ROOT / "tests" / "scripts"))
    from safetensors.torch import load_file
    from tiny_folder import TINY_MODEL

    from scripts.data.synthetic_scenes import write_dataset
    from scripts.training.checkpointing import checkpoints

    write_dataset(tmp_path / "shapes", {"train": 7, "validation": 3}, shards=3)
    (tmp_path / "tiny.yaml").write_text(TINY_MODEL)

    def command(name, *flags):
        fixed = ["--dataset_name", tmp_path / "shapes", "--output_dir", tmp_path / name, "--max_train_steps", 20]
        argv = [sys.executable, ROOT / "scripts" / "train.py", tmp_path / "tiny.yaml", *fixed]
        return list(map(str, [*argv, "--checkpointing_steps", 2, *flags]))

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command("unbroken"), env=environment, check=True)
    process = subprocess.Popen(command("broken"), env=environment, start_new_session=True)
    while process.poll() is None and not checkpoints(tmp_path / "broken"):
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    subprocess.run(command("broken", "--resume_from_checkpoint", "latest"), env=environment, check=True)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("broken", "unbroken"))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-3, rtol=1e-3)
