#!/usr/bin/env bash
# Everything docs/benchmarks.md and docs/performance.md show, anew: all.sh PEER CHECKPOINT, about an hour for 0.6 B parameters on 2 cores.
# PYTHON names the interpreter, python3 by default; it has lowbit, torch and transformers. PAIRS: timed pairs of each.
set -euo pipefail
peer=$(realpath "${1:?usage: all.sh PEER CHECKPOINT}") checkpoint=$(realpath "${2:?usage: all.sh PEER CHECKPOINT}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3} pairs=${PAIRS:-3}
models=$(mktemp -d)
trap 'rm -rf "$models"' EXIT

"$python" benchmarks/formats.py --peer "$peer" --pairs "$pairs" --json benchmarks/results/formats.json
floats=$models/$(basename "$checkpoint")-bf16.gguf
"$python" -m lowbit convert "$checkpoint" "$floats" --format bf16
"$python" benchmarks/convert.py --peer "$peer" --threads 2 --pairs "$pairs" --json benchmarks/results/convert.json "$checkpoint" "$floats"
files=()
for format in Q8_0 Q4_K_M; do
  files+=("$models/$(basename "$checkpoint")-$format.gguf")
  "$python" -m lowbit convert "$checkpoint" "${files[-1]}" --format "$format"
done
"$python" benchmarks/inference.py --peers "$peer" --threads 2 --pairs "$pairs" --source "$floats" --models "${files[@]}" \
  --json benchmarks/results/inference.json --chart docs/performance.svg
"$python" benchmarks/pages.py "${files[@]}" --json benchmarks/results/pages.json
"$python" benchmarks/sharing.py "${files[@]}" --json benchmarks/results/sharing.json
"$python" benchmarks/divergence.py --peers "$peer" --models python/lowbit/data/bard --text python/lowbit/data/bard-valid.txt \
  --json benchmarks/results/divergence.json --again
"$python" benchmarks/report.py
