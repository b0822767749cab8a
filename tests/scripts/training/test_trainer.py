"""transformers' Trainer with our model and collator, and training in lower precision."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from two_processes import build_trainer

from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts import train as train_command
from scripts.data.augmentation import training_augmentation
from scripts.data.collator import AugmentRows, SegmentationCollator


def test_trainer(model_folder, shapes, tmp_path):
    """transformers' Trainer learns, evaluates, saves."""
    trainer = build_trainer(model_folder, shapes, tmp_path / "trainer", max_steps=12, save_strategy="no")
    assert trainer.label_names == ["mask_labels", "class_labels"]
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 1
    trainer.save_model()
    again = FASegForUniversalSegmentation.from_pretrained(tmp_path / "trainer")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert (tmp_path / "trainer" / "preprocessor_config.json").exists()


def test_trainer_accumulates_the_mean(model_folder, shapes, tmp_path):
    """The forward takes any keyword, which the Trainer could take for a loss that divides by accumulation itself."""
    seen = {}
    for steps in (1, 2):
        settings = {"max_steps": 1, "save_strategy": "no", "gradient_accumulation_steps": steps}
        trainer = build_trainer(model_folder, shapes, tmp_path / str(steps), **settings)
        example = trainer.train_dataset[0]
        trainer.train_dataset = [example] * 8
        torch.manual_seed(0)
        trainer.train()
        seen[steps] = next(row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row)
    assert seen[2] == pytest.approx(seen[1], rel=0.1)


def test_collator_resizes_images_and_leaves_augmented_ones():
    processor = FASegImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, num_labels=3)
    collator = SegmentationCollator(processor)
    rng = np.random.default_rng(0)
    label = np.zeros((32, 48), dtype=np.uint8)
    label[:16] = 2
    label[:, :4] = 255
    row = {
        "image": Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)),
        "label": Image.fromarray(label),
    }
    batch = collator([row, row])
    assert sorted(batch) == ["class_labels", "labels", "mask_labels", "pixel_mask", "pixel_values"]
    assert batch["pixel_values"].shape == (2, 3, 64, 96)
    assert [classes.tolist() for classes in batch["class_labels"]] == [[0, 2], [0, 2]]
    covered = batch["mask_labels"][0].sum(0)
    assert covered[:, :6].sum() == 0 and (covered[:, 12:] == 1).all()
    ids = batch["labels"]
    assert ids.shape == (2, 64, 96) and (ids[:, :, :6] == 255).all()
    assert (ids[:, :30, 12:] == 2).all() and (ids[:, 34:, 12:] == 0).all()

    rows = AugmentRows(training_augmentation(32, 32, scale_range=(1, 1)))({key: [row[key]] for key in row})
    augmented = [{key: value[0] for key, value in rows.items()}]
    assert augmented[0]["image"].shape == (3, 32, 32) and augmented[0]["label"].shape == (32, 32)
    assert collator(augmented)["pixel_values"].shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="give all rows the same transform"):
        collator([row, *augmented])
    with pytest.raises(ValueError, match=r"label map of shape \(32, 48, 3\)"):
        collator([{**row, "label": row["image"]}])


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps the precision of its first use in a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_bf16_trains_on_a_cpu(tiny_recipe, shapes, tmp_path, command, fresh_accelerate):
    losses, weights = {}, {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(True)
        out = tmp_path / precision
        flags = ["--dataset_name", shapes, "--output_dir", out, "--max_train_steps", 2]
        code, printed, errors = command(train_command, tiny_recipe, *flags, "--mixed_precision", precision)
        assert code == 0 and f"mixed precision {precision}" in printed, errors
        weights[precision] = load_file(out / "model.safetensors")
        lines = (out / "train_log.jsonl").read_text().splitlines()
        losses[precision] = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert len(losses["bf16"]) == 2
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05) and losses["bf16"] != losses["no"]
    assert {value.dtype for value in weights["bf16"].values()} == {value.dtype for value in weights["no"].values()}
    assert all(value.isfinite().all() for value in weights["bf16"].values())


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_fp16_is_refused_on_a_cpu(by, tiny_recipe, shapes, tmp_path, command, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    flags = ["--dataset_name", shapes, "--output_dir", tmp_path / "out", "--max_train_steps", 1]
    if by == "flag":
        flags += ["--mixed_precision", "fp16"]
    else:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    code, _, errors = command(train_command, tiny_recipe, *flags)
    assert code == 2 and errors[-1].endswith(
        "--mixed_precision fp16: a CPU has none: give --mixed_precision no, or bf16"
    )
    assert not (tmp_path / "out").exists()


# What the programs on Trainer are cut down by.
SHORT = {
    "docs/training.md": {
        "path/to/dataset": "{data}", "path/to/model": "{model}", "max_steps=1000": "max_steps=2",
        "(512, 512)": "(64, 64)",
    },
}  # fmt: skip


@pytest.mark.parametrize("page", SHORT)
def test_documented_example(page, model_folder, shapes, tmp_path, monkeypatch):
    """The Python blocks on Trainer, with a tiny model and two steps."""
    text = (Path(__file__).parents[3] / page).read_text(encoding="utf-8")
    programs = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    (program,) = (block for block in programs if "Trainer" in block)
    changes = SHORT[page] | {'"outputs/trainer"': '"outputs/trainer", use_cpu=True, report_to="none"'}
    for old, new in changes.items():
        assert old in program
        program = program.replace(old, new.format(data=shapes, model=model_folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = {}
    exec(program, names)
    assert names["trainer"].state.global_step == 2
    assert (tmp_path / "outputs" / "trainer" / "model.safetensors").exists()


@pytest.mark.parametrize("ignored", [0, 255, 7])
def test_collator_ignores_what_the_processor_ignores(ignored):
    """As images and after augmentation, which pads label maps with the ignored id too."""
    label = np.full((24, 24), ignored, dtype=np.uint8)
    label[4:12, 4:12], label[12:20, 12:20] = 1, 2
    row = {"image": Image.new("RGB", (24, 24)), "label": Image.fromarray(label)}
    collator = SegmentationCollator(
        FASegImageProcessor(size={"shortest_edge": 24}, num_labels=3, ignore_index=ignored)
    )
    assert collator([row])["class_labels"][0].tolist() == [1, 2]
    augmentation = training_augmentation(32, 32, scale_range=(1, 1), unlabelled=(ignored,))
    rows = AugmentRows(augmentation)({key: [value] for key, value in row.items()})
    assert collator([{key: value[0] for key, value in rows.items()}])["class_labels"][0].tolist() == [1, 2]
