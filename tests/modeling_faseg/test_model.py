"""Contracts of the model: shapes, dtypes, switches, gradients, saving."""

import pytest
import torch
from tiny_models import TINY_SWIN, tiny_batch, tiny_config, tiny_model

from modeling_faseg import FASegForUniversalSegmentation, deformable_sampling, forms_faseg
from modeling_faseg.dfpq_faseg import FASegFocusQueries
from modeling_faseg.hrca_faseg import FASegCrossAttention, FASegWindows


def test_output_shapes():
    output = tiny_model()(tiny_batch()["pixel_values"], output_hidden_states=True, output_auxiliary_logits=True)
    assert output.class_queries_logits.shape == (2, 6, 4)
    assert output.masks_queries_logits.shape == (2, 6, 16, 24)
    assert len(output.auxiliary_logits) == 5
    assert [tuple(level.shape[-2:]) for level in output.encoder_hidden_states] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert len(output.pixel_decoder_hidden_states) == 4
    assert len(output.transformer_decoder_hidden_states) == 6
    assert output.loss is None


def test_auxiliary_logits_only_when_asked_for():
    batch = tiny_batch()
    model = tiny_model()
    assert model(**batch).auxiliary_logits is None
    assert tiny_model(output_auxiliary_logits=True)(batch["pixel_values"]).auxiliary_logits is not None


def test_the_last_prediction_is_the_same_with_and_without_the_others():
    images = tiny_batch()["pixel_values"]
    model = tiny_model()
    alone, together = model(images), model(images, output_auxiliary_logits=True)
    assert alone.masks_queries_logits.equal(together.masks_queries_logits)


def test_image_size_must_be_a_multiple_of_32():
    with pytest.raises(ValueError, match="pixel_values are 64x100, need multiples of 32"):
        tiny_model()(torch.zeros(1, 3, 64, 100))


def test_labels_of_another_size_are_refused():
    batch = tiny_batch()
    batch["mask_labels"][1] = batch["mask_labels"][1][:, :32]
    with pytest.raises(
        ValueError, match=r"mask_labels of image 1 of the batch are \(32, 96\), pixel_values \(64, 96\)"
    ):
        tiny_model()(**batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_train(dtype):
    model = tiny_model().to(dtype).train()
    batch = tiny_batch()
    output = model(batch["pixel_values"].to(dtype), batch["mask_labels"], batch["class_labels"])
    output.loss.backward()
    assert output.masks_queries_logits.dtype == dtype
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("backbone", [None, TINY_SWIN], ids=["resnet", "swin"])
def test_autocast_trains(backbone):
    model = tiny_model(**({"backbone_config": dict(backbone)} if backbone else {})).train()
    decoded_dtypes = []
    model.model.pixel_decoder.register_forward_hook(lambda *call: decoded_dtypes.append(call[2].mask_features.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**tiny_batch()).loss
    loss.backward()
    assert loss.isfinite()
    assert decoded_dtypes == [torch.float32]


def test_gradient_checkpointing_gives_the_same_gradients():
    batch = tiny_batch()
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        model(**batch).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-5)


def test_sdpa_equals_eager():
    images = tiny_batch()["pixel_values"]
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = tiny_model()
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        outputs.append(model(images).masks_queries_logits)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_attentions_are_returned_by_eager_attention():
    model = tiny_model()
    model.set_attn_implementation("eager")
    attentions = model(tiny_batch()["pixel_values"], output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(2, 4, 6, 6)] * 5
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(2, 4, 6))


@pytest.mark.parametrize("encoding", ["conditional", "sine", "learned"])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("high_resolution", [True, False])
def test_every_ablation_trains_all_its_parameters(encoding, dynamic, high_resolution):
    model = tiny_model(
        positional_encoding_type=encoding,
        use_dynamic_positional_queries=dynamic,
        use_high_resolution_cross_attention=high_resolution,
    ).train()
    loss = model(**tiny_batch()).loss
    loss.backward()
    assert loss.isfinite()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_ablations_change_the_output():
    images = tiny_batch()["pixel_values"]
    plain = tiny_model()
    outputs = [plain(images).masks_queries_logits]
    for overrides in ({"use_dynamic_positional_queries": False}, {"use_high_resolution_cross_attention": False}):
        ablated = tiny_model(**overrides)
        weights = {name: value for name, value in plain.state_dict().items() if name in ablated.state_dict()}
        weights["model.transformer_decoder.level_embed.weight"] = plain.state_dict()[
            "model.transformer_decoder.level_embed.weight"
        ][: ablated.model.transformer_decoder.num_levels]
        ablated.load_state_dict(weights)
        outputs.append(ablated(images).masks_queries_logits)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)


