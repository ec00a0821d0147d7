#!/usr/bin/env bash
# The id of a token in added_tokens.json or `added_tokens_decoder` is not the id that the token gets.
#
# Beside a tokenizer.json of 8 tokens, added_tokens.json with {"<x>": 100}, or `added_tokens_decoder` with the key
# "100", adds <x>, but as id 8, the next free one. The number in the file is not used and nothing is said. A model whose
# embeddings have <x> at 100, behind rows of padding, gets a row of padding in its place.
#
# Likely guess: both files map tokens to ids, so the ids are theirs, or loading ends with an error.
#
# Versions: transformers 5.24.0, tokenizers 0.23.3. Output:
#   added_tokens.json: <x> is 8 of 9 tokens
#   added_tokens_decoder: <x> is 8 of 9 tokens
#   log: ''
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cat > "$folder/show.py" <<'PYTHON'
import io
import json
import logging
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

log = io.StringIO()
logging.getLogger("transformers").addHandler(logging.StreamHandler(log))


def load(name, file, content):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    vocabulary = {token: i for i, token in enumerate(["<unk>", *"abcdefg"])}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / file).write_text(json.dumps(content))
    return AutoTokenizer.from_pretrained(folder)


token = {"content": "<x>", "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"100": token}}
seen = []
for name, tokenizer in (
    ("added_tokens.json", load("added", "added_tokens.json", {"<x>": 100})),
    ("added_tokens_decoder", load("decoder", "tokenizer_config.json", config)),
):
    seen.append(f"{name}: <x> is {tokenizer.convert_tokens_to_ids('<x>')} of {len(tokenizer)} tokens")
seen.append(f"log: {log.getvalue()!r}")

print("\n".join(seen))
sys.exit(
    seen
    != [
        "added_tokens.json: <x> is 8 of 9 tokens",
        "added_tokens_decoder: <x> is 8 of 9 tokens",
        "log: ''",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
