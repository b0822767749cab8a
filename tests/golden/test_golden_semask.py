"""SeMask-FPN and the SeMask backbone against the official code's recorded numbers, through the real converter.

The small cases run twice: in full from the shared folder, and from copies in this folder that leave out rows and
columns of large maps, whose weights and inputs are made anew.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import recipe_weights
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.modeling_outputs import SemanticSegmenterOutput

from configuration import SeMaskConfig, SeMaskSwinConfig
from image_processing import FASegImageProcessor
from modeling_faseg import SeMaskForSemanticSegmentation, SeMaskSwinBackbone
from modeling_faseg.loss_semask import resized, semantic_map_loss, sum_semantic_maps
from modeling_faseg.windows_qlseg import window_starts
from scripts.inference.predictors import comparable_scores
from scripts.models.semask_names import convert_state_dict, official_source
from semask_backbones import convert_backbone


pytestmark = pytest.mark.golden
TOLERANCE = {"atol": 1e-4, "rtol": 0}
# name -> (config fields of the backbone, classes)
TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}
FULL_SIZE = {
    "full_semask_fpn_tiny_ade20k": ({**TINY, "global_semantic_stages": [2, 3]}, 150),
    "full_semask_fpn_tiny_cityscapes": (TINY, 19),
    "full_semask_fpn_base_ade20k": (BASE, 150),
}


class Case:
    """Recorded numbers and the official state dict.

    Args:
        meta: with `steps`, the outputs of which every step-th row and column is kept, in a reduced copy.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict[str, Any]):
        self.tensors, self.meta = tensors, meta
        self.official = {name[2:]: value for name, value in tensors.items() if name.startswith("w.")}

    def check(self, name: str, found: Tensor) -> None:
        """Compares what is recorded of `name`."""
        step = self.meta.get("steps", {}).get(name, 1)
        torch.testing.assert_close(found[..., ::step, ::step], self.tensors[f"out.{name}"], **TOLERANCE)


def shared_case(shared: Path, name: str) -> Case:
    folder = shared / "golden" / "semask"
    return Case(load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text()))


def local_case(name: str, num_labels: int) -> Case:
    folder = Path(__file__).parent
    tensors, meta = load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())
    seeds = meta["seeds"]
    tensors["in.pixel_values"] = recipe_weights.image((2, 3, 96, 64), seeds["pixel_values"])
    tensors["in.labels"] = recipe_weights.labels((2, 96, 64), num_labels, seeds["labels"])
    made = recipe_weights.state_dict(meta["shapes"], seeds["weights"])
    return Case(tensors | {f"w.{key}": value for key, value in made.items()}, meta)


@pytest.fixture(scope="module", params=["reduced", "full"])
def case(request):
    if request.param == "reduced":
        return local_case("semask_fpn_mixed_global", num_labels=23)
    return shared_case(request.getfixturevalue("shared"), "semask_fpn_mixed_global")


@pytest.fixture(scope="module", params=["reduced", "full"])
def backbone_case(request):
    if request.param == "reduced":
        return local_case("semask_m2f_backbone_K150", num_labels=150)
    return shared_case(request.getfixturevalue("shared"), "semask_m2f_backbone_K150")


@pytest.fixture(scope="module")
def converted(case):
    """A small SeMask-FPN: five-token windows, semantic windows of three, two global stages, two semantic blocks."""
    meta = case.meta
    given = meta["config"]["backbone"]
    config = SeMaskConfig(
        backbone_config=SeMaskSwinConfig(
            **{name: given[name] for name in ("embed_dim", "depths", "num_heads", "window_size", "drop_path_rate")},
            semantic_window_size=given["sem_window_size"],
            num_semantic_blocks=given["num_sem_blocks"],
            global_semantic_stages=meta["stages_global_semantic"],
        ),
        decoder_hidden_size=meta["config"]["decode_head"]["channels"],
        num_labels=meta["config"]["decode_head"]["num_classes"],
    )
    model = SeMaskForSemanticSegmentation(config)
    model.load_state_dict(convert_state_dict(case.official, config))
    return model.eval()


@pytest.fixture
def model(converted):
    """A copy of its own for each test."""
    return copy.deepcopy(converted)


