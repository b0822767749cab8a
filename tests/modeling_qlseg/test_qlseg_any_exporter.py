"""Exporters that do not know QLSeg write ONNX files that onnxruntime runs, with the model's outputs."""

import pytest
from tiny_qlseg import tiny_qlseg, tiny_qlseg_batch

from plain_onnx import check_plain_export, check_transformers_export


@pytest.mark.system
@pytest.mark.parametrize(
    "check", [check_plain_export, pytest.param(check_transformers_export, marks=pytest.mark.slow)]
)
def test_qlseg_by_any_exporter(check):
    check(tiny_qlseg(decoder_layers=1), tiny_qlseg_batch()["pixel_values"])
