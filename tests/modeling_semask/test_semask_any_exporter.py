"""Exporters that do not know SeMask write ONNX files that onnxruntime runs, with the model's outputs."""

import pytest
from tiny_semask import tiny_batch, tiny_model

from plain_onnx import check_plain_export, check_transformers_export


@pytest.mark.system
@pytest.mark.parametrize(
    "check", [check_plain_export, pytest.param(check_transformers_export, marks=pytest.mark.slow)]
)
def test_semask_by_any_exporter(check):
    check(tiny_model(), tiny_batch((64, 96))["pixel_values"])
