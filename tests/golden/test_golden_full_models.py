"""Whole models through the real converter, against the numbers recorded from the reference implementation.

Tolerances: both sides compute in float32 and in another order. The recorded noise between float32 and float64 is about
5e-6 for class logits and 4e-5 for mask logits (1e-4 at full size).
"""

import json

import pytest
import torch
from accelerate import Accelerator

from golden_cases import (
    FULL_CASES,
    FULL_SIZE_CASES,
    auxiliary_outputs,
    hashed_state_dict,
    indexed,
    load_case,
    normalized_batch,
    official_state_dict,
    pad_masks,
    random_numbers,
    replayed_random_numbers,
    tiny_config,
)
from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts.models.parameter_names import convert_state_dict, official_parameter_names
from scripts.training.arguments import TrainArguments
from scripts.training.loop import training_step
from scripts.training.run import Run, build_optimizer


pytestmark = pytest.mark.golden

CLASS_TOLERANCE = 1e-4
MASK_TOLERANCE = 3e-4
FULL_SIZE_MASK_TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 1e-4  # of the largest entry of the tensor
TRAINING_LOSS_TOLERANCE = 1e-3
SCORE_TOLERANCE = 1e-4


def converted_model(tensors, meta):
    config = tiny_config(meta)
    model = FASegForUniversalSegmentation(config)
    model.load_state_dict(convert_state_dict(official_state_dict(tensors), config), strict=True)
    return model.eval()


@torch.no_grad()
def predictions(model, pixel_values):
    """All predictions `[(class logits, mask logits)]`, the final one last."""
    outputs = model(pixel_values, output_auxiliary_logits=True)
    earlier = [(one["class_queries_logits"], one["masks_queries_logits"]) for one in outputs.auxiliary_logits]
    return [*earlier, (outputs.class_queries_logits, outputs.masks_queries_logits)]


def largest_difference(actual, expected):
    assert actual.shape == expected.shape
    return float((actual.float() - expected.float()).abs().max())


def semantic_scores(model, images, target_sizes):
    """Class scores `(K, height, width)` per image through the processor, and its maps."""
    with torch.no_grad():
        outputs = model(normalized_batch(images))
    sizes = {"target_sizes": target_sizes, "input_sizes": [tuple(image.shape[1:]) for image in images]}
    processor = FASegImageProcessor()
    results = processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True, **sizes)
    maps = processor.post_process_semantic_segmentation(outputs, **sizes)
    return [result.segmentation_scores for result in results], maps


def assert_same_map(found, expected, scores):
    """Equal wherever the two best classes are further apart than noise, which most pixels are."""
    best = scores.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-3
    assert clear.float().mean() > 0.5
    assert torch.equal(found[clear], expected.long()[clear])


@pytest.fixture(scope="module")
def narrow():
    """The local case: `(tensors, meta)`."""
    return load_case(None, "full_r50narrow")


def test_every_prediction_of_a_whole_model(narrow):
    tensors, meta = narrow
    found = predictions(converted_model(tensors, meta), normalized_batch(indexed(tensors, "in/image_")))
    names = [*(f"aux{layer}." for layer in range(5)), ""]
    for (classes, masks), name in zip(found, names, strict=True):
        assert largest_difference(classes, tensors[f"out/{name}pred_logits"]) < CLASS_TOLERANCE
        assert largest_difference(masks[..., ::4, ::4], tensors[f"sub4/{name}pred_masks"]) < MASK_TOLERANCE


