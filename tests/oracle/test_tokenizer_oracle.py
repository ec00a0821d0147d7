"""Tokenizers and chat templates against transformers."""

import json
import shutil
from pathlib import Path

import pytest
from chat_templates import CALLS, MESSAGES, TEMPLATES, TOOLS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_cases import KINDS, REFERENCE, metadata
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import lowbit
from lowbit.chat.template import render_chat
from lowbit.tokenizer.load import from_metadata

pytestmark = pytest.mark.oracle

BARD = Path(lowbit.__file__).parent / "data" / "bard"
TEXT = st.text() | st.text("ab \n\t<|>_é你😀\u2581'S1").map(lambda text: text * 2)


@pytest.fixture(scope="module", params=["bard", "gpt-2", "qwen2", *KINDS])
def pair(request, tmp_path_factory) -> tuple[lowbit.Tokenizer, PreTrainedTokenizerFast]:
    """A folder as lowbit and as transformers load it; of a GGUF vocabulary, its own tokenizer.json."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bard":
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(BARD / name, folder)
        # transformers puts an NFC normalizer into every Qwen2Tokenizer, also where tokenizer.json has none.
        config = json.loads((BARD / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"})
        )
    else:
        tokenizer = from_metadata(metadata(request.param))
        tokenizer.backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_tokens, "add_eos_token": True,
                  "add_bos_token": request.param != "phi-3", "chat_template": TEMPLATES["chatml"],
                  "clean_up_tokenization_spaces": False}  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return lowbit.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@settings(max_examples=150)
@given(text=TEXT, special=st.booleans())
def test_ids(pair, text, special):
    ours, theirs = pair
    assert ours.encode(text, add_special_tokens=special) == theirs.encode(text, add_special_tokens=special)


def test_ids_of_every_stored_text(pair):
    ours, theirs = pair
    for text, special, _ in next(iter(REFERENCE.values()))["cases"]:
        assert ours.encode(text, add_special_tokens=special) == theirs.encode(text, add_special_tokens=special)


@settings(max_examples=100)
@given(data=st.data(), skip=st.booleans())
def test_decode(pair, data, skip):
    ours, theirs = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    text = theirs.decode(ids, skip_special_tokens=skip)
    assert ours.decode(ids, skip_special_tokens=skip) == text
    stream = ours.stream(skip_special_tokens=skip)
    assert "".join(map(stream.push, ids)) + stream.flush() == text


def test_special_ids(pair):
    ours, theirs = pair
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert set(theirs.all_special_ids) <= ours.special_ids


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_chat(pair, name, tools):
    ours, theirs = pair
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[1:2], CALLS):
        for generation in (True, False):
            options = {"tools": tools, "add_generation_prompt": generation, "date_string": "1 May"}
            try:
                expected = theirs.apply_chat_template(
                    messages, chat_template=TEMPLATES[name], tokenize=False, **options
                )
            except Exception:
                with pytest.raises(lowbit.Error):
                    render_chat(TEMPLATES[name], messages, **ours.special_tokens, **options)
                continue
            assert render_chat(TEMPLATES[name], messages, **ours.special_tokens, **options) == expected


def test_chat_ids(pair):
    ours, theirs = pair
    if ours.chat_template is None:  # the demo's model is no chat model
        assert theirs.chat_template is None
        return
    expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(MESSAGES) == expected
