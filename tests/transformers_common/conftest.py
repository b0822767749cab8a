"""Makes Transformers' common tests importable as `tests.*`, as they are in its own repository.

The folder `TRANSFORMERS_TESTS` (set by `run.py`) is the `tests/` folder of its source distribution. That carries the
common tests but not the modules that they import from other test folders; those get stand-ins here.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES


here = Path(__file__).parent
common_tests = Path(os.environ.get("TRANSFORMERS_TESTS", "/nonexistent"))
if not (common_tests / "test_modeling_common.py").is_file():
    raise RuntimeError("Transformers' test folder is not set: run `make test-hf`, which fetches it")


def add_module(name: str, **attributes: object) -> None:
    module = ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


# A module made by hand: on `sys.path`, this checkout's own `tests` folder could answer to the name instead.
add_module("tests", __path__=[str(common_tests)])

# Mixins of tests that live outside the common ones (exporters, generation): this project has its own export tests,
# and segmentation models do not generate.
for name, attributes in {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    # Read for configurations without sub-configurations only; both models' have a backbone.
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}.items():
    if not (common_tests / f"{name.replace('.', '/')}.py").exists():
        add_module(f"tests.{name}", **attributes)


def generated_image(url: str) -> str:
    """A file with an image, in place of the photograph that `url` names: the tests here use no network."""
    rows, columns = np.mgrid[0:480, 0:640]
    waves = [np.sin(rows / 31 + shift) + np.cos(columns / 23 - shift) for shift in (0.0, 0.7, 1.9)]
    image = (np.stack(waves, axis=-1) * 60 + 127).astype(np.uint8)
    image[120:300, 200:420] = (200, 60, 30)
    path = Path(tempfile.gettempdir()) / f"faseg_common_tests_image_{os.getpid()}.png"
    Image.fromarray(image).save(path)
    return str(path)


add_module("fetch_hub_objects_for_ci", url_to_local_path=generated_image)

# A model inside Transformers stands in this table of names; the common tests look there for models without a loss.
MODEL_MAPPING_NAMES |= {"faseg": "FASegModel", "qlseg": "QLSegModel"}

sys.path.insert(0, str(here))

outcome_by_test: dict[str, str] = {}


def pytest_runtest_logreport(report: Any) -> None:
    """Note each test's outcome; a test one of whose subtests was skipped has not passed."""
    test = report.nodeid.rsplit("::", 1)[-1]
    if report.when == "call" or report.outcome != "passed":
        ranks = ("passed", "skipped", "failed")
        known = outcome_by_test.get(test, "passed")
        outcome_by_test[test] = max(known, report.outcome, key=ranks.index)


def pytest_sessionfinish() -> None:
    if "OUTCOMES" in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        Path(os.environ["OUTCOMES"]).write_text(json.dumps(outcome_by_test, indent=1, sort_keys=True))
