"""What the README says can be done as it says: commands and programs run, of a small model in the place of its own."""

import io
import json
import re
import shlex
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from lowbit.cli.execution import execute
from lowbit.quantization.recipes import MIXES

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
DATA = Path(str(files("lowbit"))) / "data"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_list_of_mixes() -> None:
    listed = re.search(r"^Mixes, .*?llama-quantize does: (.*?)\.$", README, re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert set(re.split(r",\s+", listed[1])) == set(MIXES)


def blocks(language: str) -> list[str]:
    use = README.split("\n## Use\n")[1]
    return re.findall(rf"^```{language}\n(.*?)^```", use, re.MULTILINE | re.DOTALL)


def test_commands_and_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA / "bard", MODEL)  # what is a folder is not looked for on the hub
    config = json.loads(Path(MODEL, "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    Path(MODEL, "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    text = (DATA / "bard-valid.txt").read_text(encoding="utf-8")[:6000]
    for name in ("text.txt", "calibration.txt"):
        Path(name).write_text(text, encoding="utf-8")
    shutil.copy(Path(__file__).parents[1] / "data" / "onnx" / "mnist.onnx", "model.onnx")
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("lowbit")]
    assert len(commands) == 8
    for command in commands:
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/exit\n"))
        arguments = shlex.split(command.replace(" --plot ladder.svg", " --rungs Q8_0,Q2_K"))  # without matplotlib
        assert execute(arguments[1:]) == 0, (command, capfd.readouterr().err)
    programs = blocks("python")
    assert len(programs) == 4
    for program in programs:
        exec(compile(program, "README.md", "exec"), {})
