"""Run by `accelerate launch` in two gloo processes for test_two_processes.py; leaves its findings in a folder.

`two_processes.py FOLDER MODEL_FOLDER SHAPES`: FOLDER gets `rank<r>.json` and, by part, files of its own. PYTHONPATH
holds the project and the folders of the tests' helpers.
"""

import json
import sys
import traceback
from pathlib import Path
from unittest import mock

import datasets
import torch
from accelerate import Accelerator
from backbone_cases import backbone_of
from safetensors.torch import save_file
from tiny_models import TINY_SWIN, tiny_config
from tiny_trainers import MODELS, one_step
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainingArguments

from modeling_faseg import FASegForUniversalSegmentation
from scripts import predict as predict_command
from scripts.cli.parser import parse_arguments
from scripts.data.augmentation import training_augmentation
from scripts.data.collator import AugmentRows, SegmentationCollator
from scripts.training.optimization import build_parameter_groups


IMAGES = 4
COUNTS = {"equal": [2, 1, 1, 2], "unequal": [3, 2, 1, 0]}  # targets per image
SIDE = 64


def shared_rand(*size, device=None):
    """`torch.rand` whose points are the same for every mask, however many there are."""
    generator = torch.Generator().manual_seed(1)
    return torch.Tensor(1, *size[1:]).uniform_(generator=generator).expand(size).to(device)