def test_uniform_attention_focuses_on_the_mean_position():
    focus_queries = FASegFocusQueries(8)
    positions = torch.randn(2, 10, 8)
    learned = torch.randn(3, 8)
    uniform = torch.full((2, 3, 10), 0.1)
    mean = positions.mean(1, keepdim=True) + learned
    expected = focus_queries.fc2(focus_queries.fc1(mean).relu())
    torch.testing.assert_close(focus_queries(uniform, positions, learned), expected)


def test_hrca_with_every_window_is_full_attention(monkeypatch):
    """Keeping all windows attends to all of level 3: the order of keys does not matter."""
    images = tiny_batch()["pixel_values"]
    model = tiny_model(high_resolution_reduction=1)
    decoder = model.model.transformer_decoder
    expected = model(images).masks_queries_logits

    def whole_level(windows, feature_map, positions, level_embed):
        values = feature_map.flatten(2).transpose(1, 2) + decoder.level_embed.weight[3]
        return values + positions.flatten(2).transpose(1, 2), values

    monkeypatch.setattr(FASegWindows, "read", whole_level)
    torch.testing.assert_close(model(images).masks_queries_logits, expected, rtol=1e-4, atol=1e-5)


def test_permuted_queries_permute_the_output():
    images = tiny_batch()["pixel_values"]
    model = tiny_model()
    expected = model(images)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for embedding in (
        model.model.transformer_decoder.queries_features,
        model.model.transformer_decoder.queries_embedder,
    ):
        embedding.weight.data = embedding.weight.data[order]
    permuted = model(images)
    torch.testing.assert_close(
        permuted.masks_queries_logits, expected.masks_queries_logits[:, order], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        permuted.class_queries_logits, expected.class_queries_logits[:, order], rtol=1e-4, atol=1e-5
    )


def test_small_images_keep_no_window_unless_asked_to():
    images = torch.randn(1, 3, 64, 64)
    kept = {}
    for minimum in (0, 1):
        model = tiny_model(high_resolution_reduction=32, high_resolution_min_windows=minimum)
        kept[minimum] = model(images, output_focus=True).hrca_windows[3][0].shape[1]
    assert kept == {0: 0, 1: 1}


def test_attention_without_keys_is_the_output_bias():
    attention = FASegCrossAttention(tiny_config(), 4)
    queries, nothing = torch.randn(2, 6, 32), torch.zeros(2, 0, 32)
    output, weights = attention(queries, nothing, nothing, in_windows=True)
    assert weights is None
    torch.testing.assert_close(output, attention.o_proj.bias.expand(2, 6, -1))


def test_another_label_set_keeps_everything_but_the_class_head(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = FASegForUniversalSegmentation.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert loaded.class_predictor.weight.shape == (8, 32)
    assert loaded.criterion.empty_weight.tolist() == [1.0] * 7 + [pytest.approx(0.1)]
    assert loaded.model.pixel_decoder.level_embed.equal(model.model.pixel_decoder.level_embed)


def test_initialisation_of_the_reference():
    decoder = tiny_model().model.transformer_decoder
    layer = decoder.layers[0]
    bound = (6 / (4 * 32)) ** 0.5  # Xavier of the packed query, key and value matrix
    assert layer.cross_attn.q_proj.weight.abs().max() <= bound
    assert layer.cross_attn.q_proj.weight.abs().max() > 0.95 * bound
    assert not layer.cross_attn.o_proj.bias.any()
    assert layer.fc1.bias.any()
    offsets = tiny_model().model.pixel_decoder.layers[0].self_attn.sampling_offsets
    assert not offsets.weight.any()
    torch.testing.assert_close(offsets.bias.view(4, 3, 4, 2)[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2])
def test_tokens_a_few_at_a_time_are_tokens_all_at_once(monkeypatch, batch_size):
    """On a CPU the encoder goes through its tokens in parts, of which these images have but one."""
    images = torch.randn(batch_size, 3, 96, 64)
    expected = tiny_model()(images)
    monkeypatch.setattr(deformable_sampling, "BAG_BYTES", 10_000)
    monkeypatch.setattr(forms_faseg, "TOKENS_AT_ONCE", 7)
    found = tiny_model()(images)
    torch.testing.assert_close(found.masks_queries_logits, expected.masks_queries_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.class_queries_logits, expected.class_queries_logits, atol=1e-5, rtol=1e-5)
