#!/usr/bin/env bash
# Gemma 3's two soft caps: transformers 5 reads both, one counts in no model, the other in one of two.
#
# `attn_logit_softcapping` is a field of Gemma 3's text configuration. Its attention layers read it and do not use it.
# Gemma 2, which has the same field, obeys it. `final_logit_softcapping` counts in Gemma3ForCausalLM and not in
# Gemma3ForConditionalGeneration, with the same weights and the same text configuration. So the logits of a text depend
# on the class that loads a checkpoint.
#
# Likely guess: a field of the configuration that Gemma 2 obeys is obeyed, and the model that also sees images answers a
# text as its own text model does.
#
# Versions: transformers 5.24.0, torch 2.13.0 on a CPU, attention "eager". Caps of 0.5 against none. Output:
#   attn_logit_softcapping changes Gemma2ForCausalLM: True
#   attn_logit_softcapping changes Gemma3ForCausalLM: False
#   final_logit_softcapping None: largest logit of the text model 7.76, with images 7.76
#   final_logit_softcapping 0.5: largest logit of the text model 0.5, with images 7.76
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cat > "$folder/show.py" <<'PYTHON'
import sys

import torch
from transformers import (
    Gemma2Config, Gemma2ForCausalLM, Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig,
)

IDS = torch.tensor([[2, 5, 9, 3, 40]])
TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 1, "initializer_range": 0.3, "pad_token_id": 0,
    "attn_implementation": "eager",
}
IMAGES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def seeded(model_class, config):
    torch.manual_seed(0)
    return model_class(config)


seen = []
for config_class, model_class in ((Gemma2Config, Gemma2ForCausalLM), (Gemma3TextConfig, Gemma3ForCausalLM)):
    without, capped = (
        logits(seeded(model_class, config_class(**TEXT, attn_logit_softcapping=cap))) for cap in (None, 0.5)
    )
    seen.append(f"attn_logit_softcapping changes {model_class.__name__}: {not torch.equal(without, capped)}")

for cap in (None, 0.5):
    text = TEXT | {"final_logit_softcapping": cap}
    config = Gemma3Config(text_config=text, vision_config=IMAGES, mm_tokens_per_image=4)
    with_images = seeded(Gemma3ForConditionalGeneration, config)
    alone = Gemma3ForCausalLM(Gemma3TextConfig(**text))
    alone.model.load_state_dict(with_images.model.language_model.state_dict())
    alone.lm_head.load_state_dict(with_images.lm_head.state_dict())
    largest = [round(float(logits(model).abs().max()), 2) for model in (alone, with_images)]
    words = f"largest logit of the text model {largest[0]}, with images {largest[1]}"
    seen.append(f"final_logit_softcapping {cap}: {words}")

print("\n".join(seen))
sys.exit(
    seen
    != [
        "attn_logit_softcapping changes Gemma2ForCausalLM: True",
        "attn_logit_softcapping changes Gemma3ForCausalLM: False",
        "final_logit_softcapping None: largest logit of the text model 7.76, with images 7.76",
        "final_logit_softcapping 0.5: largest logit of the text model 0.5, with images 7.76",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
