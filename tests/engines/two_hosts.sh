#!/bin/bash
# Two hosts, as network namespaces with a switch between them, train one recipe through torchrun's c10d rendezvous:
#   1. undisturbed;
#   2. with the network cut for 30 s in the middle;
#   3. one host is lost, with all of its processes, and comes back.
# Each run has to finish, with the same weights to the last bit. Needs root, iproute2 and the toolkit on PATH.
#     tests/engines/two_hosts.sh
set -eu
folder=$(mktemp -d); cd "$folder"
id=$$; switch=sw$id
end() {
  for host in 1 2; do
    ip netns pids "h$host-$id" 2>/dev/null | xargs -r kill -9 || true
    ip netns del "h$host-$id" 2>/dev/null || true
  done
  ip link del "$switch" 2>/dev/null || true
  rm -rf "$folder"
}
trap end EXIT
ip link add "$switch" type bridge; ip link set "$switch" up
for host in 1 2; do
  ip netns add "h$host-$id"
  ip link add eth0 netns "h$host-$id" type veth peer name "p$host-$id"
  ip link set "p$host-$id" master "$switch" up
  ip -n "h$host-$id" addr add "10.77.0.$host/24" dev eth0
  ip -n "h$host-$id" link set lo up; ip -n "h$host-$id" link set eth0 up
done
yes 'the cat sat on a mat and dogs ran far from old home while birds sang low over green hills' | head -n 300 > texts.txt
cat > mine.yaml <<RECIPE
recipe: 1
dataset: {plugin: text-files, files: $folder/texts.txt, sample_by: line, eval_fraction: 0.1}
tokenizer: {plugin: byte-bpe, vocab_size: 300}
model: {plugin: gpt2, num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 2}
objective: {plugin: causal-lm, block_size: 32}
memory: []  # auto would choose by the memory that is free, and may choose differently for each run
training: {max_steps: ${STEPS:-1500}, global_batch_size: 4, learning_rate: 1e-3, logging_steps: 50, save_steps: 200, torch_compile: false}
RECIPE
export OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=eth0 TOOLKIT_CACHE="$folder/cache" TOOLKIT_RUNS="$folder/runs"
toolkit recipe prepare ./mine.yaml > prepare.log

start() {  # HOST RUN: starts a launcher on a host, and leaves its number in $launcher
  setsid ip netns exec "h$1-$id" python -m toolkit.system.torchrun --nnodes 2 --nproc-per-node 1 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$2" --rdzv-endpoint 10.77.0.1:29400 --local-addr "10.77.0.$1" \
    --rdzv-conf "is_host=$(($1 == 1)),join_timeout=300,read_timeout=300" \
    --no-python toolkit recipe run ./mine.yaml --name "$2" >> "$2-host$1.log" 2>&1 &
  launcher=$!
}
step() { until grep -q "\"step\": $2," "runs/$1/metrics.jsonl" 2>/dev/null; do kill -0 "$first"; sleep 0.2; done; }
finished() {  # RUN: both launchers end well, and the weights are those of the first run
  for one in "$first" "$second"; do
    wait "$one" || { status=$?; echo "$1: a launcher ended with status $status"; tail -n 20 "$1"-host?.log; exit 1; }
  done
  cmp "runs/undisturbed/model/model.safetensors" "runs/$1/model/model.safetensors"
  echo "$1: finished in ${SECONDS} s, same weights; $(toolkit run show "runs/$1" | grep -c 'from step') attempts"
}

SECONDS=0
start 1 undisturbed; first=$launcher; start 2 undisturbed; second=$launcher
finished undisturbed

SECONDS=0
start 1 cut; first=$launcher; start 2 cut; second=$launcher
step cut 250
ip link set "p2-$id" nomaster; echo "cut: the network is cut at step $(tail -n 1 runs/cut/metrics.jsonl | grep -o '"step": [0-9]*')"
sleep 30
echo "cut: it is back at step $(tail -n 1 runs/cut/metrics.jsonl | grep -o '"step": [0-9]*')"; ip link set "p2-$id" master "$switch"
finished cut

SECONDS=0
start 1 lost; first=$launcher; start 2 lost; second=$launcher
step lost 250
ip netns pids "h2-$id" | xargs kill -9; wait "$second" 2>/dev/null || true; echo "lost: the second host is gone"
sleep 5
start 2 lost; second=$launcher
finished lost
