"""Architectures of users' own, and the error for those that nobody registered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_arch import edit, rename
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit.arch import Architecture, architectures, hf_classes, register, registry
from lowbit.cli.execution import execute
from lowbit.conversion.open import open_checkpoint

OWN = '''
from lowbit.arch import DENSE_GLOBAL, DENSE_LAYER, Architecture, Tensor

class Own(Architecture):
    """A dense decoder whose norms have another name."""

    name = "own"
    hf_names = ("OwnForCausalLM",)
    rope_interleaved = False
    global_tensors = tuple(t for t in DENSE_GLOBAL if t.gguf != "output_norm.weight") + (
        Tensor("output_norm.weight", "model.last_norm.weight", ("hidden",)),
    )

ARCHITECTURE = Own()
'''


@pytest.fixture(autouse=True)
def unchanged_registry() -> Iterator[None]:
    before = architectures()
    yield
    registry._registered().clear()
    registry._registered().update(before)


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path]:
    """The file with the architecture, and a checkpoint of it."""
    (tmp_path / "own.py").write_text(OWN)
    folder = edit(make_checkpoint(tmp_path / "a", "llama"), architectures=["OwnForCausalLM"])
    rename(edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 1e4}), "model.norm.", "model.last_norm.")
    return tmp_path / "own.py", folder


def test_a_file(own: tuple[Path, Path], tmp_path: Path) -> None:
    file, folder = own
    with pytest.raises(lowbit.UnsupportedError, match="OwnForCausalLM"):
        open_checkpoint(folder)
    arch = register(str(file))
    assert (architectures()["own"], hf_classes()["OwnForCausalLM"]) == (arch, arch)
    lowbit.convert(folder, tmp_path / "own.gguf", "F32", verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "own.gguf") as found:
        assert found.metadata["general.architecture"] == "own"
        assert found.metadata["own.block_count"] == 2
    model, plain = lowbit.load(tmp_path / "own.gguf"), lowbit.load(folder)
    np.testing.assert_array_equal(model.logits([1, 2, 3]), plain.logits([1, 2, 3]))


def test_the_command(own: tuple[Path, Path], tmp_path: Path) -> None:
    file, folder = own
    target = tmp_path / "own.gguf"
    assert execute(["convert", str(folder), str(target), "-f", "bf16"]) == 1
    assert execute(["--arch", str(file), "convert", str(folder), str(target), "-f", "bf16"]) == 0
    assert execute(["--arch", str(file), "run", str(target), "the", "-n", "1"]) == 0
    assert execute(["--arch", str(tmp_path / "none.py"), "formats"]) == 2


def test_duplicates_are_refused(own: tuple[Path, Path]) -> None:
    first = register(own[0])
    with pytest.raises(
        lowbit.InputError, match=r"OwnForCausalLM, own: another architecture has this name; replace=True"
    ):
        register(own[0])
    assert architectures()["own"] is first
    assert architectures()["own"] is not register(own[0], replace=True)

    class Fork(type(architectures()["qwen3"])):  # type: ignore[misc]
        hf_names = ("ForkForCausalLM", "LlamaForCausalLM")

    with pytest.raises(lowbit.InputError, match="LlamaForCausalLM, qwen3: another architecture"):
        register(Fork())
    fork = register(Fork(), replace=True)
    assert hf_classes()["LlamaForCausalLM"] is architectures()["qwen3"] is fork


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x = 1", lowbit.InputError, "ARCHITECTURE is NoneType"),
        ("ARCHITECTURE = 3", lowbit.InputError, "ARCHITECTURE is int"),
        ("import none_such_module", lowbit.FormatError, r"own\.py: ModuleNotFoundError"),
        ("x = (", lowbit.FormatError, r"own\.py: SyntaxError"),
        (OWN.replace('name = "own"', 'title = "own"'), lowbit.InputError, r"Own\.name: expected a str"),
        (OWN.replace('"own"', '"o.w n"'), lowbit.InputError, r"Own\.name is 'o\.w n', expected letters"),
        (OWN.replace('("OwnForCausalLM",)', '"OwnForCausalLM"'), lowbit.InputError, r"Own\.hf_names: expected a tuple"),
        (OWN.replace("rope_interleaved", "x"), lowbit.InputError, r"Own\.rope_interleaved: expected a bool"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    before = architectures()
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(error, match=message):
        register(tmp_path / "own.py")
    assert architectures() == before


def test_what_is_no_architecture(tmp_path: Path) -> None:
    with pytest.raises(lowbit.InputError, match="got int"):
        register(3)  # type: ignore[arg-type]
    with pytest.raises(lowbit.InputError, match="got type"):
        register(Architecture)  # type: ignore[arg-type]
    with pytest.raises(lowbit.FileError, match=r"none\.py: No such file"):
        register(tmp_path / "none.py")


def reason(folder: Path) -> str:
    with pytest.raises(lowbit.UnsupportedError) as caught:
        open_checkpoint(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1200
    assert "lowbit.arch.register" in text
    return text


@pytest.mark.parametrize(
    ("arch", "changes", "nearest"),
    [
        ("qwen3", {}, "qwen3 (24 of 24 tensors match); known: "),
        ("llama", {}, "llama (21 of 21 tensors match); known: "),
        ("qwen2", {}, "qwen2 (26 of 26 tensors match); known: "),
        ("gemma3", {}, "gemma3 (28 of 28 tensors match); known: "),
        ("qwen3", {"hidden_act": "gelu"}, "qwen3 (24 of 24 tensors match; differs: config.json: hidden_act is 'gelu'"),
        (
            "qwen3",
            {"num_experts": 8, "logit_scale": 2},
            "qwen3 (24 of 24 tensors match; config.json also has logit_scale, num_experts); known",
        ),
    ],
)  # fmt: skip
def test_the_nearest_architecture(tmp_path: Path, arch: str, changes: dict[str, Any], nearest: str) -> None:
    folder = edit(make_checkpoint(tmp_path / "a", arch), architectures=[f"{arch.title()}XForCausalLM"], **changes)
    assert f"is unknown; nearest: {nearest}" in reason(folder)


def test_tensors_that_differ(tmp_path: Path) -> None:
    folder = edit(make_checkpoint(tmp_path / "a"), architectures=["FooForCausalLM"])
    for i in range(2):
        rename(folder, f"model.layers.{i}.mlp.up_proj.weight", f"model.layers.{i}.mlp.router\n.weight")
    text = reason(folder)
    assert "nearest: qwen3 (22 of 24 tensors match; extra: model.layers.*.mlp.router\\n.weight; " in text
    assert "; missing: model.layers.*.mlp.up_proj.weight)" in text


def test_hostile_names(tmp_path: Path) -> None:
    folder = edit(make_checkpoint(tmp_path / "a"), architectures=["F" * 100_000])
    rename(folder, "model.layers.1.mlp.up_proj.weight", "model.layers.999999.mlp." + "x" * 100_000)
    assert "nearest: qwen3 (23 of 24 tensors match; extra: " in reason(folder)
