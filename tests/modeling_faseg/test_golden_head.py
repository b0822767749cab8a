"""Pixel and transformer decoder against the reference's recorded outputs and gradients."""

import pytest
import torch

from golden_cases import HEAD_CASES, LOCAL_CASES, head_inputs, head_state_dict, load_case, tiny_config
from modeling_faseg import FASegForUniversalSegmentation
from scripts.models.parameter_names import official_parameter_names


def load_head(tensors, meta):
    config = tiny_config(meta)
    model = FASegForUniversalSegmentation(config).eval()
    missing, unexpected = model.load_state_dict(head_state_dict(tensors, config), strict=False)
    assert not unexpected
    assert all(name.startswith(("model.backbone.", "criterion.")) for name in missing)
    return model


def run_head(model, maps, output_focus=False):
    """Decoded maps, and the class and mask logits of every prediction."""
    decoded = model.model.pixel_decoder(maps)
    queries = model.model.transformer_decoder(
        decoded.feature_maps,
        decoded.positions,
        decoded.mask_features,
        output_all_masks=True,
        output_focus=output_focus,
    )
    class_logits = [model.class_predictor(states) for states in queries.intermediate_states]
    return decoded, queries, list(zip(class_logits, queries.masks_queries_logits))


@pytest.mark.parametrize("name", HEAD_CASES)
def test_outputs(shared, name):
    check_outputs(*load_case(shared, name))


@pytest.mark.parametrize("name", [name for name in LOCAL_CASES if name in HEAD_CASES])
def test_outputs_of_local_copy(name):
    check_outputs(*load_case(None, name))


def check_outputs(tensors, meta):
    model = load_head(tensors, meta)
    with torch.no_grad():
        decoded, _, predictions = run_head(model, head_inputs(tensors))
    compared = 0
    for level, position in enumerate(decoded.positions):
        if f"out/pos_{level}" in tensors:
            expected = tensors[f"out/pos_{level}"].float()
            torch.testing.assert_close(position[: len(expected)], expected, atol=1e-4, rtol=1e-4)
            compared += 1
    names = [*(f"aux{index}." for index in range(len(predictions) - 1)), ""]
    for (class_logits, mask_logits), name in zip(predictions, names, strict=True):
        torch.testing.assert_close(class_logits, tensors[f"out/{name}pred_logits"].float(), atol=1e-4, rtol=0)
        if f"out/{name}pred_masks" in tensors:  # the reduced copy keeps the last masks alone
            torch.testing.assert_close(mask_logits, tensors[f"out/{name}pred_masks"].float(), atol=3e-4, rtol=0)
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", HEAD_CASES)
def test_gradients(shared, name):
    tensors, meta = load_case(shared, name)
    if "grad_norms" not in meta:
        pytest.skip(f"{name} records no gradients")
    model = load_head(tensors, meta)
    _, _, predictions = run_head(model, head_inputs(tensors))
    loss = sum(
        (index + 1) * (class_logits.square().mean() + mask_logits.sin().mean())
        for index, (class_logits, mask_logits) in enumerate(predictions)
    )
    assert loss.item() == pytest.approx(meta["grad_loss"], rel=1e-5)
    loss.backward()
    official = official_gradients(model)
    checked = 0
    for official_name, norm in meta["grad_norms"].items():
        if official_name.endswith("pos_linear.3.bias"):  # mathematically zero: softmax does not see a shift
            continue
        gradient = official[f"sem_seg_head.{official_name}"]
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), official_name
        expected = tensors.get(f"grad/{official_name}")
        if expected is not None:
            relative = (gradient - expected.float()).norm() / expected.float().norm()
            assert relative < 1e-4, official_name
        checked += 1
    assert checked > 50


def official_gradients(model):
    """Gradients under official names; query, key and value are one packed tensor there."""
    gradients: dict[str, list[torch.Tensor]] = {}
    parameters = dict(model.named_parameters())
    for name, official_name in official_parameter_names(model.config).items():
        if name in parameters and parameters[name].grad is not None:
            gradients.setdefault(official_name, []).append(parameters[name].grad)
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in gradients.items()}


@pytest.mark.parametrize("name", HEAD_CASES)
def test_focus(shared, name):
    """HRCA's windows exactly; head-mean attention and positional queries to float noise."""
    tensors, meta = load_case(shared, name)
    model = load_head(tensors, meta)
    with torch.no_grad():
        _, queries, _ = run_head(model, head_inputs(tensors), output_focus=True)
    focus = queries.focus
    num_layers = model.config.decoder_layers
    for index in range(3, num_layers, 4):
        windows, side = focus.hrca_windows[index]
        recorded = tensors[f"mid/hrca_window_index_{index}"].long().reshape(windows.shape[0], -1)
        assert windows.sort().values.equal(recorded.sort().values)
        assert side == 8
    for index in range(0, num_layers, 4):
        attention = focus.focus_maps[index].flatten(2)
        torch.testing.assert_close(attention, tensors[f"mid/attn_headmean_{index}"].float(), atol=1e-5, rtol=0)
    for index in range(1, num_layers):
        recorded = tensors[f"mid/self_query_pos_{index}"].transpose(0, 1)  # (Q, B, C)
        torch.testing.assert_close(focus.positional_queries[index - 1], recorded, atol=1e-4, rtol=1e-4)