def test_training_iterations(narrow):
    """Losses, gradients and weights of two optimiser steps on the recorded random numbers, by the step of train.py."""
    tensors, meta = narrow
    recorded = meta["train"]
    model = converted_model(tensors, meta).train()
    official = official_parameter_names(model.config)
    pixel_values = normalized_batch(indexed(tensors, "in/image_"))
    height, width = pixel_values.shape[-2:]
    batch = {
        "pixel_values": pixel_values,
        "mask_labels": [pad_masks(masks.float(), height, width) for masks in indexed(tensors, "train/masks_")],
        "class_labels": indexed(tensors, "train/labels_"),
        "position": (0, 0),
    }
    arguments = TrainArguments(
        learning_rate=1e-4, weight_decay=0.05, max_grad_norm=recorded["clip"], per_device_train_batch_size=2
    )
    optimizer, scheduler = build_optimizer(model, arguments, max_steps=recorded["max_iter"])
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    run = Run(arguments, accelerator, None, prepared, None, optimizer, scheduler, recorded["max_iter"])
    weights = {
        "loss_ce": ("loss_cross_entropy", 2.0),
        "loss_mask": ("loss_mask", 5.0),
        "loss_dice": ("loss_dice", 5.0),
    }
    gradients = {}  # before clipping

    def keep(name):
        def hook(parameter):
            gradients.setdefault(name, parameter.grad.clone())

        return hook

    for name in tensors:
        if name.startswith("train/grad."):
            official_name = name.removeprefix("train/grad.")
            ours = next(key for key, value in official.items() if value == official_name)
            model.get_parameter(ours).register_post_accumulate_grad_hook(keep(official_name))

    for number, iteration in enumerate(recorded["iterations"]):
        assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx(iteration["lrs_used"])
        numbers = random_numbers(tensors, f"train/rand{number}_")
        with replayed_random_numbers(numbers):
            step = training_step(run, iter([{**batch, "names": ["0", "1"]}]))
        (terms,) = step.terms
        for name, expected in iteration["losses_weighted"].items():
            term, _, layer = name.partition("_")[2].partition("_")
            ours, weight = weights[f"loss_{term}"]
            found = weight * terms[ours + (f"_{layer}" if layer else "")]
            assert found == pytest.approx(expected, abs=TRAINING_LOSS_TOLERANCE), name
        assert terms["loss"] == pytest.approx(iteration["total"], rel=1e-5)
        assert len(terms) == 1 + len(iteration["losses_weighted"])
        assert step.grad_norm == pytest.approx(iteration["grad_norm_before_clip"], rel=1e-4)
    assert run.progress.step == len(recorded["iterations"])
    assert_gradients(gradients, tensors)

    ours = {official_name: name for name, official_name in official.items()}
    compared = 0
    for name, value in tensors.items():
        if name.startswith("train/after2."):
            parameter = model.get_parameter(ours[name.removeprefix("train/after2.")])
            before = tensors["param/" + name.removeprefix("train/after2.")].float()
            # Two Adam steps move a weight by up to 2e-4: the movement is compared, not the weight.
            assert largest_difference(parameter.detach() - before, value - before) < 4e-6, name
            compared += 1
    assert compared == 3


def assert_gradients(gradients, tensors):
    """`gradients` by official name."""
    compared = 0
    for name, expected in tensors.items():
        if name.startswith("train/grad."):
            gradient = gradients[name.removeprefix("train/grad.")]
            scale = float(expected.abs().max())
            assert largest_difference(gradient, expected) < GRADIENT_TOLERANCE * scale, name
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("name", FULL_CASES)
def test_backbone_maps_and_predictions(shared, name):
    tensors, meta = load_case(shared, name)
    model = converted_model(tensors, meta)
    pixel_values = normalized_batch(indexed(tensors, "in/image_"))
    assert list(pixel_values.shape) == meta["padded_to"]
    with torch.no_grad():
        maps = model.model.backbone(pixel_values).feature_maps
    for stage, feature_map in enumerate(maps, start=2):
        assert largest_difference(feature_map, tensors[f"mid/res{stage}"]) < 1e-4
    for (classes, masks), (expected_classes, expected_masks) in zip(
        predictions(model, pixel_values), auxiliary_outputs(tensors, final=True), strict=True
    ):
        assert largest_difference(classes, expected_classes) < CLASS_TOLERANCE
        assert largest_difference(masks, expected_masks) < MASK_TOLERANCE


