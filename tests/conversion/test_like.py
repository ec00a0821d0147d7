"""`like`: a checkpoint of an unknown class, read as one of a known class."""

import json
from pathlib import Path

import pytest
from command import run
from tiny_checkpoint import make_checkpoint

import lowbit

SIZES = {"layers": 1, "hidden": 64, "ffn": 64, "head_dim": 16}
KNOWN = "Qwen3ForCausalLM"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Qwen 3 checkpoint under a class of its own, with a key that Qwen 3 lacks."""
    folder = make_checkpoint(tmp_path / "m", **SIZES)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["OwnForCausalLM"], "own_scale": 2.0}))
    return folder


def test_the_tensors_are_those_of_the_known_class(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        lowbit.UnsupportedError, match=r"'OwnForCausalLM' is unknown; .* like=Qwen3ForCausalLM \(--like\)"
    ):
        lowbit.convert(source, tmp_path / "a.gguf", "F32")
    report = lowbit.convert(source, tmp_path / "a.gguf", "F32", like=KNOWN)
    assert any("OwnForCausalLM is read as Qwen3ForCausalLM" in note and "own_scale" in note for note in report.notes)
    assert report.verdict is not None
    assert report.verdict.ok
    plain = make_checkpoint(tmp_path / "plain", **SIZES)
    lowbit.convert(plain, tmp_path / "b.gguf", "F32")
    with lowbit.gguf.open(tmp_path / "a.gguf") as a, lowbit.gguf.open(tmp_path / "b.gguf") as b:
        assert json.loads(a.metadata["lowbit.provenance.options"][0])["like"] == KNOWN
        assert a.metadata["general.architecture"] == b.metadata["general.architecture"]
        assert {name: bytes(t) for name, t in a.tensors.items()} == {name: bytes(t) for name, t in b.tensors.items()}
    assert lowbit.verify(tmp_path / "a.gguf", source, like=KNOWN).ok
    assert (lowbit.load(source, like=KNOWN).logits([1, 2]) == lowbit.load(plain).logits([1, 2])).all()


def test_a_known_class_that_does_not_fit(source: Path, tmp_path: Path) -> None:
    with pytest.raises(lowbit.FormatError, match=r"'model.layers.0.self_attn.k_norm.weight' is not one of the llama"):
        lowbit.convert(source, tmp_path / "a.gguf", "F32", like="LlamaForCausalLM")
    for like, message in (
        ("Qwen3ForCausal", f"did you mean {KNOWN}"),
        ("X", "expected one of"),
        (3, "like: expected a str"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            lowbit.load(source, like=like)  # type: ignore[arg-type]
    assert not (tmp_path / "a.gguf").exists()
    lowbit.convert(source, tmp_path / "a.gguf", "F32", like=KNOWN)
    with pytest.raises(lowbit.InputError, match="a GGUF file names its architecture"):
        lowbit.load(tmp_path / "a.gguf", like=KNOWN)


def test_the_commands(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    done = run("convert", source, path, "-f", "Q8_0", "--like", KNOWN)
    assert done.returncode == 0, done.stderr
    assert "note: OwnForCausalLM is read as Qwen3ForCausalLM" in done.stderr
    assert run("verify", path, source, "--like", KNOWN).returncode == 0
    assert run("run", source, "the", "-n", "2", "--like", KNOWN).returncode == 0
    assert run("run", source, "the", "-n", "2").returncode == 1
