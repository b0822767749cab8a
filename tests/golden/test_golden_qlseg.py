"""QLSeg against the official code's recorded numbers, through the real converter.

The small case runs twice: in full from the shared folder, and from a copy in this folder that keeps every second row
and column, whose weights and inputs are made anew.
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
from transformers import AutoConfig

from configuration import QLSegConfig
from modeling_faseg import QLSegForSemanticSegmentation
from modeling_faseg.windows_qlseg import class_scores
from scripts.models.qlseg_names import convert_state_dict, official_parameter_names


pytestmark = pytest.mark.golden
TOLERANCE = {"atol": 1e-4, "rtol": 0}
LOSS_TOLERANCE = 1e-5  # relative; float32 on both sides, sums in another order
GRADIENT_TOLERANCE = 1e-4  # relative, on top of 1e-6: some gradients are zero but for rounding
KINDS = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}
# Image, token and channel of the only two of the encoder's 786,432 ReLUs whose input is within float noise of zero:
# 5.1e-7 and 1.0e-6 in float64. Rounding in the backbone, 7e-7 here, gives them either sign, by the machine's
# kernels, and a ReLU's gradient follows the sign: 1e-4 of some norms. In float64 all norms agree to 1e-5.
AT_ZERO = ((0, 112, 143), (1, 157, 958))
LIFT = 5e-6  # more than the noise, and nothing to the losses
SLIDE_CHANNELS = slice(0, 20, 2)


def small_config() -> QLSegConfig:
    """The recorded small model, without dropout as it was run."""
    return QLSegConfig(
        image_size=128,
        window_stride=85,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        out_indices=[1, 2, 3],
        encoder_layers=2,
        hidden_dim=32,
        decoder_attention_heads=4,
        num_labels=20,
        dropout=0.0,
        drop_path_rate=0.0,
    )


class Case:
    """Recorded numbers and the official state dict.

    Args:
        reduced: whether maps were thinned by two on top of what the recording left out.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict[str, Any], reduced: bool):
        self.tensors, self.meta, self.reduced = tensors, meta, reduced
        self.official = {name[2:]: value for name, value in tensors.items() if name.startswith("w.")}

    def check(self, name: str, found: Tensor, step: int = 1) -> None:
        """Compares what is recorded of `name`: every `step`-th row and column."""
        step *= 2 if self.reduced and step > 1 else 1
        expected = self.tensors[f"out.{name}"]
        torch.testing.assert_close(found[..., ::step, ::step].float(), expected.float(), **TOLERANCE)


def shared_case(shared: Path, name: str) -> Case:
    folder = shared / "golden" / "qlseg"
    meta = json.loads((folder / f"{name}.json").read_text())
    return Case(load_file(folder / f"{name}.safetensors"), meta, reduced=False)


def local_case() -> Case:
    folder = Path(__file__).parent
    tensors = load_file(folder / "qlseg_a_K20.safetensors")
    meta = json.loads((folder / "qlseg_a_K20.json").read_text())
    seeds = meta["seeds"]
    tensors["in.pixel_values"] = recipe_weights.image((2, 3, 128, 128), seeds["pixel_values"])
    tensors["in.big_pixel_values"] = recipe_weights.image((1, 3, 179, 281), seeds["big_pixel_values"])
    tensors["in.labels"] = recipe_weights.labels((2, 128, 128), 20, seeds["labels"])
    made = recipe_weights.state_dict(meta["shapes"], seeds["weights"])
    given = {name: value for name, value in tensors.items() if name.startswith("w.")}
    tensors |= {f"w.{name}": value for name, value in made.items()} | given
    weights = torch.ones(21)
    weights[-1] = 0.1
    tensors["w.decode_head.loss_decode.criterion.empty_weight"] = weights
    return Case(tensors, meta, reduced=True)


@pytest.fixture(scope="module", params=["reduced", "full"])
def case(request):
    if request.param == "reduced":
        return local_case()
    return shared_case(request.getfixturevalue("shared"), "qlseg_a_K20")


@pytest.fixture(scope="module")
def converted(case):
    model = QLSegForSemanticSegmentation(small_config())
    model.load_state_dict(convert_state_dict(case.official, model.config), strict=True)
    return model.eval()


@pytest.fixture
def model(converted):
    """A copy of its own for each test."""
    return copy.deepcopy(converted)


def targets(label_maps: Tensor) -> dict[str, list[Tensor]]:
    """One mask per class of each `(H, W)` map but 255."""
    classes = [label_map.unique() for label_map in label_maps]
    classes = [each[each != 255] for each in classes]
    masks = [(label_map == each[:, None, None]).float() for label_map, each in zip(label_maps, classes)]
    return {"mask_labels": masks, "class_labels": classes}


def assert_losses(model: Any, found: dict[str, Tensor], expected: dict[str, float]) -> None:
    """Every recorded term, which has its weight in it."""
    assert len(found) == len(expected)
    for name, value in expected.items():
        kind = next(kind for kind in KINDS if name.startswith(kind))
        term = found[name.replace(kind, KINDS[kind])].item() * model.criterion.weight_dict[KINDS[kind]]
        assert term == pytest.approx(value, rel=LOSS_TOLERANCE), name


