#!/bin/bash
# A Ray of this machine runs the driver of `toolkit recipe launch --on ray --nodes 2`. One of its two workers is killed
# in training; the run has to finish. `python` of RAY has ray[train] and torch; the toolkit is the one on PATH.
#     RAY=/path/to/venv tests/engines/ray_two_nodes.sh
set -eu
folder=$(mktemp -d); cd "$folder"
trap 'kill "$driver" 2>/dev/null || true; "$RAY/bin/ray" stop --force >/dev/null 2>&1 || true; rm -rf "$folder"' EXIT
yes 'the cat sat on a mat and dogs ran far from old home while birds sang low over green hills' | head -n 300 > texts.txt
cat > mine.yaml <<RECIPE
recipe: 1
dataset: {plugin: text-files, files: $folder/texts.txt, sample_by: line}
tokenizer: {plugin: byte-bpe, vocab_size: 300}
model: {plugin: gpt2, num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 2}
objective: {plugin: causal-lm, block_size: 32}
training: {max_steps: ${STEPS:-1500}, global_batch_size: 4, learning_rate: 1e-3, logging_steps: 50}
RECIPE
toolkit recipe launch ./mine.yaml --on ray --nodes 2 --grace 20 --write job \
  --runs-volume "$folder/runs" --cache-volume "$folder/cache"
cd job
"$RAY/bin/python" mine.ray.py > driver.log 2>&1 & driver=$!
until [ -s ../runs/mine/metrics.jsonl ]; do kill -0 "$driver"; sleep 0.5; done
echo "killing one of:"; pgrep -a -f '^ray::.*(TrainWorker)' || true
kill -9 "$(pgrep -f '^ray::.*TrainWorker' | head -n 1)"
wait "$driver" && status=0 || status=$?
grep -v PlacementGroupCleaner driver.log | tail -n 15
toolkit run show "$folder/runs/mine" | head -n 20
exit "$status"
