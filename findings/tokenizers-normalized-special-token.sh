#!/usr/bin/env bash
# `skip_special_tokens=True` keeps a special token of the tokenizers library that is marked `normalized`.
#
# An added token with "normalized": true, as the first tokenizer.json files of Llama 2 have it, goes by its normalized
# form where ids become text. `id_to_token` returns that form, which `token_to_id` may not know or may give another id.
# `decode` with `skip_special_tokens=True` skips the token where it is not normalized, and keeps this form of it where
# it is. In transformers `convert_ids_to_tokens` skips both, `decode` does not.
# NFKC does it as well: a token that is written with fullwidth bars comes out with plain ones.
#
# Likely guess: `normalized` says how the token is looked for in a text. Decoding goes by id and returns what was added.
#
# Versions: tokenizers 0.23.3, transformers 5.24.0. Output:
#   prepend, normalized=False: '<s>' of id 1, decode skips it: 'a'
#   prepend, normalized=True: '▁<s>' of id None, decode skips it: '▁<s> a'
#   lowercase, normalized=False: '<E>' of id 1, decode skips it: 'a'
#   lowercase, normalized=True: '<e>' of id 3, decode skips it: '<e> a'
#   NFKC, normalized=False: '<｜e｜>' of id 1, decode skips it: 'a'
#   NFKC, normalized=True: '<|e|>' of id None, decode skips it: '<|e|> a'
#   transformers: special ids [1], convert_ids_to_tokens skips: ['a'], decode skips: '▁<s> a'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cat > "$folder/show.py" <<'PYTHON'
import sys

from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast


def tokenizer(content, normalizer, normalized):
    vocabulary = {token: i for i, token in enumerate(["<unk>", content, "a", "<e>"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.normalizer = normalizer
    made.add_special_tokens([AddedToken(content, normalized=normalized)])
    return made


seen = []
for name, content, normalizer in (
    ("prepend", "<s>", normalizers.Prepend("▁")),
    ("lowercase", "<E>", normalizers.Lowercase()),
    ("NFKC", "<｜e｜>", normalizers.NFKC()),
):
    for normalized in (False, True):
        made = tokenizer(content, normalizer, normalized)
        token = made.id_to_token(1)
        text = made.decode([1, 2], skip_special_tokens=True)
        words = f"{token!r} of id {made.token_to_id(token)}, decode skips it: {text!r}"
        seen.append(f"{name}, normalized={normalized}: {words}")

made = PreTrainedTokenizerFast(tokenizer_object=tokenizer("<s>", normalizers.Prepend("▁"), True), bos_token="<s>")
tokens = made.convert_ids_to_tokens([1, 2], skip_special_tokens=True)
text = made.decode([1, 2], skip_special_tokens=True)
seen.append(
    f"transformers: special ids {made.all_special_ids}, convert_ids_to_tokens skips: {tokens}, decode skips: {text!r}"
)

print("\n".join(seen))
sys.exit(
    seen
    != [
        "prepend, normalized=False: '<s>' of id 1, decode skips it: 'a'",
        "prepend, normalized=True: '▁<s>' of id None, decode skips it: '▁<s> a'",
        "lowercase, normalized=False: '<E>' of id 1, decode skips it: 'a'",
        "lowercase, normalized=True: '<e>' of id 3, decode skips it: '<e> a'",
        "NFKC, normalized=False: '<｜e｜>' of id 1, decode skips it: 'a'",
        "NFKC, normalized=True: '<|e|>' of id None, decode skips it: '<|e|> a'",
        "transformers: special ids [1], convert_ids_to_tokens skips: ['a'], decode skips: '▁<s> a'",
    ]
)
PYTHON
PYTHONUTF8=1 "$folder/venv/bin/python" "$folder/show.py"
