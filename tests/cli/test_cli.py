"""The command `lowbit` as a shell sees it: what it prints where, and how it exits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command import run
from tiny_checkpoint import make_checkpoint

import lowbit
from lowbit.cli.app import root_command
from lowbit.evaluate.bench import bench

# fmt: off
DATA = Path(str(files("lowbit"))) / "data"
COMMANDS = [
    "demo", "convert", "quantize", "run", "chat", "tokenize", "detokenize",
    "verify", "perplexity", "ladder", "bench", "imatrix",
    "inspect", "diff", "metadata", "formats", "split", "merge", "export", "onnx",
]
# fmt: on


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert (result.returncode, result.stderr) == (0, "")
    listed = result.stdout.split("Convert and run")[1].split("Examples")[0]
    first_words = [line.split()[0] for line in listed.splitlines() if line.split()]
    assert [word for word in first_words if word in COMMANDS] == COMMANDS
    assert sorted(COMMANDS) == sorted(root_command().commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_helps_with_examples(command: str) -> None:
    result = run(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"lowbit {command}" in result.stdout.split("Examples")[1]


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from lowbit.cli.execution import execute
execute(['--help'])
print(*(m.split('.')[0] for m in sys.modules))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"rich", "tokenizers", "jinja2", "huggingface_hub", "torch", "transformers", "numpy"} & set(loaded)


def test_a_command_does_not_load_the_others() -> None:
    code = """
import sys
from lowbit.cli.execution import execute
execute(['run', '--help'])
print(*(m for m in sys.modules if m.startswith('lowbit.cli.')))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {f"lowbit.cli.{name}" for name in COMMANDS} & set(loaded) == {"lowbit.cli.run"}