def fixed_batch(counts):
    """Four images with so many targets each."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator)
    masks = [(torch.rand(count, SIDE, SIDE, generator=generator) > 0.6).float() for count in counts]
    classes = [torch.arange(count) % 3 for count in counts]
    return images, masks, classes


def gradients(counts, ranks=1, rank=0, accelerator=None, **overrides):
    """Gradients by name, and the loss, of this rank's share of the batch; norms are frozen, as the reference's."""
    torch.manual_seed(0)
    model = FASegForUniversalSegmentation(tiny_config(freeze_backbone_batch_norm=True, **overrides)).train()
    prepared = accelerator.prepare(model) if accelerator else model
    own = slice(rank * IMAGES // ranks, (rank + 1) * IMAGES // ranks)
    images, masks, classes = (part[own] for part in fixed_batch(counts))
    with mock.patch("torch.rand", shared_rand):
        loss = prepared(pixel_values=images, mask_labels=masks, class_labels=classes).loss
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}, loss.item()


VARIANTS = {
    "full": {},
    "no DFPQ": {"use_dynamic_positional_queries": False},
    "no HRCA": {"use_high_resolution_cross_attention": False},
    "Mask2Former": {"use_dynamic_positional_queries": False, "use_high_resolution_cross_attention": False},
    "sine": {"positional_encoding_type": "sine"},
    "learned": {"positional_encoding_type": "learned"},
    "sine, no DFPQ": {"positional_encoding_type": "sine", "use_dynamic_positional_queries": False},
    "learned, no DFPQ": {"positional_encoding_type": "learned", "use_dynamic_positional_queries": False},
    "last layer alone": {"use_auxiliary_loss": False},
    "projection enforced": {"enforce_input_projection": True},
    "padding masked": {"mask_padding": True, "exclude_ignored_pixels": True},
    "one window kept": {"high_resolution_reduction": 64, "high_resolution_min_windows": 1},
    "one decoder layer": {"decoder_layers": 1},
    "one HRCA layer's weights": {"high_resolution_sharing": "shared", "decoder_layers": 9},
    "HRCA by the layers before": {"high_resolution_sharing": "reused", "decoder_layers": 9, "checkpointing": True},
    "swin": {"backbone_config": {**TINY_SWIN, "depths": [1, 1, 1, 1]}},
    "bit": {"backbone_config": backbone_of("bit")},
    "maskformer-swin": {"backbone_config": backbone_of("maskformer-swin")},
    "pp_lcnet_v3": {"backbone_config": backbone_of("pp_lcnet_v3")},
    "frozen backbone": {"freeze": True},
    "gradient checkpointing": {"checkpointing": True},
}
IN_TWO_PROCESSES = [
    "full", "Mask2Former", "last layer alone", "swin", "bit", "maskformer-swin", "pp_lcnet_v3", "frozen backbone",
    "gradient checkpointing", "one HRCA layer's weights", "HRCA by the layers before",
]  # fmt: skip


def build_variant(freeze=False, checkpointing=False, **overrides):
    """Tiny model of a variant, with equal weights in all processes."""
    torch.manual_seed(0)
    model = FASegForUniversalSegmentation(tiny_config(**overrides)).train()
    if freeze:
        model.model.backbone.requires_grad_(False)
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model


def variant_loss(model, counts, indices):
    """Loss of some of the four images, with so many targets each."""
    images, masks, classes = (part[indices] for part in fixed_batch(counts))
    pixel_mask = torch.ones(len(images), SIDE, SIDE)
    return model(pixel_values=images, pixel_mask=pixel_mask, mask_labels=masks, class_labels=classes).loss


def train_variant(accelerator, **variant):
    """Two optimiser steps, in the first of which the second process has no target at all."""
    model = build_variant(**variant)
    optimizer = torch.optim.AdamW(
        [{"params": group["params"], "lr": group["lr"]} for group in build_parameter_groups(model, 1e-3, 0.0)]
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    first = 2 * accelerator.process_index
    for counts in ([2, 1, 0, 0], [1, 1, 2, 1]):
        accelerator.backward(variant_loss(model, counts, slice(first, first + 2)))
        accelerator.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()
    weights = torch.cat([value.detach().flatten() for value in model.parameters()])
    everyone = accelerator.gather(weights).view(accelerator.num_processes, -1)
    accelerator.free_memory()
    return bool(torch.equal(everyone[0], everyone[1]) and everyone.isfinite().all())


def sharded_against_copied(accelerator):
    """Largest difference of any weight after two steps of FSDP2, by its layers, and of DDP; names of the full state.

    Accelerate offers FSDP2 on GPUs alone: torch's own `fully_shard` is what it calls there.
    """
    weights = []
    first = 2 * accelerator.process_index
    for sharded in (True, False):
        model = build_variant(freeze_backbone_batch_norm=True)
        if sharded:
            layers = [layer for layer in model.modules() if type(layer).__name__ in model._no_split_modules]
            for module in [*layers, model]:
                fully_shard(module, mesh=init_device_mesh("cpu", (accelerator.num_processes,)))
        else:
            model = accelerator.prepare(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            torch.manual_seed(step)
            variant_loss(model, COUNTS["unequal"], slice(first, first + 2)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        options = StateDictOptions(full_state_dict=True)
        weights.append(get_model_state_dict(accelerator.unwrap_model(model), options=options))
    difference = max(float((value - weights[1][name]).abs().max()) for name, value in weights[0].items())
    moved = max(float((value - weights[1][name]).abs().max()) for name, value in build_variant().state_dict().items())
    accelerator.free_memory()
    return {"difference": difference, "moved": moved, "same names": weights[0].keys() == weights[1].keys()}


def build_trainer(model_folder, shapes, output_dir, **settings):
    """Trainer on the generated data, as docs/training.md has it."""
    from image_processing import FASegImageProcessor

    model = FASegForUniversalSegmentation.from_pretrained(model_folder)
    processor = FASegImageProcessor.from_pretrained(model_folder)
    data = datasets.load_dataset(str(shapes), cache_dir=str(Path(output_dir).parent / "cache"))
    augmentation = training_augmentation(64, 64, scale_range=(0.5, 1))
    arguments = TrainingArguments(
        output_dir=str(output_dir), remove_unused_columns=False, prediction_loss_only=True, use_cpu=True,
        per_device_train_batch_size=2, per_device_eval_batch_size=2, learning_rate=1e-3, max_grad_norm=1.0,
        report_to="none", disable_tqdm=True, logging_steps=1, seed=0, **settings,
    )  # fmt: skip
    return Trainer(
        model,
        arguments,
        train_dataset=data["train"].with_transform(AugmentRows(augmentation)),
        eval_dataset=data["validation"],
        data_collator=SegmentationCollator(processor),
        processing_class=processor,
    )


def main(folder, model_folder, shapes):
    """Every part, in both processes."""
    accelerator = Accelerator()
    rank = accelerator.process_index
    found = {"processes": accelerator.num_processes, "type": str(accelerator.distributed_type), "variants": {}}
    for counts in COUNTS:
        values, found[f"loss {counts}"] = gradients(COUNTS[counts], 2, rank, accelerator)
        if rank == 0:
            save_file({name: value.contiguous() for name, value in values.items()}, folder / f"{counts}.safetensors")
        accelerator.free_memory()
    values, _ = gradients(COUNTS["unequal"], 2, rank, accelerator, class_weight=0.0)
    if rank == 0:
        save_file({name: value.contiguous() for name, value in values.items()}, folder / "masks.safetensors")
    accelerator.free_memory()
    for name in IN_TWO_PROCESSES:
        try:
            found["variants"][name] = train_variant(accelerator, **VARIANTS[name])
        except Exception:  # whatever it is, the test of this variant shows it; the other process goes on
            found["variants"][name] = traceback.format_exc(limit=-2)

    found["sharded"] = sharded_against_copied(accelerator)
    found["one step"] = {kind: one_step(kind, folder / "trainer", batch=2) for kind in MODELS}
    trainer = build_trainer(model_folder, shapes, folder / "trainer", max_steps=3, save_strategy="no")
    trainer.train()
    found["eval_loss"] = trainer.evaluate()["eval_loss"]
    found["losses"] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    trainer.save_model()
    (folder / f"rank{rank}.json").write_text(json.dumps(found))

    flags = ["--model_name_or_path", model_folder, "--dataset_name", shapes, "--split_name", "train"]
    flags += ["--rows_per_shard", "2", "--dataloader_num_workers", "0", "--output_dir", str(folder / "predictions")]
    predict_command.predict(parse_arguments(predict_command.PredictArguments, flags, images="images"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
