"""Exporters that do not know FASeg write ONNX files that onnxruntime runs, with the model's outputs."""

import pytest
from tiny_models import tiny_batch, tiny_model

from plain_onnx import check_plain_export, check_transformers_export


@pytest.mark.system
@pytest.mark.parametrize(
    "check", [check_plain_export, pytest.param(check_transformers_export, marks=pytest.mark.slow)]
)
def test_faseg_by_any_exporter(check):
    check(tiny_model(), tiny_batch()["pixel_values"])


@pytest.mark.system
def test_layers_that_share_weights_by_any_exporter():
    check_plain_export(tiny_model(high_resolution_sharing="reused"), tiny_batch()["pixel_values"])
