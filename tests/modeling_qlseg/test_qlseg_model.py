"""QLSeg's parts on small models: what each must hold whatever its weights are."""

import pytest
import timm
import torch
from tiny_qlseg import tiny_qlseg, tiny_qlseg_batch, tiny_qlseg_config

from host_waits import host_waits
from modeling_faseg import QLSegForSemanticSegmentation
from modeling_faseg.backbone_qlseg import resize_positions
from modeling_faseg.decoder_qlseg import QLSegAttention


def test_survives_a_folder(tmp_path):
    model = tiny_qlseg()
    model.save_pretrained(tmp_path)
    loaded = QLSegForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_other_classes_renew_head_and_queries(tmp_path):
    tiny_qlseg().save_pretrained(tmp_path)
    model = QLSegForSemanticSegmentation.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert model(**tiny_qlseg_batch()).class_queries_logits.shape == (2, 5, 6)
    assert model.criterion.empty_weight.tolist() == [1, 1, 1, 1, 1, pytest.approx(0.1)]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_similarity_is_the_mean_over_heads(implementation):
    config = tiny_qlseg_config()
    config._attn_implementation = implementation
    attention = QLSegAttention(config).eval()
    queries, tokens = torch.randn(2, 3, 16), torch.randn(2, 20, 16)
    blocked = torch.rand(2, 1, 3, 20) > 0.5
    output, weights, similarity = attention(queries, tokens, blocked, need_similarity=True)
    heads = (attention.q_proj(queries).view(2, 3, 2, 8).transpose(1, 2)) @ (
        attention.k_proj(tokens).view(2, 20, 2, 8).permute(0, 2, 3, 1)
    )
    heads = heads / 8**0.5
    torch.testing.assert_close(similarity, heads.mean(1), atol=1e-5, rtol=1e-5)
    probs = heads.masked_fill(blocked, -torch.inf).softmax(-1)
    values = attention.v_proj(tokens).view(2, 20, 2, 8).transpose(1, 2)
    expected = attention.o_proj((probs @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    assert (weights is None) == (implementation == "sdpa")


def test_a_query_that_would_see_nothing_sees_all():
    decoder = tiny_qlseg().model.decoder
    masks = torch.full((1, 2, 5), -9.0)
    masks[0, 1, 3] = 9.0
    assert decoder._blocked(masks).tolist() == [[[[False] * 5, [True, True, True, False, True]]]]


@torch.no_grad()
def test_class_token_is_dead():
    model, images = tiny_qlseg(), tiny_qlseg_batch()["pixel_values"]
    before = model(images).semantic_scores
    model.model.backbone.cls_token += 1
    model.model.backbone.pos_embed[:, 0] += 1
    assert torch.equal(model(images).semantic_scores, before)
    model.model.backbone.pos_embed[:, 1] += 1
    assert not torch.equal(model(images).semantic_scores, before)


def test_positions_are_resized_without_antialiasing():
    table = torch.randn(1, 1 + 64, 32)
    found = resize_positions(table, (4, 6))
    patches = table[:, 1:].view(1, 8, 8, 32).permute(0, 3, 1, 2)
    plain = torch.nn.functional.interpolate(patches, size=(4, 6), mode="bicubic", align_corners=False)
    smooth = torch.nn.functional.interpolate(patches, size=(4, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(found[:, 1:].transpose(1, 2).unflatten(2, (4, 6)), plain)
    assert (plain - smooth).abs().max() > 0.1
    assert torch.equal(found[:, :1], table[:, :1])


@torch.no_grad()
def test_weights_of_timm_fit_one_to_one():
    """timm's own model of the same shape gives the same maps, with its position embeddings of another size resized."""
    twin = timm.create_model(
        "vit_tiny_patch16_224", img_size=96, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2.0, num_classes=7
    ).eval()
    model = tiny_qlseg(image_size=96)
    weights = {name: value for name, value in twin.state_dict().items() if not name.startswith(("head.", "norm."))}
    model.model.backbone.load_state_dict(weights, strict=True)
    images = torch.randn(1, 3, 96, 96)
    patches = twin.patch_embed(images) + twin.pos_embed[:, 1:]
    for block, tap in zip(twin.blocks, model.model.backbone(images)):
        patches = block(patches)
        torch.testing.assert_close(tap.flatten(2).transpose(1, 2), patches, atol=1e-5, rtol=1e-5)
    smaller = tiny_qlseg(image_size=64).model.backbone
    fitted = smaller.fit_pretrained(weights)
    assert fitted["pos_embed"].shape == smaller.pos_embed.shape
    smaller.load_state_dict(fitted, strict=True)


def test_stochastic_depth_spares_attention():
    blocks = tiny_qlseg(drop_path_rate=0.4).model.backbone.blocks
    assert all(isinstance(block.drop_path1, torch.nn.Identity) for block in blocks)
    assert [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks] == pytest.approx([0.0, 0.2, 0.4])


def test_gradient_checkpointing_changes_no_gradient():
    batch = tiny_qlseg_batch()
    gradients = []
    for checkpointing in (False, True):
        model = tiny_qlseg(dropout=0.0, drop_path_rate=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed)


def test_auxiliary_losses_and_logits():
    batch = tiny_qlseg_batch()
    outputs = tiny_qlseg()(**batch, output_auxiliary_logits=True)
    assert len(outputs.auxiliary_logits) == 1 and len(outputs.loss_dict) == 6
    alone = tiny_qlseg(use_auxiliary_loss=False)(**batch)
    assert set(alone.loss_dict) == {"loss_cross_entropy", "loss_mask", "loss_dice"}
    weights = {"loss_cross_entropy": 1, "loss_mask": 20, "loss_dice": 1}
    assert alone.loss.item() == pytest.approx(
        sum(weights[name] * value.item() for name, value in alone.loss_dict.items())
    )


def test_images_without_labels():
    batch = tiny_qlseg_batch(targets=(0, 0))
    outputs = tiny_qlseg().train()(**batch)
    outputs.loss.backward()
    assert outputs.loss_dict["loss_mask"] == 0 and outputs.loss_dict["loss_dice"] == 0 < outputs.loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_labels": [torch.tensor([0, 3]), torch.tensor([0])]}, "label 3 in image 0 of the batch but 3 classes"),
        ({"class_labels": [torch.tensor([0]), torch.tensor([0])]}, "2 mask_labels and 1 class_labels"),
        ({"mask_labels": [torch.full((2, 64, 64), 255.0), torch.zeros(1, 64, 64)]}, "divide by 255"),
        ({"mask_labels": [torch.zeros(2, 32, 64), torch.zeros(1, 64, 64)]}, r"are \(32, 64\), pixel_values"),
        ({"class_labels": None}, "mask_labels without class_labels"),
        ({"pixel_mask": torch.ones(2, 64, 32)}, "one value per pixel"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_qlseg()(**{**tiny_qlseg_batch(), **change})


def test_a_training_step_waits_once_for_the_labels_ranges():
    model = tiny_qlseg().train()
    with host_waits() as waits:
        model(**tiny_qlseg_batch()).loss.backward()
    assert waits.transfers == [[(2, 4)]] and waits.found == []


def test_learns_two_images():
    """Two images of two classes each: the loss falls to a third."""
    torch.manual_seed(0)
    model = QLSegForSemanticSegmentation(tiny_qlseg_config(dropout=0.0, drop_path_rate=0.0)).train()
    batch = tiny_qlseg_batch(targets=(2, 2))
    half = torch.zeros(64, 64)
    half[:, 32:] = 1
    batch["mask_labels"] = [torch.stack((half, 1 - half)), torch.stack((half.T, 1 - half.T))]
    batch["pixel_values"][:, 0] += 3 * torch.stack((half, half.T))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    with torch.no_grad():
        classes = model.eval()(batch["pixel_values"]).semantic_scores.argmax(1)
    assert ((classes[0] == 0) == half.bool()).float().mean() > 0.9
