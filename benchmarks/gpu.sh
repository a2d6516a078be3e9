#!/bin/bash
# What a GPU gives: steps and images of the four networks beside the releases' way, the loader beside it, a recipe's training.
#
#     benchmarks/gpu.sh OUT DATA [SECONDS]     from the root of a clone, after `make setup`; neither Ray nor DVC is needed
#     SMALL=1 benchmarks/gpu.sh OUT DATA 60    on a machine without a GPU, with tiny networks: to see that it runs
#
# OUT: a folder for the results. DATA: a folder of built data sets, with that of RECIPE (memnet-jpeg-cpu). The whole takes at most
# SECONDS (700): what is measured comes first, MemNet trains for the rest, and saves its weights and curve in OUT.
set -euo pipefail
began=$(date +%s)
out=${1:?OUT}; data=${2:?DATA}; seconds=${3:-700}
recipe=${RECIPE:-memnet-jpeg-cpu}
python=${PYTHON:-.venv/bin/python}
small=(); rounds=20
if test -n "${SMALL:-}"; then small=(--small); rounds=1; fi
mkdir -p "$out"
left() { echo $((seconds - $(date +%s) + began)); }

{ nvidia-smi || echo "no GPU"; "$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())'; } \
  > "$out/machine.txt" 2>&1
timeout "$(($(left) / 2))" "$python" benchmarks/step.py "${small[@]}" --rounds $rounds --seconds 0.05 --precision fp32 bf16 \
  > "$out/step.md" 2> "$out/step.err" || echo "step.py ended with $?" | tee -a "$out/step.err"
timeout 60 "$python" -m memoir bench step "$recipe" --data "$data" --seconds 10 > "$out/bench-step.txt" 2>&1 \
  || echo "bench step ended with $?" | tee -a "$out/bench-step.txt"
"$python" benchmarks/train_here.py "$recipe" --data "$data" --seconds "$(($(left) - 5))" --out "$out" > "$out/train.tsv" 2> "$out/train.err"
tail -n 2 "$out/step.md" "$out/bench-step.txt" "$out/train.tsv"