def test_maps_and_logits(case, model):
    pixel_values = case.tensors["in.pixel_values"]
    with torch.no_grad():
        features = model.backbone(pixel_values).feature_maps
        outputs = model(pixel_values)
    for stage in range(4):
        case.check(f"feature_map.{stage}", features[stage])
        case.check(f"semantic_map.{stage}", outputs.semantic_maps[stage])
    case.check("logits_stride4", outputs.logits)
    case.check("aux_logits_stride4", outputs.auxiliary_logits)
    case.check("logits_input_size", resized(outputs.logits, pixel_values.shape[-2:]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_attentions_agree_with_the_reference(case, model, attention):
    model.set_attn_implementation(attention)
    with torch.no_grad():
        logits = model(case.tensors["in.pixel_values"]).logits
    case.check("logits_stride4", logits)


def test_losses_and_gradients(case, model):
    tensors, meta = case.tensors, case.meta
    outputs = model(tensors["in.pixel_values"], labels=tensors["in.labels"])
    assert outputs.loss_dict["loss_cross_entropy"].item() == pytest.approx(meta["losses"]["loss_ce"], abs=1e-5)
    assert 0.4 * outputs.loss_dict["loss_semantic"].item() == pytest.approx(meta["losses"]["loss_cate"], abs=1e-5)
    assert outputs.loss.item() == pytest.approx(meta["loss_total"], abs=1e-5)
    outputs.loss.backward()
    norms: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        source = official_source(name)
        norms[source.name] = (norms.get(source.name, 0.0) ** 2 + parameter.grad.norm().item() ** 2) ** 0.5
    assert norms.keys() == meta["grad_norms"].keys()
    for name, expected in meta["grad_norms"].items():
        assert norms[name] == pytest.approx(expected, rel=1e-3, abs=1e-4), name


def test_hard_pixels_alone(case, model):
    tensors, meta = case.tensors, case.meta
    model.config.ohem_min_kept = meta["ohem"]["min_kept"]
    terms = model(tensors["in.pixel_values"], labels=tensors["in.labels"]).loss_dict
    assert terms["loss_cross_entropy"].item() == pytest.approx(meta["ohem"]["losses"]["loss_ce"], abs=1e-5)
    assert 0.4 * terms["loss_semantic"].item() == pytest.approx(meta["ohem"]["losses"]["loss_cate"], abs=1e-5)


def test_batch_norm_in_training(case, model):
    """Statistics of the batch; all that is random is off, as in the recording."""
    tensors, meta = case.tensors, case.meta
    for module in model.train().modules():
        if hasattr(module, "rate") or isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.eval()
    terms = model(tensors["in.pixel_values"], labels=tensors["in.labels"]).loss_dict
    recorded = meta["train_mode_no_dropout_losses"]
    assert terms["loss_cross_entropy"].item() == pytest.approx(recorded["loss_ce"], abs=1e-5)
    assert 0.4 * terms["loss_semantic"].item() == pytest.approx(recorded["loss_cate"], abs=1e-5)


def scores_at(model, processor, pixel_values, size):
    """Class scores of a batch of one at `size`, by the shared post-processing."""
    with torch.no_grad():
        outputs = model(pixel_values)
    found = processor.post_process_semantic_segmentation(
        outputs,
        target_sizes=[size],
        input_sizes=[tuple(pixel_values.shape[-2:])],
        return_segmentation_scores=True,
    )
    return found[0]["segmentation_scores"]


def assert_argmax(scores, expected, total):
    """Every pixel but those where the two best scores tie to float noise, of which there may be a few."""
    best, second = scores.topk(2, dim=0).values
    clear = best - second > 1e-5
    assert clear.float().mean() > 0.99
    assert (scores.argmax(0) == expected.long())[clear].all()
    assert scores.argmax(0).numel() == total


def test_whole_image(case, model):
    tensors, meta = case.tensors, case.meta
    size = tuple(meta["ori_shape"])
    processor = FASegImageProcessor(size_divisor=0)
    probabilities = comparable_scores(model, scores_at(model, processor, tensors["in.pixel_values"][:1], size))
    case.check("prob_ori_max", probabilities.amax(0)[None])
    assert_argmax(probabilities, tensors["out.segmentation_ori"][0], size[0] * size[1])


def test_multi_scale_and_flip(case, model):
    tensors, meta = case.tensors, case.meta
    size = tuple(meta["ori_shape"])
    processor = FASegImageProcessor(size_divisor=0)
    image = tensors["in.pixel_values"][:1]
    total = torch.zeros(())
    for scale in (1.0, 1.25):
        view = resized(image, [int(scale * side) for side in image.shape[-2:]])
        for flip in (False, True):
            scores = comparable_scores(model, scores_at(model, processor, view.flip(-1) if flip else view, size))
            total = total + (scores.flip(-1) if flip else scores)
    assert_argmax(total / 4, tensors["out.ms_flip_argmax"][0], size[0] * size[1])


def test_sliding_windows(case, model):
    """Logits, not probabilities, are averaged where windows overlap."""
    tensors, meta = case.tensors, case.meta
    image = tensors["in.pixel_values"][:1]
    (down, right), (height, width) = meta["slide"]["stride"], meta["slide"]["crop"]
    processor = FASegImageProcessor(size_divisor=0)
    total, count = torch.zeros(23, *image.shape[-2:]), torch.zeros(image.shape[-2:])
    for top in window_starts(image.shape[-2], height, down):
        for left in window_starts(image.shape[-1], width, right):
            window = (slice(top, top + height), slice(left, left + width))
            crop = image[(..., *window)]
            total[(slice(None), *window)] += scores_at(model, processor, crop, tuple(crop.shape[-2:]))
            count[window] += 1
    scores = total / count
    torch.testing.assert_close(scores.mean((1, 2))[None], tensors["out.slide_logits_mean_c"], **TOLERANCE)
    assert_argmax(scores, tensors["out.slide_logits_argmax"][0], scores[0].numel())


def test_labels_equal_scores_of_the_same_image(case, model):
    """The memory-saving path from logits to labels, which evaluation takes, against the recorded map."""
    tensors, meta = case.tensors, case.meta
    size = tuple(meta["ori_shape"])
    labels = FASegImageProcessor(size_divisor=0).post_process_semantic_segmentation(
        SemanticSegmenterOutput(logits=tensors["out.logits_stride4"][:1]),
        target_sizes=[size],
        input_sizes=[tuple(tensors["in.pixel_values"].shape[-2:])],
    )[0]
    assert (labels == tensors["out.segmentation_ori"][0].long()).float().mean() > 0.999


def test_mask_classification_backbone_and_its_loss(backbone_case):
    """The backbone as SeMask's copy of Mask2Former has it: one global stage, aligned corners in the decoder."""
    tensors, given = backbone_case.tensors, backbone_case.meta["config"]
    config = SeMaskSwinConfig(
        embed_dim=given["ed"],
        depths=given["dp"],
        num_heads=given["nh"],
        window_size=given["w"],
        semantic_window_size=given["sw"],
        num_semantic_classes=given["K"],
        global_semantic_stages=[3],
    )
    backbone = SeMaskSwinBackbone(config)
    backbone.load_state_dict(convert_backbone(backbone_case.official, backbone))
    with torch.no_grad():
        outputs = backbone.eval()(tensors["in.pixel_values"])
        loss = semantic_map_loss(outputs.semantic_maps, tensors["in.labels"], ignore_value=255)
        summed = sum_semantic_maps(outputs.semantic_maps, align_corners=True)
    for stage in range(4):
        backbone_case.check(f"feature_map.{stage}", outputs.feature_maps[stage])
        backbone_case.check(f"semantic_map.{stage}", outputs.semantic_maps[stage][:, :32])
    full = resized(summed, tensors["in.labels"].shape[-2:], align_corners=True)
    backbone_case.check("aux_pred_full", full[:, ::8, ::2, ::2])
    assert loss.item() == pytest.approx(backbone_case.meta["loss_cate"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size(shared, name):
    """Released architectures with weights drawn by the recorded recipe."""
    case = shared_case(shared, name)
    tensors, meta = case.tensors, case.meta
    backbone, num_labels = FULL_SIZE[name]
    config = SeMaskConfig(backbone_config=SeMaskSwinConfig(**backbone), num_labels=num_labels)
    keys = json.loads((shared / "keys" / "semask" / f"{name.removeprefix('full_')}.json").read_text())["keys"]
    shapes = {key: tuple(entry["shape"]) for key, entry in keys.items() if entry["dtype"].startswith("float")}
    official = recipe_weights.state_dict(shapes, meta["weights_recipe"]["seed"])
    model = SeMaskForSemanticSegmentation(config).eval()
    model.load_state_dict(convert_state_dict(official, config))
    assert sum(parameter.numel() for parameter in model.parameters()) == meta["params"]
    images, labels = tensors["in.pixel_values_f16"].float(), tensors["in.labels"]
    with torch.no_grad():
        outputs = model(images, labels=labels)
        features = model.backbone(images).feature_maps
    for stage in range(4):
        case.check(f"feature_map.{stage}", features[stage][:, :16, ::4, ::4])
        case.check(f"semantic_map.{stage}", outputs.semantic_maps[stage][:, :16, ::4, ::4])
    case.check("logits_stride4", outputs.logits[:, :, ::8, ::8])
    case.check("aux_logits_stride4", outputs.auxiliary_logits[:, :, ::8, ::8])
    assert_argmax(outputs.logits[0], tensors["out.argmax_stride4"][0], outputs.logits[0, 0].numel())
    terms = outputs.loss_dict
    assert terms["loss_cross_entropy"].item() == pytest.approx(meta["losses"]["loss_ce"], abs=1e-4)
    assert 0.4 * terms["loss_semantic"].item() == pytest.approx(meta["losses"]["loss_cate"], abs=1e-4)
