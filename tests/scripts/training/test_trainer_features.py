"""What transformers' Trainer offers, with each of the models: evaluation, metrics, the best model, early stopping,
accumulation and LoRA."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_trainers import HEADS, MODELS, build, one_step, rows, trainer_of
from transformers import EarlyStoppingCallback, default_data_collator


@pytest.mark.parametrize("kind", MODELS)
def test_evaluation_has_a_loss(kind, tmp_path):
    """The mean of the model's own losses, without a setting of its labels' names."""
    model = build(kind)
    trainer = trainer_of(model, tmp_path, rows(2), rows(3), prediction_loss_only=True)
    found = trainer.evaluate()["eval_loss"]
    expected = []
    for number, row in enumerate(rows(3)):
        with torch.no_grad():
            torch.manual_seed(number)
            expected.append(model.eval()(**trainer.data_collator([row])).loss.item())
    assert found == pytest.approx(sum(expected) / 3, rel=0.1)


def test_semask_evaluates_label_maps_without_our_collator(tmp_path):
    """As models of transformers for semantic segmentation do, with `pixel_values` and `labels` alone."""
    data = [{"pixel_values": row["image"] / 255, "labels": row["label"]} for row in rows(2)]
    trainer = trainer_of(build("semask"), tmp_path, data, data, compute_metrics=lambda found: {"n": len(found[0])})
    trainer.data_collator = default_data_collator
    result = trainer.evaluate()
    assert result["eval_loss"] > 0 and result["eval_n"] == 2


@pytest.mark.parametrize("kind", MODELS)
def test_metrics_see_label_maps_and_logits(kind, tmp_path):
    seen = {}

    def compute(prediction):
        seen["labels"], seen["predictions"] = prediction.label_ids, prediction.predictions
        return {"score": 0.25}

    model = build(kind)
    data = rows(3)
    trainer = trainer_of(
        model, tmp_path, data, data, compute_metrics=compute, label_names=None if kind == "semask" else ["labels"]
    )
    result = trainer.evaluate()
    assert result["eval_score"] == 0.25 and result["eval_loss"] > 0
    assert (torch.from_numpy(seen["labels"]) == torch.stack([row["label"] for row in data])).all()
    with torch.no_grad():
        outputs = model.eval()(trainer.data_collator(data)["pixel_values"])
    if kind == "faseg":
        expected = (outputs.class_queries_logits, outputs.masks_queries_logits)
    else:
        expected = (outputs.logits if kind == "semask" else outputs.semantic_scores,)
        seen["predictions"] = (seen["predictions"],)
    assert len(seen["predictions"]) == len(expected)
    for found, logits in zip(seen["predictions"], expected):
        torch.testing.assert_close(torch.from_numpy(found), logits, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_stops_early_and_keeps_the_best_model(kind, tmp_path):
    scores = iter([0.1, 0.9, 0.5, 0.7, 0.8])
    trainer = trainer_of(
        build(kind),
        tmp_path,
        rows(2),
        rows(2),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
        compute_metrics=lambda _: {"score": next(scores)},
        label_names=["labels"],
        max_steps=5,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    assert trainer.state.global_step == 3 and trainer.state.best_metric == 0.9
    best, last = (load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (2, 3))
    assert all(value.equal(best[name]) for name, value in trainer.model.state_dict().items() if name in best)
    assert any(not value.equal(last[name]) for name, value in best.items())


@pytest.mark.parametrize("kind", MODELS)
def test_accumulation_is_a_mean(kind, tmp_path):
    """Four images in a batch, or in four micro steps; a sum in place of a mean would be four times as much."""
    whole, parts = (one_step(kind, tmp_path, batch, steps) for batch, steps in ((4, 1), (1, 4)))
    assert parts["loss"] == pytest.approx(whole["loss"], rel=0.1)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=0.2)


@pytest.mark.parametrize(("kind", "saved"), [*HEADS.items(), ("semask", "decoder"), ("faseg", "pixel_decoder")])
def test_lora_trains_nothing_that_is_not_saved(kind, saved, tmp_path):
    """The adapter on the saved base model predicts what the trained model does: batch norms have not moved."""
    peft = pytest.importorskip("peft")
    base = build(kind)
    base.save_pretrained(tmp_path / "base")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=[saved])
    trainer = trainer_of(peft.get_peft_model(base, settings), tmp_path / "runs", rows(2), rows(2), max_steps=3)
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"] == [saved]

    fresh = type(base).from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    images = trainer.data_collator(rows(2))["pixel_values"]
    with torch.no_grad():
        one, other = (each(images) for each in (trainer.model.eval(), again))
        untrained = type(base).from_pretrained(tmp_path / "base").eval()(images)
    name = "logits" if kind == "semask" else "class_queries_logits"
    torch.testing.assert_close(one[name], other[name])
    assert not torch.allclose(one[name], untrained[name], atol=1e-2)
    after = trainer.model.unload().state_dict()
    moved = {name for name, value in before.items() if not value.equal(after[name])}
    assert moved and all(f"{saved}." in name for name in moved)
