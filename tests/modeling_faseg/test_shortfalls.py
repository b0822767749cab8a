"""What transformers' Mask2Former is known to get wrong, one test each, numbered as in the project's notes.

1 counts masks over processes: test_loss.py. 2 squashes to 384x384: tests/image_processing. 3 ignores `pixel_mask`:
test_mask_padding.py. 4 never reads `ignore_value`: test_loss.py and tests/image_processing. 12 a slow metric:
tests/scripts.
"""

import copy

import pytest
import torch
from tiny_models import TINY_SWIN, tiny_batch, tiny_model


def test_5_gradient_checkpointing_can_be_enabled():
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model(**tiny_batch()).loss.backward()


def test_6_auxiliary_loss_can_be_switched_off():
    output = tiny_model(use_auxiliary_loss=False)(**tiny_batch())
    assert set(output.loss_dict) == {"loss_cross_entropy", "loss_mask", "loss_dice"}


def test_6_tuples_with_labels():
    model, batch = tiny_model(), tiny_batch()
    torch.manual_seed(0)
    loss, class_logits, *_ = model(**batch, return_dict=False)
    torch.manual_seed(0)
    output = model(**batch)
    torch.testing.assert_close(loss, output.loss)
    torch.testing.assert_close(class_logits, output.class_queries_logits)


def test_7_bfloat16_weights_train():
    model = tiny_model().to(torch.bfloat16).train()
    batch = tiny_batch()
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = copy.deepcopy(model.class_predictor.weight.data)
    model(**batch).loss.backward()
    optimizer.step()
    assert not model.class_predictor.weight.equal(before)


def test_8_sdpa_is_the_default_attention():
    model = tiny_model()
    assert model.config._attn_implementation == "sdpa"


def test_8_the_class_head_runs_once_at_inference():
    model = tiny_model()
    calls = []
    model.class_predictor.register_forward_hook(lambda *call: calls.append(call))
    model(tiny_batch()["pixel_values"])
    assert len(calls) == 1


def test_9_dropout_drops_no_layer():
    """With dropout every decoder layer still runs in every training step."""
    model = tiny_model(dropout=0.9).train()
    calls = []
    for layer in model.model.transformer_decoder.layers:
        layer.register_forward_hook(lambda *call: calls.append(call))
    for _ in range(5):
        model(tiny_batch()["pixel_values"])
    assert len(calls) == 5 * model.config.decoder_layers


@pytest.mark.system
@pytest.mark.parametrize("backbone", [None, pytest.param(TINY_SWIN, marks=pytest.mark.slow)], ids=["resnet", "swin"])
def test_11_exports_with_dynamic_sizes(backbone):
    """`torch.export` with symbolic height, width and batch equals eager at other sizes."""
    model = tiny_model(**({"backbone_config": dict(backbone)} if backbone else {}))
    side = torch.export.Dim("height", min=4, max=16), torch.export.Dim("width", min=4, max=16)
    batch = torch.export.Dim("batch", min=1, max=2)
    shapes = {"pixel_values": {0: batch, 2: 32 * side[0], 3: 32 * side[1]}}
    if backbone:  # window padding makes Swin's sizes branch: fixed size, any batch
        shapes = {"pixel_values": {0: batch}}
    with torch.no_grad():
        exported = torch.export.export(model, (torch.randn(2, 3, 128, 160),), dynamic_shapes=shapes, strict=False)
        for size in [(1, 3, 128, 160)] if backbone else [(1, 3, 128, 128), (2, 3, 256, 224)]:
            images = torch.randn(size)
            ours, theirs = model(images), exported.module()(images)
            torch.testing.assert_close(ours.masks_queries_logits, theirs.masks_queries_logits, atol=3e-4, rtol=0)
            torch.testing.assert_close(ours.class_queries_logits, theirs.class_queries_logits, atol=1e-4, rtol=0)


def test_no_parameter_is_unused_with_swin():
    model = tiny_model(backbone_config=dict(TINY_SWIN)).train()
    model(**tiny_batch()).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
