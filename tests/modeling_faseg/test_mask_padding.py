"""`mask_padding=True`: what lies in the padding does not reach the image."""

import pytest
import torch
from tiny_models import tiny_batch, tiny_model

from modeling_faseg.decisions import Decisions
from modeling_faseg.hrca_faseg import FASegWindows, attended_share
from modeling_faseg.modeling_faseg import level_masks


SIZE, PADDED = (64, 96), (128, 160)


def padded_batch(fill=0.0):
    """One image of 64x96 and one of 128x160, padded to the latter with `fill`."""
    small = tiny_batch(SIZE, (1,))["pixel_values"]
    large = torch.randn(1, 3, *PADDED, generator=torch.Generator().manual_seed(2))
    canvas = torch.full((1, 3, *PADDED), fill)
    canvas[..., : SIZE[0], : SIZE[1]] = small
    pixel_mask = torch.ones(2, *PADDED)
    pixel_mask[0, SIZE[0] :] = 0
    pixel_mask[0, :, SIZE[1] :] = 0
    return small, torch.cat((canvas, large)), pixel_mask


def run_head(model, maps, pixel_mask):
    """Class logits, masks and kept windows that follow from backbone maps."""
    valid = level_masks(pixel_mask) if model.config.mask_padding else None
    decoded = model.model.pixel_decoder(list(maps), valid)
    queries = model.model.transformer_decoder(
        decoded.feature_maps, decoded.positions, decoded.mask_features, valid, output_focus=True
    )
    masks = queries.masks_queries_logits[-1][0, :, : SIZE[0] // 4, : SIZE[1] // 4]
    return model.class_predictor(queries.intermediate_states[-1])[0], masks, queries.focus


@pytest.mark.parametrize("encoding", ["conditional", "sine", "learned"])
@torch.no_grad()
def test_head_does_not_read_the_padding(encoding):
    model = tiny_model(mask_padding=True, positional_encoding_type=encoding)
    _, images, pixel_mask = padded_batch()
    maps = model.model.backbone(images).feature_maps
    dirty = [
        torch.where(mask, level, 10 * torch.randn_like(level))
        for level, mask in zip(maps, reversed(level_masks(pixel_mask)))
    ]
    clean_classes, clean_masks, _ = run_head(model, maps, pixel_mask)
    dirty_classes, dirty_masks, _ = run_head(model, dirty, pixel_mask)
    torch.testing.assert_close(clean_classes, dirty_classes, atol=1e-4, rtol=0)
    torch.testing.assert_close(clean_masks, dirty_masks, atol=1e-4, rtol=0)


@pytest.mark.parametrize("encoding", ["conditional", "sine", "learned"])
@torch.no_grad()
def test_head_gives_what_the_image_gives_alone(encoding):
    """Also the number of HRCA windows is that of the image, not of the canvas."""
    model = tiny_model(mask_padding=True, positional_encoding_type=encoding)
    small, images, pixel_mask = padded_batch()
    alone_maps = model.model.backbone(small).feature_maps
    canvas_maps = []
    for alone, canvas in zip(alone_maps, model.model.backbone(images).feature_maps):
        canvas = canvas.clone()
        canvas[:1, :, : alone.shape[2], : alone.shape[3]] = alone
        canvas_maps.append(canvas)
    classes, masks, _ = run_head(model, alone_maps, torch.ones(1, *SIZE))
    padded_classes, padded_masks, _ = run_head(model, canvas_maps, pixel_mask)
    torch.testing.assert_close(classes, padded_classes, atol=1e-4, rtol=0)
    torch.testing.assert_close(masks, padded_masks, atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_changes_whole_images_less():
    small, images, pixel_mask = padded_batch()
    changes = {}
    for mask_padding in (False, True):
        model = tiny_model(mask_padding=mask_padding)
        alone = model(small, pixel_mask=torch.ones(1, *SIZE)).masks_queries_logits[0]
        padded = model(images, pixel_mask=pixel_mask).masks_queries_logits[0, :, : SIZE[0] // 4, : SIZE[1] // 4]
        changes[mask_padding] = (alone - padded).abs().mean()
    assert changes[True] < 0.5 * changes[False]


@torch.no_grad()
def test_without_padding_the_mask_changes_nothing():
    images = tiny_batch()["pixel_values"]
    plain, masked = tiny_model(), tiny_model(mask_padding=True)
    expected = plain(images).masks_queries_logits
    output = masked(images, pixel_mask=torch.ones(2, 64, 96)).masks_queries_logits
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_image_too_small_for_a_window_reads_none_beside_a_large_one():
    """Omega 10: 6 coarse tokens keep no window, 20 keep two."""
    model = tiny_model(mask_padding=True, high_resolution_reduction=10)
    _, images, pixel_mask = padded_batch()
    maps = model.model.backbone(images).feature_maps
    _, _, focus = run_head(model, maps, pixel_mask)
    windows = focus.hrca_windows[3][0]
    assert (windows >= 0).tolist() == [[False, False], [True, True]]
    looked = torch.tensor([[0.0], [1.0]]).expand(-1, 6)
    torch.testing.assert_close(focus.focus_maps[3].flatten(2).sum(-1), looked)
    decoded = model.model.pixel_decoder(list(maps), level_masks(pixel_mask))
    attention = focus.focus_maps[0].flatten(2)
    read = FASegWindows(model.config, attention, decoded.feature_maps, level_masks(pixel_mask), Decisions())
    assert read.reported()[0].equal(windows)
    blocked = read.blocked()
    assert attended_share(blocked).flatten().tolist() == [0.0, 1.0]
    assert blocked[0].all() and not blocked[1].any()


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"pixel_mask is of shape \(1, 64, 96\), need \(2, 64, 96\)"):
        tiny_model()(tiny_batch()["pixel_values"], pixel_mask=torch.ones(1, 64, 96))


@torch.no_grad()
def test_a_batch_that_is_all_padding_stays_finite():
    model = tiny_model(mask_padding=True)
    output = model(torch.zeros(1, 3, 64, 64), pixel_mask=torch.zeros(1, 64, 64))
    assert output.masks_queries_logits.isfinite().all()


@torch.no_grad()
def test_one_coarse_token_is_normalised_with_and_without_a_mask():
    """Groups of a single value: 32 channels in 32 groups on an image of 32x32, alone in its batch."""
    image, outputs = torch.randn(1, 3, 32, 32, dtype=torch.float64), []
    for mask_padding in (False, True):
        model = tiny_model(mask_padding=mask_padding, high_resolution_min_windows=1).eval().double()
        assert model.config.feature_size == 32
        outputs.append(model(image, pixel_mask=torch.ones(1, 32, 32)))
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(outputs[0][name], outputs[1][name], atol=1e-4, rtol=0)
        assert outputs[0][name].isfinite().all()
