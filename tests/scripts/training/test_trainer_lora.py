"""LoRA through peft: low-rank weights and the class head learn, everything else stays. Skipped without peft."""

import numpy as np
import pytest
import torch
from tiny_folder import write_model_folder

from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts.data.collator import SegmentationCollator
from scripts.data.synthetic_scenes import draw_sample


peft = pytest.importorskip("peft")

ATTENTION = r".*transformer_decoder.*\.(q_proj|v_proj)"


@pytest.mark.parametrize("targets", ["all-linear", ATTENTION])
def test_lora_trains_and_loads_again(targets, tiny_recipe, tmp_path):

    folder = write_model_folder(tiny_recipe, tmp_path / "tiny")
    rows = [dict(zip(("image", "label"), draw_sample(np.random.default_rng(seed)))) for seed in (0, 1)]
    batch = SegmentationCollator(FASegImageProcessor.from_pretrained(folder))(rows)
    # The adapter holds no statistics of batch norms: they must not move.
    base = FASegForUniversalSegmentation.from_pretrained(folder, freeze_backbone_batch_norm=True)
    settings = peft.LoraConfig(r=4, target_modules=targets, modules_to_save=["class_predictor"])
    model = peft.get_peft_model(base, settings).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name or "class_predictor" in name for name in trained)

    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(**batch).loss
        loss.backward()
        assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == (name not in trained), name

    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(FASegForUniversalSegmentation.from_pretrained(folder), tmp_path / "adapter")
    with torch.no_grad():
        one = model.eval()(pixel_values=batch["pixel_values"]).class_queries_logits
        other = again.eval()(pixel_values=batch["pixel_values"]).class_queries_logits
        merged = again.merge_and_unload().eval()(pixel_values=batch["pixel_values"]).class_queries_logits
    assert torch.allclose(one, other, atol=1e-5)
    assert torch.allclose(one, merged, atol=1e-4)