def test_all_recorded_gradients(shared):
    tensors, meta = load_case(shared, "full_r50narrow")
    model = converted_model(tensors, meta).train()
    pixel_values = normalized_batch(indexed(tensors, "in/image_"))
    mask_labels = [pad_masks(masks.float(), *pixel_values.shape[-2:]) for masks in indexed(tensors, "train/masks_")]
    with replayed_random_numbers(random_numbers(tensors, "train/rand0_")):
        loss = model(pixel_values, mask_labels=mask_labels, class_labels=indexed(tensors, "train/labels_")).loss
    loss.backward()
    official = official_parameter_names(model.config)
    gradients = {official[name]: value.grad for name, value in model.named_parameters() if name in official}
    assert_gradients(gradients, tensors)
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE_CASES)
def test_released_architecture_at_full_size(shared, name):
    """Released widths and depths; weights computed from the official names."""
    tensors, meta = load_case(shared, name)
    config = tiny_config({"kind": meta["kind"], "params": {"variant": meta["variant"]}})
    keys = json.loads((shared / "keys" / "faseg" / f"{meta['variant']}.json").read_text())["keys"]
    official = hashed_state_dict(shared, {key: tuple(entry["shape"]) for key, entry in keys.items()}, meta["salt"])
    for key, probe in meta["weight_probe"].items():
        assert official[key].flatten()[: len(probe)].tolist() == probe
    model = FASegForUniversalSegmentation(config)
    official["criterion.empty_weight"] = model.criterion.empty_weight
    model.load_state_dict(convert_state_dict(official, config), strict=True)
    pixel_values = normalized_batch([tensors["in/image"]])
    found = predictions(model.eval(), pixel_values)

    with torch.no_grad():
        maps = model.model.backbone(pixel_values).feature_maps
    for stage, feature_map in enumerate(maps, start=2):
        assert largest_difference(feature_map.mean((2, 3)), tensors[f"mid/res{stage}_channelmean"]) < 1e-4
    assert len(found) == 14
    assert largest_difference(found[-1][0], tensors["out/pred_logits"]) < CLASS_TOLERANCE
    assert largest_difference(found[-1][1], tensors["out/pred_masks"]) < FULL_SIZE_MASK_TOLERANCE
    for layer, (classes, masks) in enumerate(found[:-1]):
        assert largest_difference(classes[0], tensors["out/aux_pred_logits"][layer]) < CLASS_TOLERANCE
        flat = masks[0].flatten(1)
        assert largest_difference(flat.mean(1), tensors["out/aux_pred_masks_mean"][layer]) < FULL_SIZE_MASK_TOLERANCE
        assert largest_difference(flat.std(1), tensors["out/aux_pred_masks_std"][layer]) < FULL_SIZE_MASK_TOLERANCE

    (scores,), (label_map,) = semantic_scores(model, [tensors["in/image"]], [tuple(meta["output_size"])])
    assert largest_difference(scores[:, ::8, ::8], tensors["out/sem_seg_sub8"]) < FULL_SIZE_MASK_TOLERANCE
    assert_same_map(label_map, tensors["out/sem_seg_argmax"], scores)


def test_semantic_map_of_local_case(narrow):
    tensors, meta = narrow
    sizes = [(image["height"], image["width"]) for image in meta["images"]]
    scores, maps = semantic_scores(converted_model(tensors, meta), indexed(tensors, "in/image_"), sizes)
    assert_same_map(maps[1], tensors["out/sem_seg_argmax_1"], scores[1])


@pytest.mark.parametrize("name", FULL_CASES)
def test_semantic_scores(shared, name):
    tensors, meta = load_case(shared, name)
    sizes = [(image["height"], image["width"]) for image in meta["images"]]
    found, maps = semantic_scores(converted_model(tensors, meta), indexed(tensors, "in/image_"), sizes)
    assert len(found) == len(sizes)
    for index, scores in enumerate(found):
        assert largest_difference(scores, tensors[f"out/sem_seg_{index}"]) < SCORE_TOLERANCE
        assert_same_map(maps[index], tensors[f"out/sem_seg_argmax_{index}"], tensors[f"out/sem_seg_{index}"])


@pytest.mark.parametrize("name", FULL_CASES)
def test_average_over_scales_and_flips(shared, name):
    """Test-time augmentation: scores of each view at the original size, flipped back, then the plain mean."""
    tensors, meta = load_case(shared, name)
    model = converted_model(tensors, meta)
    height, width = meta["params"]["tta"]["image"][2:]
    total = torch.zeros_like(tensors["tta/sem_seg"])
    for view, augmentation in zip(indexed(tensors, "tta/aug_image_"), meta["tta"]["augmentations"], strict=True):
        (scores,), _ = semantic_scores(model, [view], [(height, width)])
        total += scores.flip(-1) if augmentation["flip"] else scores
    average = total / len(meta["tta"]["augmentations"])
    assert largest_difference(average, tensors["tta/sem_seg"]) < SCORE_TOLERANCE
    assert_same_map(average.argmax(0), tensors["tta/argmax"], average)
