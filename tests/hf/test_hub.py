"""Downloads through huggingface_hub from a server of the tests: what is fetched, resumed, kept, and said."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.file_download
import pytest
from command import run
from hub_server import Hub, serve
from huggingface_hub import constants
from tiny_checkpoint import edit_json, make_checkpoint

import lowbit
from lowbit.hf.hub import resolve

NAME = "maker/Tiny-0.6B"
SMALL = ["README.md", "config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def point_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does in a new process."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server with one model in two shards, and a cache that is empty."""
    with serve() as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        point_to(monkeypatch, server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        folder = make_checkpoint(tmp_path / "local", shards=2)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        for name in ("pytorch_model.bin", "consolidated.safetensors", "model.onnx", "model.gguf", "onnx/config.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"must not be fetched")
        server.add(NAME, folder)
        yield server
        huggingface_hub.close_session()


def test_converts_what_is_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    lowbit.convert(NAME, tmp_path / "hub.gguf", "Q8_0", verify=False, provenance=False)
    assert hub.downloads() == sorted(SMALL + SHARDS)
    # The same but for the names: a model is called as the hub calls it, not as the folder is.
    with lowbit.gguf.open(tmp_path / "hub.gguf") as file:
        assert file.metadata["general.name"] == "Tiny 0.6B"
        assert file.metadata["general.license"] == "mit"
    (tmp_path / "local").rename(tmp_path / "Tiny-0.6B")
    lowbit.convert(tmp_path / "Tiny-0.6B", tmp_path / "local.gguf", "Q8_0", verify=False, provenance=False)
    with lowbit.gguf.open(tmp_path / "hub.gguf") as a, lowbit.gguf.open(tmp_path / "local.gguf") as b:
        assert a.tensors.keys() == b.tensors.keys()
        for name in a.tensors:
            assert bytes(memoryview(_bytes(a.tensors[name]))) == bytes(memoryview(_bytes(b.tensors[name])))


def _bytes(tensor: object) -> bytes:
    return (tensor.data if isinstance(tensor, lowbit.QTensor) else tensor).tobytes()  # type: ignore[attr-defined]


def test_a_file_says_where_it_is_from(tmp_path: Path, hub: Hub) -> None:
    lowbit.convert(NAME, tmp_path / "hub.gguf", "Q8_0", provenance=True, verify=False)
    with lowbit.gguf.open(tmp_path / "hub.gguf") as file:
        assert file.metadata["lowbit.provenance.source"] == NAME
        assert file.metadata["lowbit.provenance.revision"] == hub.repositories[NAME].refs["main"]


def test_what_is_in_the_cache_is_not_fetched_again(hub: Hub) -> None:
    folder, name = resolve(NAME)
    assert name == NAME
    assert sorted(path.name for path in folder.iterdir()) == sorted(SMALL + SHARDS)
    hub.requests.clear()
    assert resolve(NAME) == (folder, NAME)
    assert hub.downloads() == []


def test_a_tokenizer_fetches_no_weights(hub: Hub) -> None:
    tokenizer = lowbit.load_tokenizer(NAME)
    assert hub.downloads() == sorted(SMALL)
    assert tokenizer.encode("the") == lowbit.load_tokenizer(resolve(NAME)[0]).encode("the")


def test_a_model_runs_by_its_name(hub: Hub) -> None:
    model = lowbit.load(NAME)
    assert model.logits(model.tokenizer.encode("the")).shape[1] == 288


def test_no_file_of_the_cache_is_replaced(hub: Hub, tmp_path: Path) -> None:
    """Names in a snapshot are links to blobs."""
    folder = resolve(NAME)[0]
    for path in (folder / "config.json", folder / "README.md", *folder.glob("*.safetensors")):
        before = path.read_bytes()
        for target in (path, path.resolve()):
            with pytest.raises(lowbit.InputError, match="would replace a file that is being read"):
                lowbit.convert(NAME, target, "F32", verify=False, provenance=False, dry_run=target == path)
        assert path.read_bytes() == before


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(value: bool) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", value)
        huggingface_hub.close_session()
        hub.requests.clear()

    offline(True)
    with pytest.raises(lowbit.FileError, match=r"incomplete in the cache .*cache, and HF_HUB_OFFLINE is set"):
        resolve(NAME)
    offline(False)
    lowbit.load_tokenizer(NAME)
    offline(True)
    lowbit.load_tokenizer(NAME)
    with pytest.raises(lowbit.FileError, match="incomplete in the cache"):  # the weights are not there yet
        resolve(NAME)
    offline(False)
    folder, _ = resolve(NAME)
    offline(True)
    assert resolve(NAME) == (folder, NAME)
    assert hub.requests == []


def test_a_server_that_is_gone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = resolve(NAME)
    huggingface_hub.close_session()
    point_to(monkeypatch, "http://127.0.0.1:9")
    assert resolve(NAME)[0] == folder
    with pytest.raises(lowbit.FileError, match=r"http://127\.0\.0\.1:9 failed: "):
        resolve("maker/another")


def test_one_file_is_taken_before_an_index(tmp_path: Path, hub: Hub) -> None:
    folder = make_checkpoint(tmp_path / "both", shards=2)
    make_checkpoint(tmp_path / "one")
    (tmp_path / "one" / "model.safetensors").rename(folder / "model.safetensors")
    hub.add("maker/both", folder)
    resolve("maker/both")
    assert [name for name in hub.downloads() if name.endswith(".safetensors")] == ["model.safetensors"]


def test_weights_that_config_names(tmp_path: Path, hub: Hub) -> None:
    folder = make_checkpoint(tmp_path / "named")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    edit_json(folder / "config.json", {"transformers_weights": "other.safetensors"})
    hub.add("maker/named", folder)
    assert (resolve("maker/named")[0] / "other.safetensors").is_file()


def test_revisions(tmp_path: Path, hub: Hub) -> None:
    old = resolve(NAME)[0]
    hub.add(NAME, make_checkpoint(tmp_path / "new", seed=1), "refs/pr/3")
    new = resolve(f"{NAME}@refs/pr/3")[0]
    assert new.name == hub.repositories[NAME].refs["refs/pr/3"] != old.name
    assert resolve(f"{NAME}@{old.name}")[0] == old
    assert resolve(NAME)[0] == old
    with pytest.raises(lowbit.FileError, match=rf"{NAME}: the hub has no revision 'v9' of this model"):
        resolve(f"{NAME}@v9")


def test_a_broken_connection_goes_on_where_it_broke(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what has come of the chunk in work is lost: 10 MB
    whole = hub.repositories[NAME].commits[hub.repositories[NAME].refs["main"]][SHARDS[0]]
    hub.breaks[SHARDS[0]] = [1000, 20000]
    folder, _ = resolve(NAME)
    assert (folder / SHARDS[0]).read_bytes() == whole
    ranges = [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith(SHARDS[0])]
    assert ranges == ["", "bytes=1000-", "bytes=21000-"]


def test_an_interrupted_download_keeps_what_is_whole(hub: Hub) -> None:
    hub.wrong_size.add(SHARDS[1])
    with pytest.raises(lowbit.FileError, match=f"^{NAME}: the download from the hub failed: "):
        resolve(NAME)
    hub.wrong_size.clear()
    hub.requests.clear()
    resolve(NAME)
    assert hub.downloads() == [SHARDS[1]]


def test_steps_of_a_download(hub: Hub, monkeypatch: pytest.MonkeyPatch, every_step: None) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    found: list[lowbit.Progress] = []
    threads: set[int] = set()

    def progress(step: lowbit.Progress) -> None:
        found.append(step)
        threads.add(threading.get_ident())

    folder, _ = resolve(NAME, progress=progress)
    assert threads == {threading.get_ident()}
    assert {(step.title, step.unit) for step in found} == {(f"download {NAME}", "B")}
    assert found[-1].done == found[-1].total == sum((folder / name).stat().st_size for name in SHARDS)
    found.clear()
    resolve(NAME, progress=progress)
    assert found == []


@pytest.mark.parametrize("stop", [ZeroDivisionError, KeyboardInterrupt])
def test_a_step_can_end_a_download(stop: type[BaseException], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def progress(step: lowbit.Progress) -> None:
        raise stop

    with pytest.raises(stop):
        resolve(NAME, progress=progress)
    assert "lowbit-download" not in [thread.name for thread in threading.enumerate()]
    resolve(NAME)


REFUSALS = {
    "gated": (
        (403, "GatedRepo"),
        r"accepting its owners' conditions: do that on http://127.*/maker/Tiny-0.6B, then log in",
    ),
    "private": ((401, "RepoNotFound"), "no such model on the hub; if it is private, log in"),
    "not found": ((404, "RepoNotFound"), "no such model on the hub"),
    "forbidden": ((403, ""), r"127.0.0.1:\d+ failed: "),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(hub: Hub, case: str) -> None:
    error, message = REFUSALS[case]
    hub.repositories[NAME].error = error
    with pytest.raises(lowbit.FileError, match=message) as caught:
        resolve(NAME)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(NAME)


def test_no_such_model(hub: Hub) -> None:
    with pytest.raises(lowbit.FileError, match="maker/none: no such folder, and no such model"):
        lowbit.convert("maker/none", "out.gguf", verify=False, provenance=False)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["pytorch_model.bin"], lowbit.UnsupportedError, r"only pickles.*spaces/safetensors/convert.*@refs/pr/N"),
        (["tiny-q4.gguf"], lowbit.UnsupportedError, "`hf download maker/other tiny-q4.gguf`"),
        ([], lowbit.FileError, "it has no model.safetensors"),
    ],
)
def test_a_repository_without_safetensors(
    tmp_path: Path, hub: Hub, names: list[str], error: type[lowbit.Error], message: str
) -> None:
    folder = make_checkpoint(tmp_path / "other")
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(b"must not be fetched")
    hub.add("maker/other", folder)
    with pytest.raises(error, match=message):
        resolve("maker/other")
    assert not set(hub.downloads()) & set(names)


def test_an_index_cannot_name_other_files(tmp_path: Path, hub: Hub) -> None:
    folder = make_checkpoint(tmp_path / "other", shards=2)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../escape.safetensors"}}')
    hub.add("maker/other", folder)
    with pytest.raises(lowbit.FormatError, match="expected a plain file name"):
        resolve("maker/other")


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", full)
    with pytest.raises(
        lowbit.FileError, match=r"No space left on device: .*cache \(set HF_HOME to use another folder\)"
    ):
        resolve(NAME)


def test_the_command(tmp_path: Path, hub: Hub) -> None:
    commit = hub.repositories[NAME].refs["main"]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    command = ("convert", NAME, tmp_path / "out.gguf", "--format", "Q8_0")
    first = run(*command, "--revision", commit, env=environment)
    assert first.returncode == 0, first.stderr
    assert "\r" not in first.stderr  # no bars where there is no terminal
    environment["HF_HUB_OFFLINE"] = "1"
    again = run(*command, "--revision", commit[:-1], env=environment)
    assert (again.returncode, again.stdout) == (1, "")
    assert "HF_HUB_OFFLINE is set" in again.stderr


@pytest.mark.parametrize("source", ["a/b/c", "a", "/a/b", "../a", "a/b@", "a/b@c d", "a/../b", "-a\n/b"])
def test_paths_are_no_names(source: str) -> None:
    assert resolve(source) == (Path(source), None)
