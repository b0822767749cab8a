"""Benchmarks and tests on a GPU run where the packages that read data are not installed."""

import subprocess
import sys

import pytest

from scripts.cli.parser import PROJECT_ROOT


@pytest.mark.system
def test_what_runs_on_a_gpu_imports_without_datasets():
    code = (
        "import sys; sys.modules['datasets'] = sys.modules['evaluate'] = None; sys.path[:0] = ['tests']; "
        "import scripts.benchmarking.comparing, scripts.benchmarking.scaling, scripts.benchmarking.workloads, "
        "golden_cases, command_runs"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
