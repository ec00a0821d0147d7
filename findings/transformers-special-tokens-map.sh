#!/usr/bin/env bash
# Which of two files names the end of a text is decided by a third thing: whether `added_tokens_decoder` is there.
#
# special_tokens_map.json and tokenizer_config.json both have `eos_token`. If they differ, transformers takes the first
# file's, the older one, unless tokenizer_config.json has `added_tokens_decoder`. An empty `added_tokens_decoder` counts
# as well. So whoever edits `eos_token` in tokenizer_config.json of such a folder changes nothing, without a warning.
#
# Likely guess: tokenizer_config.json decides, as the later file and the one that transformers 5 still writes, or one of
# the two always does.
#
# Versions: transformers 5.24.0, tokenizers 0.23.3. Output, where tokenizer_config.json has </s> and the other file <e>:
#   no added_tokens_decoder: <e>, id 2
#   empty added_tokens_decoder: </s>, id 1
#   added_tokens_decoder of another token: </s>, id 1
#   written by save_pretrained: special_tokens_map.json False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer


def load(name, **more):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    vocabulary = {token: i for i, token in enumerate(["<unk>", "</s>", "<e>", "a"])}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<e>"}))
    return AutoTokenizer.from_pretrained(folder)


flags = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
unknown = {"content": "<unk>", "special": True, **flags}
seen = []
for words, more in (
    ("no added_tokens_decoder", {}),
    ("empty added_tokens_decoder", {"added_tokens_decoder": {}}),
    ("added_tokens_decoder of another token", {"added_tokens_decoder": {"0": unknown}}),
):
    tokenizer = load(words, **more)
    seen.append(f"{words}: {tokenizer.eos_token}, id {tokenizer.eos_token_id}")
tokenizer.save_pretrained(Path(sys.argv[1]) / "saved")
written = (Path(sys.argv[1]) / "saved/special_tokens_map.json").exists()
seen.append(f"written by save_pretrained: special_tokens_map.json {written}")

print("\n".join(seen))
sys.exit(
    seen
    != [
        "no added_tokens_decoder: <e>, id 2",
        "empty added_tokens_decoder: </s>, id 1",
        "added_tokens_decoder of another token: </s>, id 1",
        "written by save_pretrained: special_tokens_map.json False",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
