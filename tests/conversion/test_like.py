"""`like`: a checkpoint of an unknown class, read as one of a known class."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import run
from tiny_checkpoint import make_checkpoint, write_safetensors

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
    with pytest.raises(lowbit.FormatError, match=r"'model.layers.0.self_attn.k_norm.weight' is not part of the llama"):
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


def test_a_checkpoint_without_a_class(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = json.loads((source / "config.json").read_text())
    del config["architectures"]
    (source / "config.json").write_text(json.dumps(config))
    assert lowbit.load(source, like=KNOWN).spec.architecture == "qwen3"
    assert "a checkpoint without a class is read as Qwen3ForCausalLM: config.json also has own_scale" in caplog.text


def test_like_is_proposed_only_where_the_tensors_fit(source: Path) -> None:
    write_safetensors(source / "more.safetensors", {"model.layers.0.router.weight": np.zeros((4, 64), np.float32)})
    index = {tensor.name: "part.safetensors" for tensor in lowbit.inspect(source).tensors}
    index["model.layers.0.router.weight"] = "more.safetensors"
    (source / "model.safetensors").rename(source / "part.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(lowbit.UnsupportedError, match="nearest: qwen3") as caught:
        lowbit.load(source)
    assert "like=" not in str(caught.value)


def test_the_commands(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    done = run("convert", source, path, "-f", "Q8_0", "--like", KNOWN)
    assert done.returncode == 0, done.stderr
    assert "note: OwnForCausalLM is read as Qwen3ForCausalLM" in done.stderr
    assert run("verify", path, source, "--like", KNOWN).returncode == 0
    assert run("run", source, "the", "-n", "2", "--like", KNOWN).returncode == 0
    assert run("run", source, "the", "-n", "2").returncode == 1


def test_every_command_that_opens_checkpoints(source: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text", tmp_path / "x.gguf"
    text.write_text("".join(chr(65 + i % 26) for i in range(200)))
    lowbit.convert(source, out, "F32", like=KNOWN)
    commands = [
        ["perplexity", source, text, "--context", 8],
        ["perplexity", out, text, "--context", 8, "--reference", source],
        ["imatrix", source, text, "--context", 8, "-o", tmp_path / "i.gguf"],
        ["bench", source, "-p", 2, "-n", 1, "-r", 1],
        ["ladder", source, text, "--context", 8, "--chunks", 1, "--rungs", "Q8_0"],
        ["convert", source, tmp_path / "y.gguf", "--dry-run"],
        ["verify", out, source],
        ["run", source, "a", "-n", 1],
    ]  # fmt: skip
    for command in commands[:5]:
        result = run(*command, "--like", KNOWN)
        assert result.returncode == 0, (command, result.stderr)
    for command in [*commands, ["chat", source]]:
        result = run(*command, "--like", "Qwen3")
        assert (result.returncode, result.stdout) == (2, ""), command
        assert "unknown class 'Qwen3', expected one of" in " ".join(result.stderr.split())
    assert run("perplexity", out, text, "--context", 8, "--like", KNOWN).returncode == 1
