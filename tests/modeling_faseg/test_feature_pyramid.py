"""The simple feature pyramid: its maps, patches of 14, what is refused, saved code."""

import copy

import pytest
import torch
from backbone_cases import backbone_of, fields_of, timm_backbone_of
from tiny_models import TINY_RESNET, TINY_SWIN, tiny_batch, tiny_config, tiny_model
from torch.nn import functional as F

from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from modeling_faseg.feature_pyramid_faseg import FASegSimpleFeaturePyramid, seven_eighths
from saved_models import check_loads_elsewhere
from scripts.training.optimization import build_parameter_groups


VIT = {"model_type": "timm_backbone", "backbone": "test_vit", "out_indices": [2]}
SWITCHED_OFF = {"dynamic_img_size": False}
# Positions of every kind that transformers resizes, of a pretraining size that no image of the tests has
POSITIONS = {
    "dinov2": {"image_size": 70},
    "dinov2_with_registers": {"image_size": 70},
    "beit": {"image_size": 80, "use_absolute_position_embeddings": True, "use_relative_position_bias": True},
    "vitdet": {
        "image_size": 80, "pretrain_image_size": 80, "use_relative_position_embeddings": True, "window_size": 3,
        "window_block_indices": [0, 2],
    },
}  # fmt: skip
# fields of a configuration -> what is said, and what then works
REFUSED = {
    "pyramid": (
        {"backbone_config": TINY_RESNET, "simple_feature_pyramid": True},
        r"'resnet' gives a last feature map of stride 32, .* needs 16 or 14: set simple_feature_pyramid=False$",
        {"simple_feature_pyramid": False},
    ),
    "one-map-of-it": (
        {"backbone_config": {**TINY_RESNET, "out_features": ["stage4"]}, "simple_feature_pyramid": True},
        r"set simple_feature_pyramid=False and its out_features=\['stage1', 'stage2', 'stage3', 'stage4'\]$",
        {"backbone_config": TINY_RESNET, "simple_feature_pyramid": False},
    ),
    "patch-8": (
        {"backbone_config": {**backbone_of("dinov3_vit"), "patch_size": 8}, "simple_feature_pyramid": True},
        r"stride 8, simple_feature_pyramid=True needs 16 or 14: choose a plain vision transformer of patch 16 or",
        None,
    ),
    "patch-8-without": (
        {"backbone_config": {**backbone_of("dinov3_vit"), "patch_size": 8}},
        r"all its layers have stride 8, so choose a pyramid",
        None,
    ),
    "fixed": (
        {**fields_of("vitpose_backbone"), "simple_feature_pyramid": True},
        r"Input image size .* doesn't match model .*: choose a plain vision transformer of patch 16 or 14 that "
        r"reads images of any size",
        None,
    ),
    "freed": (
        {"backbone_config": VIT, "timm_backbone_kwargs": SWITCHED_OFF, "simple_feature_pyramid": True},
        r"does not read images .*: set timm_backbone_kwargs={'dynamic_img_size': True}$",
        {"timm_backbone_kwargs": {"dynamic_img_size": True}},
    ),
    "freed-and-told": (
        {"backbone_config": VIT, "timm_backbone_kwargs": SWITCHED_OFF},
        r": set timm_backbone_kwargs={'dynamic_img_size': True} and simple_feature_pyramid=True and its "
        r"out_indices=\[5\]$",
        {
            "backbone_config": {**VIT, "out_indices": [5]},
            "timm_backbone_kwargs": {"dynamic_img_size": True},
            "simple_feature_pyramid": True,
        },
    ),
    "layers": (
        {"backbone_config": {**backbone_of("dinov3_vit"), "num_hidden_layers": 6}},
        r": set simple_feature_pyramid=True and its out_features=\['stage6'\]$",
        {
            "backbone_config": {
                **backbone_of("dinov3_vit"),
                "num_hidden_layers": 6,
                "out_features": ["stage6"],
            },
            "simple_feature_pyramid": True,
        },
    ),
    "windows": (
        {**fields_of("rf_detr_dinov2"), "simple_feature_pyramid": True},
        r"does not read images of 56x56 and 392x588 .*: choose a plain vision transformer of patch 16 or 14",
        None,
    ),
}


