"""Labels made a few rows at a time equal the argmax of scores of the whole image."""

import pytest
import torch
from torch.nn import functional as F

from image_processing import semantic_labels as semantic_labels_module
from image_processing.segments import resize
from image_processing.semantic_labels import ImageScores, resized_rows


@pytest.fixture(params=[1, 3000, 3 * 2**20], ids="{} bytes".format)
def block_bytes(request, monkeypatch):
    """From a row at a time to everything at once."""
    monkeypatch.setitem(semantic_labels_module.BLOCK_BYTES, "cpu", request.param)


def image_scores(class_logits, mask_logits, input_size, target_size=None, masks_first=False):
    canvas = (4 * mask_logits.shape[1], 4 * mask_logits.shape[2])
    return ImageScores(mask_logits, canvas, input_size, target_size, class_logits, masks_first)


def whole_scores(class_logits, mask_logits, input_size, target_size=None, masks_first=False):
    """The same in its plain form, all rows at once."""
    masks = resize(mask_logits.float(), (4 * mask_logits.shape[1], 4 * mask_logits.shape[2]))
    masks = masks[:, : input_size[0], : input_size[1]]
    size = target_size or input_size
    masks = resize(masks, size) if masks_first else masks
    scores = torch.einsum("qk,qhw->khw", class_logits.float().softmax(-1)[:, :-1], masks.sigmoid())
    return resize(scores, size)


def assert_labels(labels, scores):
    """Equal where the two best scores are further apart than float noise; and that is nearly everywhere."""
    assert labels.dtype == torch.int64 and labels.shape == scores.shape[1:]
    best, second = scores.topk(2, dim=0).values
    clear = best - second > 1e-5
    assert clear.float().mean() > 0.99
    assert labels[clear].equal(scores.argmax(0)[clear])


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("masks_first", [False, True])
@pytest.mark.parametrize(
    ("input_size", "target_size"),
    [
        ((32, 48), None),
        ((30, 45), None),
        ((32, 48), (32, 48)),
        ((29, 45), (70, 31)),
        ((31, 48), (11, 100)),
        ((1, 48), (9, 5)),
        ((32, 48), (1, 1)),
    ],
    ids=str,
)
def test_labels_are_the_argmax_of_the_scores(input_size, target_size, masks_first):
    class_logits, mask_logits = 3 * torch.randn(7, 6), 3 * torch.randn(7, 8, 12)
    found = image_scores(class_logits, mask_logits, input_size, target_size, masks_first)
    scores = whole_scores(class_logits, mask_logits, input_size, target_size, masks_first)
    assert_labels(found.labels(), scores)
    torch.testing.assert_close(found.stacked(), scores, atol=1e-5, rtol=1e-5)
    assert found.stacked().argmax(0).equal(found.labels())


@pytest.mark.usefixtures("block_bytes")
@pytest.mark.parametrize("size", [(20, 30), (7, 9), (3, 64), (1, 1)], ids=str)
def test_resized_rows_are_torchs_bilinear_resize(size):
    image = torch.randn(5, 9, 13)
    last = image.permute(1, 2, 0)
    blocks = list(resized_rows(lambda start, stop: last[start:stop], (9, 13), size, 5, image.device))
    assert all(block.shape[1:] == (size[1], 5) for block in blocks)
    expected = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.cat(blocks).permute(2, 0, 1), expected, atol=1e-5, rtol=1e-5)
    assert ImageScores(image, (9, 13), target_size=size).labels().equal(expected.argmax(0))


def test_scores_of_all_classes_never_exist_at_full_size(monkeypatch):
    """The largest tensor is a block, whatever the image's size."""
    monkeypatch.setitem(semantic_labels_module.BLOCK_BYTES, "cpu", 2**16)
    largest = 0
    bag, product = F.embedding_bag, torch.matmul

    def watched(function):
        def call(*args, **kwargs):
            nonlocal largest
            result = function(*args, **kwargs)
            largest = max(largest, result.numel() * result.element_size())
            return result

        return call

    monkeypatch.setattr(semantic_labels_module.F, "embedding_bag", watched(bag))
    monkeypatch.setattr(torch, "matmul", watched(product))
    image_scores(torch.randn(5, 31), torch.randn(5, 32, 32), (128, 128), (200, 300)).labels()
    assert 2**14 < largest <= 4 * 2**16 + 4 * 128 * 30 * 2  # a block of the source and the row it shares


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_that_train(dtype):
    class_logits = torch.randn(5, 4).to(dtype).requires_grad_()
    mask_logits = torch.randn(5, 8, 8).to(dtype).requires_grad_()
    labels = image_scores(class_logits, mask_logits, (32, 32), (50, 40)).labels()
    assert_labels(labels, whole_scores(class_logits, mask_logits, (32, 32), (50, 40)).detach())


def test_labels_do_not_depend_on_autocast():
    torch.manual_seed(0)
    class_logits, mask_logits = torch.randn(5, 4), 3 * torch.randn(5, 8, 8)
    expected = image_scores(class_logits, mask_logits, (30, 32), (45, 50)).labels()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(image_scores(class_logits, mask_logits, (30, 32), (45, 50)).labels(), expected)
