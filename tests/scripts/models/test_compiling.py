"""`--torch_compile` and `--size_divisor` of the commands that use a trained model."""

from functools import partialmethod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter

from modeling_faseg.pretrained import SegmentationPreTrainedModel
from scripts import predict as predict_command
from scripts.cli.errors import UserError
from scripts.models.compiling import CompileArguments, compile_network


@pytest.fixture
def counter(monkeypatch):
    torch.compiler.reset()
    found = CompileCounter()
    with_counter = partialmethod(SegmentationPreTrainedModel.compile_for_inference, backend=found)
    monkeypatch.setattr(SegmentationPreTrainedModel, "compile_for_inference", with_counter)
    yield found
    torch.compiler.reset()


@pytest.fixture
def photos(tmp_path):
    """Five images of four sizes; shorter sides of 64 make widths of 64 to 112."""
    (folder := tmp_path / "photos").mkdir()
    generator = np.random.default_rng(0)
    for index, (height, width) in enumerate([(64, 64), (64, 80), (64, 112), (64, 80), (128, 160)]):
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.mark.system
@pytest.mark.parametrize(("flags", "graphs"), [([], 3), (["--size_divisor", 128], 1)])
def test_a_folder_is_compiled_once_for_each_size(shapes_model, photos, tmp_path, command, counter, flags, graphs):
    given = [photos, "--model_name_or_path", shapes_model, "--outputs", "labels", *flags]
    for name, compiled in (("plain", []), ("compiled", ["--torch_compile"])):
        code, _, errors = command(predict_command, *given, *compiled, "--output_dir", tmp_path / name)
        assert code == 0, errors
    assert counter.frame_count == graphs  # the widths 64, 96 and 128 of inputs, or 128 alone
    for file in sorted((tmp_path / "plain").rglob("*.png")):
        plain, fast = (np.asarray(Image.open(tmp_path / name / file.name)) for name in ("plain", "compiled"))
        assert (plain == fast).mean() > 0.999


def test_a_divisor_that_is_none_of_the_models_is_refused(shapes_model, photos, tmp_path, command):
    flags = ["--model_name_or_path", shapes_model, "--output_dir", tmp_path / "out", "--size_divisor", 100]
    code, _, errors = command(predict_command, photos, *flags)
    assert code == 2 and "--size_divisor 100: give a multiple of the model's own, 32" in errors[-1]


@pytest.mark.parametrize(("do_pad", "pad_size"), [(False, None), (True, {"height": 512, "width": 512})])
def test_a_divisor_that_would_do_nothing_is_refused(do_pad, pad_size):
    processor = SimpleNamespace(size_divisor=32, do_pad=do_pad, pad_size=pad_size)
    with pytest.raises(
        UserError, match=rf"--size_divisor 64: preprocessor_config\.json has do_pad={do_pad}, pad_size="
    ):
        compile_network(CompileArguments(size_divisor=64), None, processor)
    processor.do_pad, processor.pad_size = True, None
    compile_network(CompileArguments(size_divisor=64), None, processor)
    assert processor.size_divisor == 64