def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"lowbit {lowbit.__version__} ({lowbit.simd.current()})\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["formats", "--nonsense"],
        ["bench", "model.gguf", "-n", "0"],
        ["perplexity", "m", "/nowhere"],
        ["convert", str(DATA / "bard"), "x.gguf", "--format", "Q9_9"],
        ["ladder", str(DATA / "bard"), "--rungs", "Q9_9"],
        ["run", "model.gguf", "x", "--compute", "int3"],
        ["export", "hf", __file__, "x", "--dtype", "int8"],
        ["split", __file__, "x"],
        ["metadata", __file__, "list"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("lowbit")
    assert result.stderr.endswith(" --help)\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "meant"),
    [
        ("--format", "q4_km", "Q4_K_M or"),
        ("--format", "Q4KM", "Q4_K_M"),
        ("--format", "bf15", "BF16"),
        ("--tensor-type", "ffn=Q4K", "Q4_K"),
        ("--output-tensor-type", "MXFP5", "MXFP4"),
    ],
)
def test_misspelt_formats(option: str, value: str, meant: str, tmp_path: Path) -> None:
    result = run("convert", str(DATA / "bard"), str(tmp_path / "x.gguf"), option, value)
    assert result.returncode in (1, 2)
    assert f"did you mean {meant}" in result.stderr


def test_a_folder_for_a_gguf_file() -> None:
    folder = str(DATA / "bard")
    for command in (["quantize", folder, "x.gguf", "Q8_0"], ["verify", folder, "x"], ["export", "hf", folder, "x"]):
        result = run(*command)
        assert (result.returncode, result.stdout) == (2, "")
        assert "expected a GGUF file; lowbit convert makes one from a checkpoint" in result.stderr


def test_formats_are_those_of_the_package() -> None:
    result = run("formats", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    listed = json.loads(result.stdout)
    assert [row["name"] for row in listed] == [f.name for f in lowbit.formats()]
    for row, known in zip(listed, lowbit.formats(), strict=True):
        assert row == {key: getattr(known, key) for key in row}
        assert row["bits_per_weight"] == 8 * row["block_bytes"] / row["block_size"]
    table = run("formats").stdout
    assert all(f" {row['name']} " in table for row in listed)


def test_reader_that_goes_away() -> None:
    # Nobody reads at all: the first write fails.
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lowbit", "formats", "--json"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.fixture(scope="module")
def bard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint as Q8_0, made by the command."""
    path = tmp_path_factory.mktemp("bard") / "bard.gguf"
    result = run("convert", str(DATA / "bard"), str(path), "--format", "Q8_0", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["written"]
    assert report["file_bytes"] == path.stat().st_size
    return path


def test_dry_run_tells_the_size_and_writes_nothing(bard: Path, tmp_path: Path) -> None:
    result = run("convert", str(DATA / "bard"), str(tmp_path / "x.gguf"), "-f", "q8_0", "--dry-run", "--json")
    report = json.loads(result.stdout)
    assert (result.returncode, report["written"], report["file_bytes"]) == (0, False, bard.stat().st_size)
    assert list(tmp_path.iterdir()) == []
    shown = run("convert", str(DATA / "bard"), str(tmp_path / "x.gguf"), "-f", "q8_0", "--dry-run").stdout
    assert f"would have {report['file_bytes']} bytes" in shown
    assert " blk.3.ffn_down.weight " in shown


def test_quantize_with_tensor_types(tmp_path: Path) -> None:
    source, target = tmp_path / "bf16.gguf", tmp_path / "q.gguf"
    assert run("convert", str(DATA / "bard"), str(source), "--format", "bf16").returncode == 0
    result = run("quantize", str(source), str(target), "Q4_0", "--tensor-type", "ffn_down=Q8_0", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    formats = {tensor["name"]: tensor["format"] for tensor in json.loads(result.stdout)["tensors"]}
    assert formats["blk.0.ffn_down.weight"] == "Q8_0"
    assert formats["blk.0.ffn_up.weight"] == "Q4_0"
    with lowbit.gguf.open(target) as file:
        assert {name: info.format for name, info in file.infos.items()} == formats


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tensor-type", "ffn_down", "expected REGEX=FORMAT"),
        ("--override-kv", "general.name", "expected KEY=TYPE:VALUE"),
        ("--override-kv", "general.name=text:x", "KEY=TYPE:VALUE with TYPE int, float, bool or str"),
        ("--override-kv", "qwen3.block_count=int:many", "expected a value of type int, got 'many'"),
        ("--override-kv", "a=bool:yes", "expected a value of type bool, got 'yes'"),
        ("--prune-layers", "1,two", "expected layer numbers separated by commas"),
        ("--tensor-type-file", "/no/such/file", "/no/such/file"),
    ],
)
def test_options_that_do_not_parse(option: str, value: str, message: str, tmp_path: Path) -> None:
    wrong = run("quantize", __file__, str(tmp_path / "q.gguf"), "Q4_0", option, value)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert message in " ".join(wrong.stderr.split())


def test_options_reach_quantize_file(bard: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.gguf"
    (tmp_path / "types.txt").write_text("attn_k=Q5_0\nattn_v=Q5_1")
    arguments = ["quantize", str(bard), str(target), "Q4_0", "--allow-requantize", "--tensor-type", "ffn_up=Q8_0"]
    arguments += ["--tensor-type-file", str(tmp_path / "types.txt"), "--output-tensor-type", "Q6_K", "--threads", "1"]
    arguments += ["--prune-layers", "1,3", "--override-kv", "general.name=str:a=b", "--override-kv", "x=float:0.5"]
    result = run(*arguments, "--dry-run", "--json")
    planned = json.loads(result.stdout)
    assert (result.returncode, result.stderr, target.exists()) == (0, "", False)
    assert run(*arguments).returncode == 0
    assert planned["file_bytes"] == target.stat().st_size
    assert planned["paths"] == [str(target)]
    with lowbit.gguf.open(target) as file:
        assert [(t["name"], t["format"], t["num_bytes"]) for t in planned["tensors"]] == [
            (name, info.format, file.num_bytes(name)) for name, info in file.infos.items()
        ]
        assert (file.metadata["general.name"], file.metadata["x"]) == ("a=b", 0.5)
        formats = {name: info.format for name, info in file.infos.items()}
    assert (formats["token_embd.weight"], formats["blk.0.attn_k.weight"]) == ("Q6_K", "Q5_0")
    assert (formats["blk.1.attn_v.weight"], formats["blk.1.ffn_up.weight"]) == ("Q5_1", "Q8_0")
    assert "blk.2.attn_v.weight" not in formats
    narrow = make_checkpoint(tmp_path / "narrow", hidden=96, head_dim=24, layers=1)
    strict = run("convert", str(narrow), str(target), "--format", "Q4_K_M", "--strict", "--dry-run")
    assert (strict.returncode, strict.stdout) == (1, "")
    assert "row length 96 is not a multiple" in strict.stderr
    split = run("quantize", str(bard), str(target), "COPY", "--keep-split")
    assert f"{target}: COPY, " in split.stdout
    assert (tmp_path / "q-00001-of-00001.gguf").exists()


def test_inspect(bard: Path) -> None:
    report = json.loads(run("inspect", str(bard), "--json").stdout)
    with lowbit.gguf.open(bard) as file:
        assert [(t["name"], tuple(t["shape"]), t["format"]) for t in report["tensors"]] == list(file.infos.values())
        assert list(report["metadata"]) == list(file.metadata)
        assert report["metadata"]["tokenizer.ggml.tokens"]["length"] == 2048
    total = report["total"]
    assert report["file_bytes"] == bard.stat().st_size
    assert total["tensors"] == len(report["tensors"]) == sum(f["tensors"] for f in report["formats"].values())
    assert total["num_bytes"] == sum(tensor["num_bytes"] for tensor in report["tensors"])
    assert total["bits_per_weight"] == 8 * total["num_bytes"] / total["weights"]
    shown = run("inspect", str(bard))
    assert (shown.returncode, shown.stderr) == (0, "")
    for text in ("general.architecture", "qwen3", "blk.0.ffn_down.weight", "256 x 768", "Q8_0"):
        assert text in shown.stdout
    short = run("inspect", str(bard), "--no-tensors", "--no-metadata").stdout
    assert "blk.0" not in short
    assert "general.architecture" not in short


def test_text_that_the_encoding_lacks(bard: Path) -> None:
    result = run("inspect", str(bard), "--no-tensors", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "\\u0120 t, h e," in result.stdout  # the first merges of the tokenizer


def test_inspect_a_checkpoint() -> None:
    report = json.loads(run("inspect", str(DATA / "bard"), "--json").stdout)
    assert report["metadata"]["model_type"] == "qwen3"
    assert report["file_bytes"] == (DATA / "bard" / "model.safetensors").stat().st_size
    single = json.loads(run("inspect", str(DATA / "bard" / "model.safetensors"), "--json").stdout)
    assert single["tensors"] == report["tensors"]


def test_run_writes_the_continuation_alone(bard: Path) -> None:
    options = ["-n", "12", "--threads", "1"]
    result = run("run", str(bard), "ROMEO:", *options)
    assert result.returncode == 0
    model = lowbit.load(bard, threads=1)
    assert result.stdout == model.generate("ROMEO:", max_tokens=12) + "\n"
    assert "tokens" in result.stderr
    assert run("run", str(bard), "-", *options, input="ROMEO:").stdout == result.stdout
    report = json.loads(run("run", str(bard), "ROMEO:", *options, "--json").stdout)
    assert report["text"] + "\n" == result.stdout


def test_what_is_ignored_in_a_file_is_one_note(bard: Path, tmp_path: Path) -> None:
    path = shutil.copy(bard, tmp_path / "x.gguf")
    lowbit.gguf.edit(path, {"tokenizer.ggml.padding_token_id": np.uint32(0xFFFFFFFF)})
    found = run("run", path, "KING", "-n", 2)
    notes = [line for line in found.stderr.splitlines() if line.startswith("note:")]
    assert (found.returncode, len(notes)) == (0, 1)
    assert notes[0].startswith("note: tokenizer.ggml.padding_token_id is 4294967295, but the ids are 0 to 2047")


def test_sampling_options_reach_the_model(bard: Path) -> None:
    options = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 7}
    flags = [f"--{'temp' if key == 'temperature' else key.replace('_', '-')}={value}" for key, value in options.items()]
    result = run("run", str(bard), "ROMEO:", "-n", "24", "--threads", "1", *flags)
    model = lowbit.load(bard, threads=1)
    assert result.stdout == model.generate("ROMEO:", max_tokens=24, **options) + "\n"
    first = model.generate("ROMEO:", max_tokens=24, **options)
    stop = first[len(first) // 2 :][:3]
    stopped = run("run", str(bard), "ROMEO:", "-n", "24", "--threads", "1", *flags, "--stop", stop)
    assert stopped.stdout == first[: first.index(stop)] + "\n"


#: A mark at the beginning, line ends of three systems, and two at the end, of which llama.cpp's tools drop the last.
ODD_TEXT = "\ufeff" + "ROMEO:\r\nBut soft, what light\rthrough yonder\nwindow breaks?\r\n" * 40 + "\n"


def test_texts_are_read_as_their_bytes_are(bard: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out.gguf"
    text.write_bytes(ODD_TEXT.encode())
    read_text, unix = ODD_TEXT[:-1], ODD_TEXT.replace("\r\n", "\n").replace("\r", "\n")
    model = lowbit.load(bard, threads=1)
    options = ["--context", "128", "--threads", "1"]
    report = json.loads(run("perplexity", str(bard), str(text), *options, "--json").stdout)
    values = [lowbit.evaluate.perplexity(model, given, context=128, threads=1).value for given in (read_text, unix)]
    assert report["perplexity"] == values[0] != values[1]
    assert run("imatrix", str(bard), str(text), "--out", str(out), *options).returncode == 0
    lowbit.imatrix.collect(model, read_text, context=128, dataset=str(text)).save(tmp_path / "expected.gguf")
    assert out.read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_a_prompt_from_stdin_is_read_as_its_bytes_are(bard: Path) -> None:
    prompt = ODD_TEXT[:60] + "\r\n"
    report = json.loads(run("run", str(bard), "-", "-n", "1", "--json", input=prompt).stdout)
    assert report["prompt"] == prompt
    assert report["prompt_tokens"] == len(lowbit.load_tokenizer(bard).encode(prompt))
    command = [sys.executable, "-m", "lowbit", "run", str(bard), "-"]
    wrong = subprocess.run(command, input=b"ROMEO\xff", capture_output=True, check=False)
    assert (wrong.returncode, b"stdin: not UTF-8 at offset 5" in wrong.stderr) == (1, True)


def test_perplexity_and_divergence(bard: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((DATA / "bard-valid.txt").read_text(encoding="utf-8")[:4000], encoding="utf-8")
    arguments = ["perplexity", str(bard), str(text), "--context", "128", "--chunks", "3", "--threads", "1"]
    report = json.loads(run(*arguments, "--json").stdout)
    expected = lowbit.evaluate.perplexity(
        lowbit.load(bard, threads=1), text.read_text(), context=128, chunks=3, threads=1
    )
    assert report["perplexity"] == expected.value
    assert (report["tokens"], report["chunks"], report["context"]) == (3 * 63, 3, 128)
    both = json.loads(run(*arguments, "--reference", str(DATA / "bard"), "--json").stdout)
    assert both["perplexity"] == expected.value
    assert 0 < both["divergence"]["mean"] < 0.01
    assert f"{expected.value:.5f}" in run(*arguments).stdout


def test_bench(bard: Path) -> None:
    result = run("bench", str(bard), "-p", "16", "-n", "4", "-r", "2", "--threads", "1", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["prompt_tokens"], report["new_tokens"], report["repetitions"], report["threads"]) == (16, 4, 2, 1)
    assert report["prefill_tokens_per_s"] > 0
    assert report["decode_tokens_per_s"] > 0


def test_bench_over_the_switch_of_longrope(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "phi", "phi3")  # another rotary table beyond 64 tokens
    assert bench(folder, prompt_tokens=60, new_tokens=10, repetitions=1, threads=1).decode_tokens_per_s > 0


def test_chat_remembers_and_ends(tmp_path: Path) -> None:
    # bard has no chat template; with one, its beginning is what matters here.
    folder = tmp_path / "chat"
    folder.mkdir()
    for file in (DATA / "bard").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    said = "Hello\n\n/reset\nHello\n/exit\nnever read\n"
    result = run("chat", str(folder), "--temperature", "0", "--threads", "1", "--context", "64", input=said)
    assert (result.returncode, result.stderr) == (0, "")
    model = lowbit.load(folder, threads=1, context=64)
    answer = model.chat([{"role": "user", "content": "Hello"}], temperature=0)
    assert result.stdout == (answer + "\n") * 2


FAILURES = {
    "missing": (["inspect", "/no/such/file.gguf"], "/no/such/file.gguf"),
    "no checkpoint": (["convert", "/no/such/folder", "{tmp}/x.gguf", "-f", "Q8_0"], "/no/such/folder"),
    "not GGUF": (["inspect", __file__], "test_cli.py"),
    "short text": (
        ["perplexity", str(DATA / "bard"), str(DATA / "bard" / "generation_config.json")],
        "expected at least 512",
    ),
    "context": (["bench", str(DATA / "bard"), "-p", "2000"], "1024"),
    "GGUF for a folder": (["convert", "{bard}", "{tmp}/x.gguf"], "lowbit quantize takes GGUF files"),
    "no importances": (["convert", str(DATA / "bard"), "{tmp}/x.gguf", "-f", "IQ2_XXS"], "--imatrix"),
    "a key misspelt": (["metadata", "{bard}", "get", "general.nam"], "did you mean general.name"),
    "a key misspelt to unset": (["metadata", "{bard}", "unset", "General.name"], "did you mean general.name"),
    "source for target": (["quantize", "{bard}", "{bard}", "Q8_0"], "would replace a file that is being read"),
    "model for target": (["imatrix", "{bard}", __file__, "-o", "{bard}"], "would replace a file that is being read"),
    "no template": (["chat", str(DATA / "bard")], "chat template"),
    "no Unicode": (["run", str(DATA / "bard"), "a\udcff"], "text has no Unicode character at 1"),
    "empty prompt": (["run", str(DATA / "bard"), ""], "prompt"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failure_is_one_line(name: str, bard: Path, tmp_path: Path) -> None:
    arguments, expected = FAILURES[name]
    texts = (argument.replace("{tmp}", str(tmp_path)).replace("{bard}", str(bard)) for argument in arguments)
    result = run(*texts, input="Hello\n")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("lowbit: ")
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_truncated_file_is_one_line(bard: Path, tmp_path: Path) -> None:
    whole = bard.read_bytes()
    for length in (0, 3, 20, 100, 5000, len(whole) - 1):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:length])
        for command in (["inspect", str(path)], ["run", str(path), "x"]):
            result = run(*command)
            assert (result.returncode, result.stdout) == (1, "")
            assert result.stderr.startswith("lowbit: ")
            assert result.stderr.count("\n") == 1


def test_debug_shows_where() -> None:
    for arguments, environment in ((["--debug"], {}), ([], {"LOWBIT_DEBUG": "1"})):
        result = run(*arguments, "inspect", "/no/such/file.gguf", env={**os.environ, **environment})
        assert result.returncode == 1
        assert "Traceback" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_conversion_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    # The signal is sent from inside, as the first tensor is about to be written: no timing.
    code = f"""
import os, signal, sys
import lowbit.cli, lowbit.gguf
write = lowbit.gguf.Writer.write
def stop(self, buffer):
    os.kill(os.getpid(), {int(number)})
    write(self, buffer)
lowbit.gguf.Writer.write = stop
lowbit.cli.main(["convert", {str(DATA / "bard")!r}, {str(tmp_path / "x.gguf")!r}, "-f", "Q8_0"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 128 + number
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
