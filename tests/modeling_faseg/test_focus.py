"""`output_focus=True`: where each query looked, what that led to, and that looking changes nothing."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TINY_SWIN, tiny_batch, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from clean_process import run_clean
from image_processing import FASegImageProcessor


FIELDS = ("focus_maps", "positional_queries", "hrca_windows")
ENCODINGS = ("conditional", "sine", "learned")


class Operations(TorchDispatchMode):
    """Names and output shapes of all that torch computes meanwhile."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen.append((str(function), tuple(result.shape) if isinstance(result, torch.Tensor) else None))
        return result


def run(model, images, **kwargs):
    """The output with focus, and what the pixel decoder gave: maps and positions of the levels."""
    decoded = []
    hook = model.model.pixel_decoder.register_forward_hook(lambda *call: decoded.append(call[2]))
    output = model(images, output_focus=True, **kwargs)
    hook.remove()
    return output, decoded[0]


def is_high_resolution(index, model):
    return model.config.use_high_resolution_cross_attention and index % 4 == 3


images_of_any_size = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(2, 4))


@settings(max_examples=8, deadline=None)
@given(size=images_of_any_size, encoding=st.sampled_from(ENCODINGS), omega=st.sampled_from([1, 3, 4, 32]))
@torch.no_grad()
def test_each_query_looks_somewhere_once(size, encoding, omega):
    """Maps sum to one on the level that the layer attends to; HRCA's lie on the windows that it reports."""
    batch, rows, columns = size
    model = tiny_model(positional_encoding_type=encoding, high_resolution_reduction=omega)
    output = model(torch.randn(batch, 3, 32 * rows, 32 * columns), output_focus=True)
    assert len(output.focus_maps) == len(output.hrca_windows) == len(output.positional_queries) == 5
    for index, focus in enumerate(output.focus_maps):
        scale = 2 ** (index % 4)
        assert focus.shape == (batch, 6, scale * rows, scale * columns)
        assert (focus >= 0).all()
        total = focus.flatten(2).sum(-1)
        if index % 4 != 3:
            assert output.hrca_windows[index] is None
            torch.testing.assert_close(total, torch.ones_like(total))
            continue
        windows, side = output.hrca_windows[index]
        assert windows.shape == (batch, rows * columns // omega) and side == 8
        torch.testing.assert_close(total, torch.full_like(total, float(windows.shape[1] > 0)))
        read = torch.zeros(batch, rows * columns).scatter_(1, windows, 1.0).unflatten(1, (rows, columns))
        read = read.repeat_interleave(side, 1).repeat_interleave(side, 2)
        assert (focus * (1 - read)[:, None]).abs().max() == 0


@settings(max_examples=8, deadline=None)
@given(size=images_of_any_size, encoding=st.sampled_from(ENCODINGS))
@torch.no_grad()
def test_a_positional_query_is_the_adapter_of_focused_positions_and_the_learned_part(size, encoding):
    batch, rows, columns = size
    model = tiny_model(positional_encoding_type=encoding)
    output, decoded = run(model, torch.randn(batch, 3, 32 * rows, 32 * columns))
    decoder = model.model.transformer_decoder
    adapter, learned = decoder.focus_queries, decoder.queries_embedder.weight
    for index, (focus, query) in enumerate(zip(output.focus_maps, output.positional_queries)):
        if index % 4 == 3:
            assert query.equal(output.positional_queries[index - 1])
            continue
        focused = torch.einsum("bqhw,bchw->bqc", focus, decoded.positions[index % 4])
        expected = adapter.fc2((adapter.fc1(focused + learned)).relu())
        torch.testing.assert_close(query, expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=8, deadline=None)
@given(size=images_of_any_size, omega=st.sampled_from([1, 2, 3, 5]))
@torch.no_grad()
def test_hrca_reads_the_windows_that_all_queries_together_looked_at_most(size, omega):
    batch, rows, columns = size
    model = tiny_model(high_resolution_reduction=omega, decoder_layers=9)
    output = model(torch.randn(batch, 3, 32 * rows, 32 * columns), output_focus=True)
    for index in (3, 7):
        scores = output.focus_maps[index - 3].sum(1).flatten(1)
        best = scores.sort(dim=1, descending=True).values[:, : rows * columns // omega]
        windows, _ = output.hrca_windows[index]
        assert scores.gather(1, windows).equal(best)
        assert all(len(set(kept)) == len(kept) for kept in windows.tolist())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["inference", "training", "mask_padding", "bfloat16"])
def test_looking_changes_no_logit(implementation, mode):
    """Bit for bit, with the same random numbers in training."""
    model = tiny_model(mask_padding=mode == "mask_padding", dropout=0.2)
    model.set_attn_implementation(implementation)
    images, pixel_mask = tiny_batch()["pixel_values"], torch.ones(2, 64, 96)
    pixel_mask[0, :, 50:] = 0
    if mode == "training":
        model.train()
    if mode == "bfloat16":
        model, images = model.bfloat16(), images.bfloat16()
    outputs = []
    for output_focus in (False, True):
        torch.manual_seed(5)
        with nullcontext() if mode == "training" else torch.no_grad():
            # In training mode batch norms learn from what they see, but do not read it.
            outputs.append(model(images, pixel_mask=pixel_mask, output_focus=output_focus))
    for field in ("class_queries_logits", "masks_queries_logits"):
        assert outputs[0][field].equal(outputs[1][field])
    assert not any(field in outputs[0] for field in FIELDS)
    assert all(field in outputs[1] for field in FIELDS)
    for focus in outputs[1].focus_maps:
        total = focus.flatten(2).sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5 if mode != "bfloat16" else 0.02, rtol=0)


