"""Perplexity and divergence of the embedded model against llama-perplexity's figures (make_perplexity.py)."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

import lowbit

DATA = Path(str(files("lowbit"))) / "data"
STORED = json.loads((Path(__file__).parents[1] / "data" / "perplexity.json").read_text())
MIXES = ("BF16", "Q8_0", "Q4_K_M", "Q2_K")


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, lowbit.evaluate.Figures]:
    folder = tmp_path_factory.mktemp("mixes")
    paths = {
        mix: lowbit.convert(DATA / "bard", folder / f"{mix}.gguf", mix, verify=False, provenance=False).path
        for mix in MIXES
    }
    models = {mix: lowbit.load(path, compute="f32") for mix, path in paths.items()}
    text = (DATA / "bard-valid.txt").read_text(encoding="utf-8")
    return lowbit.evaluate.compare(models, text, context=STORED["context"], chunks=STORED["chunks"])


@pytest.mark.parametrize("mix", MIXES)
def test_perplexity(mix: str, figures: dict[str, lowbit.evaluate.Figures]) -> None:
    found = figures[mix].perplexity
    assert (found.chunks, found.tokens) == (12, 12 * 255)
    # llama.cpp rounds activations to bfloat16 or 8 bits. What that does to the mean of -log p is noise of the size of
    # the root of the divergence it causes, over the root of the number of tokens: 1e-4 to 1e-3 here.
    assert found.value == pytest.approx(STORED[mix]["perplexity"], rel=2e-3)


@pytest.mark.parametrize("mix", MIXES[1:])
def test_divergence(mix: str, figures: dict[str, lowbit.evaluate.Figures]) -> None:
    found = figures[mix].divergence
    assert found is not None
    # llama.cpp's figure has the rounding of activations on top: about that of its Q8_0, whose weights lose little.
    rounding = STORED["Q8_0"]["mean"]
    assert STORED[mix]["mean"] - 4 * rounding < found.mean < STORED[mix]["mean"] * 1.02
    for name in ("median", "percentile_99"):
        assert getattr(found, name) == pytest.approx(STORED[mix][name], rel=0.1, abs=8 * rounding)
