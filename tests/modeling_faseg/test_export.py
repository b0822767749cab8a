"""`torch.export` and `torch.compile` of the released ResNet-50 architecture equal eager."""

import pytest
import torch
from tiny_models import tiny_batch, tiny_model
from torch.export import Dim

from configuration import FASegConfig
from modeling_faseg import FASegForUniversalSegmentation


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(0)
    config = FASegConfig.from_pretrained("hub_cards/faseg-resnet50-ade20k")
    return FASegForUniversalSegmentation(config).eval()


def as_exported(model, images):
    """Eager, but on the route that export takes (`grid_sample`, layout of the input).

    The other route differs by float noise, which may decide a position of masked attention otherwise; it is compared
    with this one in test_deformable_sampling.py, and with the reference's numbers in tests/golden.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_exporting", lambda: True)
        return model(images)


def check(ours, theirs):
    torch.testing.assert_close(theirs.class_queries_logits, ours.class_queries_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs.masks_queries_logits, ours.masks_queries_logits, atol=1e-3, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_static_export(resnet50):
    images = torch.randn(1, 3, 512, 512)
    exported = torch.export.export(resnet50, (images,), strict=False)
    check(as_exported(resnet50, images), exported.module()(images))


@pytest.mark.slow
@torch.no_grad()
def test_dynamic_export(resnet50):
    """Sides from 256 to 1024, batch 1 to 2. Below two HRCA windows (256x256) the graph does not hold."""
    height, width = Dim("height", min=8, max=32), Dim("width", min=8, max=32)
    shapes = {"pixel_values": {0: Dim("batch", min=1, max=2), 2: 32 * height, 3: 32 * width}}
    exported = torch.export.export(
        resnet50, (torch.randn(2, 3, 512, 512),), dynamic_shapes=shapes, strict=False
    ).module()
    for size in [(1, 3, 512, 512), (2, 3, 256, 320), (1, 3, 256, 256), (1, 3, 1024, 768), (1, 3, 1024, 1024)]:
        images = torch.randn(size)
        check(as_exported(resnet50, images), exported(images))


@pytest.mark.slow
@torch.no_grad()
def test_compile(resnet50):
    images = torch.randn(1, 3, 512, 512)
    compiled = torch.compile(resnet50, fullgraph=True)
    check(resnet50(images), compiled(images))


@pytest.mark.system
@torch.no_grad()
def test_inference_compiles_into_one_graph():
    """Traced whole, also where the CPU gathers (the slow test above runs what the compiler makes of it)."""
    model, images = tiny_model(), tiny_batch()["pixel_values"]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    check(model(images), compiled(images))