@torch.no_grad()
def test_it_costs_nothing_when_off():
    """The same operations in the same order, of which looking adds some and replaces none."""
    images = tiny_batch()["pixel_values"]
    model = tiny_model()
    counted = []
    for kwargs in ({"output_focus": False}, {"output_focus": True}):
        with Operations() as operations:
            model(images, **kwargs)
        counted.append(operations.seen)
    plain, on = counted
    rest = iter(on)
    assert all(operation in rest for operation in plain)
    # A focus map of level 3 is made for no other purpose.
    scattered = ("aten.scatter.src", (2, 6, 16 * 24))
    assert scattered in on and scattered not in plain


@pytest.mark.parametrize(
    "overrides",
    [
        {"use_dynamic_positional_queries": False},
        {"use_high_resolution_cross_attention": False},
        {"high_resolution_reduction": 32},
        {"backbone_config": dict(TINY_SWIN)},
    ],
    ids=["learned queries", "three levels", "no window", "swin"],
)
@torch.no_grad()
def test_every_variant_tells_its_focus(overrides):
    model = tiny_model(**overrides)
    output = model(tiny_batch()["pixel_values"], output_focus=True)
    for index, focus in enumerate(output.focus_maps):
        total = focus.flatten(2).sum(-1)
        reads = not (is_high_resolution(index, model) and model.config.high_resolution_reduction == 32)
        torch.testing.assert_close(total, torch.full_like(total, float(reads)))
        assert (output.hrca_windows[index] is not None) == is_high_resolution(index, model)
    if not model.config.use_dynamic_positional_queries:
        learned = model.model.transformer_decoder.queries_embedder.weight
        assert all(query.equal(learned.expand(2, -1, -1)) for query in output.positional_queries)


