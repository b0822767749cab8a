"""A compiled QLSeg: windows are, whatever the sizes of images that are read through them."""

import pytest
import torch
from tiny_qlseg import tiny_qlseg
from torch._dynamo.testing import CompileCounter


WINDOWS_OF_64 = (4, 3, 64, 64)


def images(*size):
    """An image that is read through four windows, and its mask."""
    torch.manual_seed(sum(size))
    mask = torch.ones(1, *size, dtype=torch.long)
    mask[:, size[0] - 5 :] = 0
    return {"pixel_values": torch.randn(1, 3, *size), "pixel_mask": mask}


@torch.no_grad()
def test_calls_for_windows_are_compiled_and_those_for_images_are_not(monkeypatch):
    given = []

    def compile_by_name(call, **options):
        assert options["fullgraph"]

        def compiled(pixel_values, **others):
            given.append(tuple(pixel_values.shape))
            return call(pixel_values=pixel_values, **others)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_by_name)
    model = tiny_qlseg()
    batches = [images(75, 100), images(60, 170), images(64, 64)]
    expected = [model(**batch).semantic_scores for batch in batches]
    model.compile_for_inference()
    for batch, scores in zip(batches, expected, strict=True):
        assert torch.equal(model(**batch).semantic_scores, scores)
    assert given == [WINDOWS_OF_64, WINDOWS_OF_64, (1, 3, 64, 64)]


@pytest.mark.system
@torch.no_grad()
def test_windows_of_images_of_all_sizes_are_one_graph():
    model, counter = tiny_qlseg(), CompileCounter()
    batches = [images(75, 100), images(60, 170)]
    expected = [model(**batch).semantic_scores for batch in batches]
    torch.compiler.reset()
    model.compile_for_inference(backend=counter)
    for batch, scores in zip(batches, expected, strict=True):
        torch.testing.assert_close(model(**batch).semantic_scores, scores, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
