"""Transformers' Trainer on a tiny model of each kind, and rows to train it on."""

import torch
from tiny_models import tiny_config as faseg_config
from tiny_qlseg import tiny_qlseg_config
from tiny_semask import TINY_BACKBONE
from tiny_semask import tiny_config as semask_config
from transformers import Trainer, TrainingArguments

from image_processing import FASegImageProcessor
from modeling_faseg import (
    FASegForUniversalSegmentation,
    QLSegForSemanticSegmentation,
    SeMaskForSemanticSegmentation,
)
from scripts.data.collator import SegmentationCollator


MODELS = ("faseg", "semask", "qlseg")
HEADS = {"faseg": "class_predictor", "semask": "classifier", "qlseg": "class_predictor"}


def build(kind):
    """A tiny model without dropout; nothing of it is frozen."""
    torch.manual_seed(0)
    if kind == "faseg":
        return FASegForUniversalSegmentation(faseg_config())
    if kind == "qlseg":
        return QLSegForSemanticSegmentation(tiny_qlseg_config(dropout=0.0, drop_path_rate=0.0, init_std=0.2))
    backbone = {**TINY_BACKBONE, "drop_path_rate": 0.0, "semantic_dropout": 0.0}
    return SeMaskForSemanticSegmentation(semask_config(backbone_config=backbone, decoder_dropout=0.0))


def rows(count):
    """Images of 64x64 with label maps of three classes in blocks, a strip of them unlabelled."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        label = torch.randint(0, 3, (8, 8), generator=generator).repeat_interleave(8, 0).repeat_interleave(8, 1)
        label[:4] = 255
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=generator)
        found.append({"image": image, "label": label.to(torch.uint8)})
    return found


def trainer_of(model, folder, data, evaluated=None, callbacks=None, compute_metrics=None, **settings):
    arguments = TrainingArguments(
        str(folder),
        **{
            "remove_unused_columns": False, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
            "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2, "max_steps": 1, **settings,
        },
    )  # fmt: skip
    return Trainer(
        model,
        arguments,
        data_collator=SegmentationCollator(FASegImageProcessor()),
        train_dataset=data,
        eval_dataset=evaluated,
        callbacks=callbacks,
        compute_metrics=compute_metrics,
    )


def one_step(kind, folder, batch, accumulated=1):
    """Loss and norm of the gradient of one step on four images, in batches of so many.

    They are one image, so that batch norms see the same. FASeg draws points, which makes some percent of difference.
    """
    trainer = trainer_of(
        build(kind),
        folder,
        rows(1) * 4,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        learning_rate=0.0,
        max_grad_norm=1e9,
    )
    trainer.train()
    return {name: trainer.state.log_history[0][name] for name in ("loss", "grad_norm")}