@torch.no_grad()
def test_padding_is_not_looked_at():
    model = tiny_model(mask_padding=True)
    pixel_mask = torch.ones(2, 64, 96)
    pixel_mask[0, :, 32:] = 0
    output = model(tiny_batch()["pixel_values"], pixel_mask=pixel_mask, output_focus=True)
    for index, focus in enumerate(output.focus_maps):
        assert focus[0, :, :, focus.shape[-1] // 3 :].sum() == 0
        expected = torch.ones(2, 6)
        if index == 3:  # two coarse tokens of four that a window takes
            expected[0] = 0
        torch.testing.assert_close(focus.flatten(2).sum(-1), expected)
    windows, _ = output.hrca_windows[3]
    assert windows[0].tolist() == [-1] and windows[1].min() >= 0


def test_gradients_flow_through_every_focus_map_and_positional_query():
    model = tiny_model().train()
    output, decoded = run(model, tiny_batch()["pixel_values"])
    for index, (focus, query) in enumerate(zip(output.focus_maps, output.positional_queries)):
        key = model.model.transformer_decoder.layers[index].cross_attn.k_proj.weight
        (gradient,) = torch.autograd.grad(focus.square().sum(), key, retain_graph=True)
        assert gradient.abs().max() > 0
        level = index % 4 if index % 4 != 3 else 2
        (gradient,) = torch.autograd.grad(query.square().sum(), decoded.positions[level], retain_graph=True)
        assert gradient.abs().max() > 0


@torch.no_grad()
def test_a_tuple_holds_the_same():
    images = tiny_batch()["pixel_values"]
    model = tiny_model()
    for part in (model, model.model):
        named = part(images, output_focus=True)
        plain = part(images, output_focus=True, return_dict=False)
        assert len(plain) == len(named.to_tuple()) == len(part(images, return_dict=False)) + 3
        by_name = dict(zip(named.keys(), plain))
        for field in ("focus_maps", "positional_queries"):
            assert all(ours.equal(theirs) for ours, theirs in zip(named[field], by_name[field], strict=True))
        windows, side = by_name["hrca_windows"][3]
        assert side == 8 and windows.equal(named.hrca_windows[3][0])


@pytest.mark.system
@torch.no_grad()
def test_the_plain_forward_exports_without_it():
    """The graph of the plain forward gives no focus, and the one with it gives what eager gives."""
    model, images = tiny_model(), tiny_batch()["pixel_values"]
    eager = model(images, output_focus=True)
    graphs = {
        output_focus: torch.export.export(model, (images,), {"output_focus": output_focus}, strict=False)
        for output_focus in (False, True)
    }
    assert len(graphs[False].graph.nodes) < len(graphs[True].graph.nodes)
    assert not any(field in graphs[False].module()(images, output_focus=False) for field in FIELDS)
    exported = graphs[True].module()(images, output_focus=True)
    for ours, theirs in zip(eager.focus_maps, exported.focus_maps, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)
    assert exported.hrca_windows[3][0].equal(eager.hrca_windows[3][0])


CLEAN_PROGRAM = """
import torch
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

folder, images, expected = sys.argv[1:]
model = AutoModelForUniversalSegmentation.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    output = model(torch.load(images), output_focus=True)
for ours, theirs in zip(output.focus_maps, torch.load(expected), strict=True):
    torch.testing.assert_close(ours, theirs)
assert [entry is not None for entry in output.hrca_windows] == [False, False, False, True, False]
assert len(output.positional_queries) == 5
print("the same")
"""


@pytest.mark.system
def test_exported_code_gives_the_same_focus_where_the_project_is_not_installed(tmp_path):
    model, images = tiny_model(), tiny_batch()["pixel_values"]
    model.save_pretrained(tmp_path / "saved")
    FASegImageProcessor().save_pretrained(tmp_path / "saved")
    torch.save(images, tmp_path / "images.pt")
    with torch.no_grad():
        torch.save(model(images, output_focus=True).focus_maps, tmp_path / "focus.pt")
    arguments = [str(tmp_path / name) for name in ("saved", "images.pt", "focus.pt")]
    assert run_clean(CLEAN_PROGRAM, arguments, tmp_path).strip() == "the same"
