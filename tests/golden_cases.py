"""The recorded numbers of the reference implementation, as this project's configs, state dicts and inputs.

A case is `<name>.safetensors` and `<name>.json`. Tensor prefixes: `param/` official state dict (stored in half
precision, exactly representable), `in/`, `out/`, `mid/`, `grad/`, `rand/` (random numbers in the order they were
drawn), `train/`, `tta/`.
"""

import importlib.util
import json
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


HEAD_CASES = ["head64_enforce_proj", "head64_nonsquare", "head64_omega_zero_windows", "head64_square_omega32"]
FULL_CASES = ["full_r50narrow", "full_swin_w7"]
FULL_SIZE_CASES = ["fullsize_ade20k_r50", "fullsize_ade20k_swin_tiny"]
CRITERION_CASES = ["criterion_b1_more_targets_than_queries", "criterion_b2"]

# Reduced copies of the smallest cases live in the project: tests that use them run without the shared folder.
LOCAL_FOLDER = Path(__file__).parent / "golden"
LOCAL_CASES = ["criterion_b1_more_targets_than_queries", "full_r50narrow", "head64_omega_zero_windows"]

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


def load_case(shared: Path | None, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, meta)` of one case, from the shared folder, or with `shared=None` from `tests/golden/`.

    The copies in `tests/golden/` are reduced: of mask logits they keep every fourth row and column
    (`sub4/`), and training masks, which do not overlap, as one map of labels.
    """
    folder = LOCAL_FOLDER if shared is None else Path(shared) / "golden" / "faseg"
    tensors = load_file(folder / f"{name}.safetensors")
    for image, label_map in enumerate(indexed(tensors, "train/label_map_")):
        tensors[f"train/masks_{image}"] = (label_map == tensors[f"train/labels_{image}"][:, None, None]).to(
            torch.uint8
        )
    return tensors, json.loads((folder / f"{name}.json").read_text())


def official_state_dict(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official state dict of a `full_*` case (official names, floats in float32)."""
    params = _under(tensors, "param/")
    return {name: value.float() if value.is_floating_point() else value for name, value in params.items()}


def head_state_dict(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """This project's state dict of the head of a `head64_*` case, under full names (`model.pixel_decoder...`,
    `model.transformer_decoder...`, `class_predictor...`): every recorded parameter is used, every name filled."""
    from scripts.models.parameter_names import convert_state_dict

    return convert_state_dict(head_official_state_dict(tensors), config, head_only=True)


def head_official_state_dict(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official state dict of a `head64_*` case, in float32, under the names that a whole model has."""
    return {f"sem_seg_head.{name}": value for name, value in official_state_dict(tensors).items()}


def indexed(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
    """`[tensors[prefix + "0"], tensors[prefix + "1"], ...]` up to the first that is missing."""
    found: list[Tensor] = []
    while f"{prefix}{len(found)}" in tensors:
        found.append(tensors[f"{prefix}{len(found)}"])
    return found


def head_inputs(tensors: dict[str, Tensor]) -> list[Tensor]:
    """The backbone's maps of a `head64_*` case, strides 4, 8, 16, 32 (as `AutoBackbone` orders them), float32."""
    return [tensors[f"in/res{stage}"].float() for stage in range(2, 6)]


def auxiliary_outputs(tensors: dict[str, Tensor], final: bool = False) -> list[tuple[Tensor, Tensor]]:
    """`(class logits, mask logits)` of predictions 0.. (those before the final one; with `final=True`, that too)."""
    pairs: list[tuple[Tensor, Tensor]] = []
    while f"out/aux{len(pairs)}.pred_logits" in tensors:
        prefix = f"out/aux{len(pairs)}."
        pairs.append((tensors[prefix + "pred_logits"], tensors[prefix + "pred_masks"]))
    return [*pairs, (tensors["out/pred_logits"], tensors["out/pred_masks"])] if final else pairs


def normalized_batch(images: Iterable[Tensor], divisor: int = 32) -> Tensor:
    """`(B, 3, H, W)` network input of uint8 `(3, h, w)` images as the reference makes it: normalised, then zero-padded
    on the right and below to the largest size, rounded up to a multiple of `divisor`."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    normalized = [(image.float() - mean) / std for image in images]
    height = -(-max(image.shape[1] for image in normalized) // divisor) * divisor
    width = -(-max(image.shape[2] for image in normalized) // divisor) * divisor
    batch = torch.zeros(len(normalized), 3, height, width)
    for canvas, image in zip(batch, normalized, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return batch


def pad_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """`(T, H, W)` float masks on the batch's canvas: zeros on the right and below."""
    canvas = torch.zeros(masks.shape[0], height, width)
    canvas[:, : masks.shape[1], : masks.shape[2]] = masks
    return canvas


def tiny_config(meta: dict[str, Any]) -> Any:
    """The `FASegConfig` of a `full_*`, `fullsize_*` or `head64_*` case.

    Head cases record no backbone: theirs is a ResNet of basic layers that has the recorded channels.
    """
    from configuration import FASegConfig

    params = meta.get("params", meta)
    if meta["kind"] == "head":
        return FASegConfig(
            backbone_config=_resnet(8, params["channels"], [1, 1, 1, 1], layer_type="basic"),
            feature_size=params["hidden"],
            hidden_dim=params["hidden"],
            mask_feature_size=params["mask_dim"],
            encoder_layers=params["enc_layers"],
            encoder_feedforward_dim=params["enc_ff"],
            dim_feedforward=params["dec_ff"],
            decoder_layers=params["dec_layers"],
            num_queries=params["num_queries"],
            high_resolution_reduction=params["omega_rate"],
            enforce_input_projection=params.get("enforce_input_project", False),
            num_labels=params["num_classes"],
            freeze_backbone_batch_norm=True,
        )
    options = dict(zip(params.get("opts", [])[::2], params.get("opts", [])[1::2], strict=True))
    resnet = "swin" not in params["variant"]
    return FASegConfig(
        backbone_config=_official_resnet(options) if resnet else _official_swin(options),
        feature_size=options.get("MODEL.SEM_SEG_HEAD.CONVS_DIM", 256),
        hidden_dim=options.get("MODEL.MASK_FORMER.HIDDEN_DIM", 256),
        mask_feature_size=options.get("MODEL.SEM_SEG_HEAD.MASK_DIM", 256),
        encoder_layers=options.get("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 6),
        encoder_feedforward_dim=1024,
        dim_feedforward=options.get("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 2048),
        decoder_layers=options.get("MODEL.MASK_FORMER.DEC_LAYERS", 14) - 1,
        num_queries=options.get("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 100),
        high_resolution_reduction=params.get("omega_rate", 32),
        num_labels=options.get("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150),
        train_num_points=params.get("train", {}).get("num_points", 12544),
        freeze_backbone_batch_norm=resnet,
    )


@contextmanager
def replayed_random_numbers(numbers: Iterable[Tensor]):
    """Inside the block `torch.rand` gives the recorded tensors in order; a request of another shape is an error, and
    so is a recorded tensor that nobody asked for."""
    queue = list(numbers)
    drawn = 0
    original: Callable[..., Tensor] = torch.rand

    def replay(*size: Any, device: Any = None, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        nonlocal drawn
        shape = tuple(size[0]) if size and not isinstance(size[0], int) else tuple(size)
        if drawn == len(queue):
            raise AssertionError(f"torch.rand{shape} asked for after all {len(queue)} recorded tensors were used")
        value = queue[drawn]
        if tuple(value.shape) != shape:
            raise AssertionError(f"draw {drawn}: torch.rand{shape} asked for, {tuple(value.shape)} recorded")
        drawn += 1
        return value.to(device=device, dtype=dtype)

    torch.rand = replay
    try:
        yield
    finally:
        torch.rand = original
    if drawn != len(queue):
        raise AssertionError(f"only {drawn} of {len(queue)} recorded random tensors were asked for")


def random_numbers(tensors: dict[str, Tensor], prefix: str = "rand/") -> list[Tensor]:
    """The recorded random tensors under `prefix` (`rand/`, `train/rand0_`, `train/rand1_`), in the order drawn."""
    return [tensors[name] for name in sorted(tensors) if name.startswith(prefix)]


def hashed_state_dict(shared: Path, shapes: dict[str, tuple[int, ...]], salt: int) -> dict[str, Tensor]:
    """Official state dict of a `fullsize_*` case: float32 values computed from each name by the recipe beside them.

    `shapes` maps official names to shapes; index buffers, counters and class weights have no computed value and are
    left out.
    """
    spec = importlib.util.spec_from_file_location("hash_weights", shared / "golden" / "faseg" / "hash_weights.py")
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    values = {name: recipe.value(name, shape, salt) for name, shape in shapes.items()}
    return {name: torch.from_numpy(value) for name, value in values.items() if value is not None}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _official_resnet(options: dict[str, Any]) -> dict[str, Any]:
    first = options.get("MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
    stem = options.get("MODEL.RESNETS.STEM_OUT_CHANNELS", 64)
    return _resnet(stem, [first * 2**stage for stage in range(4)], [3, 4, 6, 3])


def _resnet(stem: int, channels: list[int], depths: list[int], layer_type: str = "bottleneck") -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "embedding_size": stem,
        "hidden_sizes": channels,
        "depths": depths,
        "layer_type": layer_type,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }


def _official_swin(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "swin",
        "embed_dim": options.get("MODEL.SWIN.EMBED_DIM", 96),
        "depths": options.get("MODEL.SWIN.DEPTHS", [2, 2, 6, 2]),
        "num_heads": options.get("MODEL.SWIN.NUM_HEADS", [3, 6, 12, 24]),
        "window_size": options.get("MODEL.SWIN.WINDOW_SIZE", 7),
        "drop_path_rate": 0.3,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