def marked(cases, few):
    return [pytest.param(case, marks=() if case in few else pytest.mark.slow) for case in cases]


def with_pyramid(**fields):
    return tiny_model(**fields, simple_feature_pyramid=True)


def test_four_strides_of_one_width():
    pyramid = FASegSimpleFeaturePyramid(18, 32)  # a width that four does not divide
    maps = pyramid(torch.randn(2, 18, 4, 6))
    assert [tuple(each.shape) for each in maps] == [(2, 32, 16, 24), (2, 32, 8, 12), (2, 32, 4, 6), (2, 32, 2, 3)]
    assert [tuple(each.shape[2:]) for each in pyramid(torch.randn(1, 18, 2, 2))][-1] == (1, 1)


def reference(weights, features, resized):
    """What ViTDet's text says of a level whose map is `resized` already, without its modules."""

    def norm(maps, name):
        mean, variance = maps.mean(1, keepdim=True), maps.var(1, keepdim=True, unbiased=False)
        scale, shift = (weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return (maps - mean) / (variance + 1e-6).sqrt() * scale + shift

    first, *others = sorted({int(name.split(".")[0]) for name in weights} - set(resized))
    maps = norm(F.conv2d(features, weights[f"{first}.weight"]), str(others[0]))
    return norm(F.conv2d(maps, weights[f"{others[1]}.weight"], padding=1), str(others[2]))


@torch.no_grad()
def test_levels_equal_the_papers_text():
    torch.manual_seed(0)
    pyramid = FASegSimpleFeaturePyramid(8, 4).double()
    for parameter in pyramid.parameters():
        parameter.normal_()
    features = torch.randn(2, 8, 3, 5, dtype=torch.double)
    four, eight, sixteen, thirty_two = (level.state_dict() for level in pyramid.levels)
    # A transposed convolution of 2 x 2 in steps of 2: each position becomes a square of its own.
    squares = torch.einsum("bchw,cdij->bdhiwj", features, eight["0.weight"]).reshape(2, 4, 6, 10)
    expected = reference(eight, squares + eight["0.bias"][:, None, None], {0})
    found = pyramid(features)
    torch.testing.assert_close(found[1], expected)
    torch.testing.assert_close(found[2], reference(sixteen, features, set()))
    largest = features[:, :, :2, :4].reshape(2, 8, 1, 2, 2, 2).amax((3, 5))
    torch.testing.assert_close(found[3], reference(thirty_two, largest, set()))
    squares = torch.einsum("bchw,cdij->bdhiwj", features, four["0.weight"]).reshape(2, 4, 6, 10)
    squares = (squares + four["0.bias"][:, None, None]).permute(0, 2, 3, 1)
    squares = F.gelu(F.layer_norm(squares, (4,), four["1.weight"], four["1.bias"], 1e-6)).permute(0, 3, 1, 2)
    squares = torch.einsum("bchw,cdij->bdhiwj", squares, four["3.weight"]).reshape(2, 2, 12, 20)
    torch.testing.assert_close(found[0], reference(four, squares + four["3.bias"][:, None, None], {0, 1, 3}))


def test_patch_14_sees_the_image_at_14_16_of_its_size():
    model = with_pyramid(**fields_of("dinov2"))
    seen = []
    model.model.backbone.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    images = tiny_batch()["pixel_values"]
    with torch.no_grad():
        maps = model(images, output_hidden_states=True).encoder_hidden_states
    smaller, output = seen[0]
    assert tuple(smaller.shape) == (2, 3, 56, 84) and tuple(output.feature_maps[-1].shape[2:]) == (4, 6)
    exact = F.interpolate(images.double(), size=(56, 84), mode="bilinear", align_corners=False)
    torch.testing.assert_close(smaller.double(), exact, atol=1e-5, rtol=0)
    assert [tuple(each.shape[2:]) for each in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert seven_eighths(images.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", marked(POSITIONS, ("dinov2",)))
@torch.no_grad()
def test_positions_of_another_pretraining_size(kind):
    """Images of other sizes than the table of positions is for are read, and the table matters to them."""
    model = with_pyramid(backbone_config={**backbone_of(kind), **POSITIONS[kind]})
    moved = copy.deepcopy(model)
    tables = {name: value for name, value in moved.named_parameters() if "position" in name or "rel_pos" in name}
    assert tables
    for value in tables.values():
        torch.nn.init.normal_(value)
    for height, width in ((64, 64), (32, 96), (128, 64)):
        images = tiny_batch((height, width))["pixel_values"]
        logits, others = (each(images).masks_queries_logits for each in (model, moved))
        assert logits.isfinite().all() and others.isfinite().all() and not torch.allclose(logits, others)


def test_the_last_map_alone_is_read():
    """Swin's maps have a norm each: that of the finer map has nothing to learn from, so it is frozen."""
    model = with_pyramid(backbone_config={**TINY_SWIN, "out_features": ["stage2", "stage3"]})
    unread = model.model.backbone.unread_parameters
    norms = {name for name in unread if "hidden_states_norms" in name}
    assert {name.split(".")[-2] for name in norms} == {"stage2"} and not any("stage3" in name for name in unread)
    model.train()(**tiny_batch()).loss.backward()
    assert {name for name, value in model.named_parameters() if value.grad is None} == {
        f"model.backbone.{name}" for name in unread
    }


def test_the_pyramid_learns_at_the_heads_rate():
    model = with_pyramid(**fields_of("dinov3_vit"))
    groups = {group["name"]: set(group["parameter_names"]) for group in build_parameter_groups(model, 1e-4, 0.05)}
    convolutions = {f"model.feature_pyramid.levels.3.{index}.weight" for index in (1, 3)}
    norms = {f"model.feature_pyramid.levels.3.{index}.{part}" for index in (2, 4) for part in ("weight", "bias")}
    assert convolutions <= groups["head"] and norms <= groups["head_no_decay"]
    parts = ("feature_pyramid" in name for group in ("backbone", "backbone_no_decay") for name in groups[group])
    assert not any(parts)


def test_convolutions_are_drawn_as_torch_does():
    """Not as transformers does, whose deviation of 0.02 would shrink a narrow map to nothing."""
    weight = with_pyramid(**fields_of("dinov3_vit")).model.feature_pyramid.levels[1][0].weight
    bound = (8 * 2 * 2) ** -0.5
    assert 0.9 * bound < weight.abs().max() <= bound


def test_training_with_gradient_checkpointing_in_bfloat16():
    model = with_pyramid(**fields_of("dinov3_vit")).train()
    plain = copy.deepcopy(model)
    model.gradient_checkpointing_enable()
    for each in (model, plain):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            each(**tiny_batch()).loss.backward()
    expected = dict(plain.named_parameters())
    for name, value in model.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(value.grad, expected[name].grad, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("case", marked(REFUSED, ("pyramid",)))
def test_refusals_and_their_advice(case):
    fields, message, advised = REFUSED[case]
    with torch.device("meta"):
        with pytest.raises(ValueError, match=message) as refusal:
            FASegForUniversalSegmentation(tiny_config(**copy.deepcopy(fields)))
        assert "\n" not in str(refusal.value)
        if advised:
            FASegForUniversalSegmentation(tiny_config(**{**fields, **advised}))


@pytest.mark.slow
def test_a_pyramid_of_its_own_is_kept():
    """BEiT may have one in transformers."""
    fields = {"backbone_config": {**backbone_of("beit"), "add_fpn": True}}
    assert tiny_model(**fields).model.backbone.maps_as_built.strides == (4, 8, 16, 32)
    with torch.device("meta"), pytest.raises(ValueError, match=r"stride 32, .*: set simple_feature_pyramid=False$"):
        FASegForUniversalSegmentation(tiny_config(**fields, simple_feature_pyramid=True))


@pytest.mark.system
@pytest.mark.parametrize("fields", [fields_of("dinov3_vit"), timm_backbone_of("vit_small_patch14_dinov2")])
def test_loads_where_the_project_is_not_installed(fields, tmp_path):
    classes = {"AutoModelForUniversalSegmentation": "FASegForUniversalSegmentation"}
    processor = FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    images, also = tiny_batch()["pixel_values"], "assert model.model.feature_pyramid is not None"
    saved = check_loads_elsewhere(
        with_pyramid(**fields), processor, images, "masks_queries_logits", classes, tmp_path, also=also
    )
    assert (saved / "feature_pyramid_faseg.py").is_file()
