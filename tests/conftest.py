"""What the whole suite shares: where the oracle tests are collected, and fixtures of several files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from random_network import make_spec, random_tensors

import lowbit
import lowbit.base.progress
from lowbit.arch.model_spec import ModelSpec

# tests/oracle compares with these packages. Without the extra `oracle` there is nothing to compare with; CI installs it
# and fails if one of these tests did not run.
ORACLE_MODULES = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime_genai", "openvino")
missing = [name for name in ORACLE_MODULES if find_spec(name) is None]
collect_ignore = ["oracle"] if missing else []
# One of them compares with ggml's own library, which oracle/get_ggml.sh builds.
if "LOWBIT_GGML" not in os.environ:
    collect_ignore.append("oracle/test_ggml_oracle.py")

# Shells start background jobs with Ctrl-C ignored, which programs inherit; some tests are about Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


# hypothesis gives an example 0.2 seconds, which a busy machine does not keep.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_report_header() -> str:
    """Says whether the oracle tests are part of this run."""
    return f"oracle tests: left out, no {', '.join(missing)}" if missing else "oracle tests: included"


@pytest.fixture(params=lowbit.simd.targets())
def simd(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every SIMD target that this CPU has, in turn."""
    with lowbit.simd.force(request.param):
        yield request.param


@pytest.fixture(scope="session")
def bard_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint as a Q8_0 file."""
    path = tmp_path_factory.mktemp("bard") / "bard.gguf"
    bard = Path(lowbit.__file__).parent / "data" / "bard"
    lowbit.convert(bard, path, "Q8_0", verify=False, provenance=False)
    return path


@pytest.fixture
def small() -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """A network and its weights."""
    spec = make_spec(context_length=200)
    return spec, random_tensors(spec)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions given as `progress` are called with each step, however soon it comes."""
    monkeypatch.setattr(lowbit.base.progress, "INTERVAL_SECONDS", 0.0)
