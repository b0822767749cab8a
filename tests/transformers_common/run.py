"""Run Transformers' common tests on FASeg, and on Mask2Former for comparison (`make test-hf`).

The tests come from the source distribution of the installed Transformers version, fetched by pip into `.cache/` and
never committed. FASeg must fail none, pass every test that Mask2Former passes, and pass what `NEWLY_PASSED` names.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import transformers


HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
CACHE = CHECKOUT / ".cache" / "transformers-tests"

# Tests that skip for Mask2Former, or pass without reaching what they test: it has no sdpa attention, no gradient
# checkpointing and no output capturing of its own. FASeg runs them.
NEWLY_PASSED = (
    "test_sdpa_can_dispatch_non_composite_models",
    "test_eager_matches_sdpa_inference_00_fp16_pad_left_sdpa_kernels",
    "test_eager_matches_sdpa_inference_09_fp32_pad_left",
    "test_can_set_attention_dynamically",
    "test_training_gradient_checkpointing",
    "test_training_gradient_checkpointing_use_reentrant_true",
    "test_capture_outputs_decorator",
    "test_format_of_can_record_outputs",
    "test_can_capture_specific_layers_hidden_states",
)


# This project's other models, which must fail none.
OTHERS = ("qlseg", "semask")


def fetch_common_tests(version: str) -> Path:
    """The `tests` folder of Transformers' source distribution, fetched once per version."""
    folder = CACHE / version / "tests"
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*pip, f"transformers=={version}", "--dest", scratch], check=True)
        with tarfile.open(next(Path(scratch).glob("transformers-*.tar.gz"))) as archive:
            root = f"transformers-{version}"
            members = [member for member in archive if member.name.startswith(f"{root}/tests")]
            archive.extractall(scratch, members=members, filter="data")
        # The distribution leaves out the package's empty initialiser, which the configuration tests read.
        (Path(scratch) / root / "tests" / "__init__.py").touch()
        (Path(scratch) / root).rename(CACHE / version)
    return folder


def run_tests(name: str, common_tests: Path, arguments: list[str]) -> tuple[int, dict[str, str]]:
    """Run one model's folder and print what it said; return pytest's exit code, and outcomes by the tests' names."""
    outcomes = CACHE / f"outcomes-{name}.json"
    outcomes.unlink(missing_ok=True)
    environment = os.environ | {
        "TRANSFORMERS_TESTS": str(common_tests),
        "OUTCOMES": str(outcomes),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_NUM_THREADS": "1",  # as two models are tested at a time
    }
    options = ["-c", str(HERE / "pytest.ini"), "--rootdir", str(HERE), "--confcutdir", str(HERE), "-q"]
    command = [sys.executable, "-m", "pytest", *options, *arguments, str(HERE / name)]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, check=False, capture_output=True, text=True)
    title = f"== {name} under the common tests of Transformers {transformers.__version__}"
    print(f"\n{title}\n{done.stdout}{done.stderr}", flush=True)
    return done.returncode, json.loads(outcomes.read_text()) if outcomes.exists() else {}


def passed(outcomes: dict[str, str]) -> set[str]:
    return {test for test, outcome in outcomes.items() if outcome == "passed"}


def main() -> int:
    common_tests = fetch_common_tests(transformers.__version__)
    tasks = {name: ["--tb=short", *sys.argv[1:]] for name in ("faseg", *OTHERS)}
    tasks["mask2former"] = ["--tb=no", "-r", "fE"]
    with ThreadPoolExecutor(max_workers=2) as pool:
        running = {name: pool.submit(run_tests, name, common_tests, options) for name, options in tasks.items()}
    (_, reference), (code, ours) = running["mask2former"].result(), running["faseg"].result()
    failed = [name for name in OTHERS if running[name].result()[0]]

    lost = sorted(passed(reference) - passed(ours))
    still_missing = sorted(set(NEWLY_PASSED) - passed(ours))
    gained = sorted(passed(ours) - passed(reference))
    print(f"\nMask2Former passes {len(passed(reference))}, FASeg {len(passed(ours))}: {len(gained)} more")
    for test in gained:
        print(f"  gained  {test} (Mask2Former: {reference.get(test, 'has no such test')})")
    for test in lost:
        print(f"  LOST    {test} ({ours.get(test, 'did not run')})")
    for test in still_missing:
        print(f"  MISSING {test} ({ours.get(test, 'did not run')})")
    for name in failed:
        print(f"  FAILED  the tests of {name}")
    if not reference:
        print("  MISSING every result of Mask2Former: nothing to compare with")
    return 1 if code or failed or lost or still_missing or not reference else 0


if __name__ == "__main__":
    sys.exit(main())