@torch.no_grad()
def test_every_stage(case, model):
    outputs = model(case.tensors["in.pixel_values"], output_hidden_states=True, output_auxiliary_logits=True)
    for tap, feature_map in enumerate(outputs.encoder_hidden_states):
        torch.testing.assert_close(feature_map, case.tensors[f"out.feature_map.{tap}"], **TOLERANCE)
    levels = [level.flatten(2).transpose(1, 2) for level in reversed(outputs.pixel_decoder_hidden_states)]
    tokens = torch.cat(levels, dim=1)
    torch.testing.assert_close(tokens[..., :: 2 if case.reduced else 1], case.tensors["out.encoder"], **TOLERANCE)
    for index, earlier in enumerate(outputs.auxiliary_logits):
        case.check(f"aux.{index}.pred_logits", earlier["class_queries_logits"])
        case.check(f"aux.{index}.pred_masks", earlier["masks_queries_logits"])
    case.check("pred_logits", outputs.class_queries_logits)
    masks = torch.nn.functional.interpolate(outputs.masks_queries_logits, size=(128, 128), mode="bilinear")
    case.check("pred_masks", masks, step=4)
    case.check("scores", outputs.semantic_scores, step=4)
    assert torch.equal(outputs.semantic_scores.argmax(1), case.tensors["out.scores_argmax"].long())


@torch.no_grad()
def test_share_of_blocked_positions(case, model):
    """The attention mask between stages, as recorded per stage and level."""
    found: list[float | None] = []
    for stage in model.model.decoder.stages:
        stage.register_forward_pre_hook(
            lambda _, args: found.extend([None if args[2] is None else args[2].float().mean().item()] * 3)
        )
    model(case.tensors["in.pixel_values"])
    for share, expected in zip(found, case.meta["attn_mask_fraction_masked"], strict=True):
        assert share == (None if expected is None else pytest.approx(expected, abs=1e-6))


def lift_units_at_zero(module: Any, args: Any, output: Tensor) -> Tensor:
    """Forward hook: puts the units `AT_ZERO` on their side of zero, whatever the machine's rounding."""
    lift = torch.zeros_like(output)
    for unit in AT_ZERO:
        assert output[unit].abs() < LIFT
        lift[unit] = LIFT
    return output + lift


def test_losses_and_gradients(case, model):
    model.model.encoder.layers[1].fc1.register_forward_hook(lift_units_at_zero)
    outputs = model.train()(case.tensors["in.pixel_values"], **targets(case.tensors["in.labels"]))
    assert outputs.loss.item() == pytest.approx(case.meta["loss_total"], rel=LOSS_TOLERANCE)
    assert_losses(model, outputs.loss_dict, case.meta["losses"])
    outputs.loss.backward()
    official = official_parameter_names(model.config)
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        squares[official[name]] = squares.get(official[name], 0.0) + parameter.grad.double().square().sum().item()
    expected = case.meta["grad_norms"]
    assert squares.keys() == expected.keys()
    for name, square in squares.items():
        assert square**0.5 == pytest.approx(expected[name], rel=GRADIENT_TOLERANCE, abs=1e-6), name


def test_losses_where_a_image_has_no_labels(case, model):
    label_maps = case.tensors["in.labels"].clone()
    label_maps[-1] = 255
    outputs = model.train()(case.tensors["in.pixel_values"], **targets(label_maps))
    assert_losses(model, outputs.loss_dict, case.meta["losses_last_image_all_ignored"])


@torch.no_grad()
def test_sliding_windows(case, model):
    scores = model(case.tensors["in.big_pixel_values"]).semantic_scores
    case.check("slide_scores", scores[:, SLIDE_CHANNELS], step=3)
    resized = torch.nn.functional.interpolate(scores, size=case.meta["ori_shape"], mode="bilinear").softmax(dim=1)
    case.check("slide_softmax_max_ori", resized.amax(dim=1), step=4)
    assert torch.equal(resized.argmax(dim=1), case.tensors["out.slide_segmentation_ori"].long())


@pytest.mark.slow
@torch.no_grad()
def test_full_size(shared):
    """ViT-B on ADE20K at 512x512, from the released configuration."""
    case = shared_case(shared, "full_qlseg_vit-b_ade20k")
    keys = json.loads((shared / "keys" / "qlseg" / "qlseg_vit-b_jax_512x512_160k_ade20k.json").read_text())["keys"]
    shapes = {name: tuple(entry["shape"]) for name, entry in keys.items()}
    official = recipe_weights.state_dict(shapes, case.meta["weights_recipe"]["seed"])
    config = AutoConfig.from_pretrained("hub_cards/qlseg-vit-base-ade20k")
    model = QLSegForSemanticSegmentation(config)
    official["decode_head.loss_decode.criterion.empty_weight"] = model.criterion.empty_weight
    model.load_state_dict(convert_state_dict(official, config), strict=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == case.meta["params"]

    images = case.tensors["in.pixel_values_f16"].float()
    labels = targets(case.tensors["in.labels"].long())
    outputs = model.eval()(images, **labels, output_hidden_states=True, output_auxiliary_logits=True)
    for tap, feature_map in enumerate(outputs.encoder_hidden_states):
        case.check(f"feature_map.{tap}", feature_map[:, :64])
    for index, earlier in enumerate(outputs.auxiliary_logits):
        case.check(f"aux.{index}.pred_logits", earlier["class_queries_logits"])
        case.check(f"aux.{index}.pred_masks", earlier["masks_queries_logits"], step=2)
    case.check("pred_logits", outputs.class_queries_logits)
    masks = torch.nn.functional.interpolate(outputs.masks_queries_logits, size=(512, 512), mode="bilinear")
    case.check("pred_masks", masks, step=16)
    case.check("scores", outputs.semantic_scores, step=16)
    best = (
        class_scores(outputs.class_queries_logits, outputs.masks_queries_logits, (512, 512))[0].topk(2, dim=0).values
    )
    clear = best[0] - best[1] > 1e-4
    assert clear.float().mean() > 0.9
    assert torch.equal(outputs.semantic_scores.argmax(1)[0][clear], case.tensors["out.scores_argmax"].long()[0][clear])
    assert_losses(model, outputs.loss_dict, case.meta["losses"])
