#!/usr/bin/env bash
# PEFT's `ensure_weight_tying=True` ties low-rank adapters on a float32 model alone, and merging adds them twice.
#
# A LoRA of `embed_tokens` with `ensure_weight_tying=True`, on a model whose embeddings and output are one matrix, makes
# two adapters, one for each use of the matrix. The factors of the second are transposed views of the first's.
# 1. Adapters of a bfloat16 or float16 model are then cast to float32 (`autocast_adapter_dtype`, on unless turned off).
#    The cast gives each factor memory of its own. Training makes the two adapters different, without a warning. The
#    adapters of a float32 model stay equal. `model.to(dtype)` later on breaks the tie as well.
# 2. `merge_and_unload()` adds the product of each adapter to the one matrix: base + 2 B A. The unmerged model computes
#    with base + B A. A warning tells of "complications" and names no such sum.
#
# Likely guess: what is ensured holds for the types that models are trained in, as tied weights of transformers stay
# tied through casts, and merging tied adapters leaves the logits alone.
#
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0 on a CPU, accelerate 1.15.0, safetensors 0.8.0. Output:
#   torch.float32: adapters equal after training True
#   torch.bfloat16: adapters equal after training False
#   torch.float16: adapters equal after training False
#   torch.float32 and .to(torch.float64): adapters equal after training False
#   warnings of bfloat16 that float32 does not give: 0
#   (merged - base) / (B A): 2.0
#   merged and unmerged logits are close: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0
cat > "$folder/show.py" <<'PYTHON'
import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

IDS = torch.tensor([[1, 5, 9, 3, 40]])


def adapted(dtype):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens"], ensure_weight_tying=True)
    return get_peft_model(LlamaForCausalLM(config).to(dtype), lora).eval()


def products(model):
    """B A, times the scale, for the embeddings and for the output."""
    inner = model.base_model.model
    return [layer.get_delta_weight("default").detach() for layer in (inner.model.embed_tokens, inner.lm_head)]


def train(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()


def equal_after_training(model):
    train(model)
    embeddings, output = products(model)
    return torch.allclose(embeddings, output, atol=1e-5)


seen, warned = [], {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        equal = equal_after_training(adapted(dtype))
    warned[dtype] = {str(each.message) for each in caught}
    seen.append(f"{dtype}: adapters equal after training {equal}")
equal = equal_after_training(adapted(torch.float32).to(torch.float64))
seen.append(f"torch.float32 and .to(torch.float64): adapters equal after training {equal}")
more = warned[torch.bfloat16] - warned[torch.float32]
seen.append(f"warnings of bfloat16 that float32 does not give: {len(more)}")

model = adapted(torch.float32)
train(model)
base = model.base_model.model.model.embed_tokens.base_layer.weight.detach().clone()
product = products(model)[0]
with torch.no_grad():
    unmerged = model(IDS).logits
    merged_model = model.merge_and_unload()
    merged = merged_model(IDS).logits
change = merged_model.model.embed_tokens.weight.detach() - base
seen.append(f"(merged - base) / (B A): {round(float((change / product).median()), 3)}")
seen.append(f"merged and unmerged logits are close: {torch.allclose(merged, unmerged, atol=1e-3)}")

print("\n".join(seen))
sys.exit(
    seen
    != [
        "torch.float32: adapters equal after training True",
        "torch.bfloat16: adapters equal after training False",
        "torch.float16: adapters equal after training False",
        "torch.float32 and .to(torch.float64): adapters equal after training False",
        "warnings of bfloat16 that float32 does not give: 0",
        "(merged - base) / (B A): 2.0",
        "merged and unmerged logits are close: False",
    ]
)
PYTHON
PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/show.py"
