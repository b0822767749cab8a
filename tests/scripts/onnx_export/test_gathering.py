"""Samples of maps by plain gathers equal `grid_sample`; what a file holds of `GridSample` is found."""

import onnx
import pytest
import torch
from onnx.helper import make_graph, make_model, make_node
from torch import nn

from modeling_faseg import deformable_attention
from modeling_faseg.deformable_sampling import sample_by_grid
from modeling_faseg.position_encoding import FASegLearnedPositionEncoding
from scripts import export_onnx
from scripts.cli.errors import UserError
from scripts.onnx_export import gathering


SHAPES = {"several levels": [(3, 5), (6, 10), (12, 20)], "one pixel": [(1, 1), (1, 7), (9, 1)]}


@pytest.mark.parametrize("spread", [1.0, 1.6, 50.0])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_gathered_maps_equal_grid_sample(shapes, spread):
    """Inside, on borders and far outside, for batches and heads."""
    num_tokens = sum(height * width for height, width in shapes)
    value = torch.randn(2, num_tokens, 2, 4)
    locations = (torch.rand(2, num_tokens, 2, len(shapes), 3, 2) - 0.5) * spread + 0.5
    locations[:, 0], locations[:, -1] = 0, 1
    weights = torch.randn(locations.shape[:-1])
    expected = sample_by_grid(value, shapes, locations, weights)
    found = gathering.sample_maps(value, shapes, locations, weights)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_gathered_grid_sample_equals_torch(padding_mode):
    maps, grid = torch.randn(2, 3, 5, 7), 3 * torch.rand(2, 4, 6, 2) - 1.5
    settings = {"mode": "bilinear", "padding_mode": padding_mode, "align_corners": False}
    expected = nn.functional.grid_sample(maps, grid, **settings)
    torch.testing.assert_close(gathering.grid_sample(maps, grid, **settings), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"mode": "nearest"}, {"align_corners": True}, {"padding_mode": "reflection"}])
def test_other_modes_are_refused(settings):
    with pytest.raises(NotImplementedError, match=f"{next(iter(settings))} {next(iter(settings.values()))}"):
        gathering.grid_sample(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 2), **settings)


def test_models_gather_inside_the_block_only(monkeypatch):
    """Learned positions, which are no part of deformable attention, do so too."""
    encoding, features = FASegLearnedPositionEncoding(4, grid_size=6), torch.zeros(1, 4, 5, 9)
    nn.init.normal_(encoding.table)
    usual = nn.functional.grid_sample, deformable_attention.sample_maps
    expected = encoding(features)
    with monkeypatch.context() as patch, gathering.gathered():
        patch.setattr(torch, "grid_sampler", None)  # what torch's own function calls
        torch.testing.assert_close(encoding(features), expected, atol=1e-5, rtol=1e-5)
        assert deformable_attention.sample_maps is gathering.sample_maps
    assert (nn.functional.grid_sample, deformable_attention.sample_maps) == usual


def a_file(inner):
    """A graph whose only node is a branch that holds `inner`."""
    branch = make_graph([make_node(inner, ["x", "y"], ["z"], name="deep")], "branch", [], [])
    node = make_node("If", ["condition"], ["out"], then_branch=branch, else_branch=branch)
    return make_model(make_graph([node], "graph", [], []))


def test_nodes_inside_nodes_are_found():
    assert gathering.grid_samples(a_file("GridSample")) == ["deep", "deep"]
    assert gathering.grid_samples(a_file("Add")) == []
    function = onnx.helper.make_function("own", "f", [], [], [make_node("GridSample", ["x", "y"], ["z"])], [])
    file = make_model(make_graph([], "graph", [], []), functions=[function])
    assert gathering.grid_samples(file) == ["z"]


def test_the_command_says_what_the_graph_holds():
    assert export_onnx.grid_sample_nodes(a_file("Add"), "gather") == "no GridSample node among the 1 of the graph"
    assert "give --deformable gather" in export_onnx.grid_sample_nodes(a_file("GridSample"), "grid_sample")
    with pytest.raises(UserError, match=r"--deformable gather: the graph still holds GridSample \(deep\)"):
        export_onnx.grid_sample_nodes(a_file("GridSample"), "gather")
