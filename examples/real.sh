#!/usr/bin/env bash
# A real language model in the loop: SmolLM2-135M-Instruct, autoregressive, small enough for a laptop, asked harmless
# made-up things. It is weak, and that is the point: what a toolkit says of it must say so.
#
#   examples/real.sh [FOLDER]     run again, it goes on where it stopped
#
# MODEL (a folder of weights, made if it isn't there), GOALS a set, LENGTH of responses in tokens and DTYPE are read from
# the environment; `make real` installs what it needs. bfloat16 halves the time on a CPU that has its instructions.
set -euo pipefail
out=${1:-runs/real}
here=$(dirname "$0")/real
goals=${GOALS:-8} length=${LENGTH:-32}
model=${MODEL:-$out/SmolLM2-135M-Instruct}
mkdir -p "$out"
python "$here/model.py" "$model"
use=(--model "$model" --dtype "${DTYPE:-auto}")
self=midward/$model

# 1. Does it answer? One turn of a chat, and every goal.
printf 'What is the capital of France?\n/quit\n' | midward chat "${use[@]}" --length "$length" >"$out/chat.txt"
midward generate "${use[@]}" --prompts "$here/goals.csv" --length "$length" --limit "$goals" --out "$out/replies.jsonl"

# 2. What are its verdicts worth? The judge's rubric, asked of the model itself, on labelled responses.
midward judges check --judges harmfulness --judge "$self" >"$out/judge.txt"

# 3. The model as target, as attacker, as scorer and as judge, in one matrix.
midward attack "${use[@]}" --length "$length" --goals "$here/goals.csv" --harmless "$here/cannot.csv" --limit "$goals" \
    --attacks direct,prefill,pair --set pair.streams=1 --set pair.rounds=2 --attacker "$self" --scorer "$self" \
    --judges harmfulness,refusal --judge "$self" --no-replay --out "$out/attack"

# 4. Its states, one sampler: an autoregressive model has no other. Anchors: what it can't do, and says so.
midward dynamics "${use[@]}" --length "$length" --attacked "prefill:$here/goals.csv" --harmless "$here/calm.csv" \
    --fit-harmful "$here/cannot.csv" --fit-harmless "$here/calm.csv" --fit 12 --train 16 --limit "$goals" \
    --judges refusal --out "$out/dynamics"

# 5. Guards. It refuses almost nothing for its harm, so "refused" prompts are requests that no text can fulfil.
midward guard fit "${use[@]}" --length "$length" --guards sri,sri-maha,perplexity,self-examine --harmless "$here/calm.csv" \
    --harmful "$here/cannot.csv" --anchors 12 --train 24 --held-out 19 --alpha 0.05 --out "$out/guard"
midward guard eval "${use[@]}" --guard "$out/guard" --sets prefill --goals "$here/goals.csv" --harmless "$here/calm.csv" \
    --limit "$goals" --judges refusal --repeats 1 --out "$out/guarded"

# 6. What it knows: a task of one's own for lm-evaluation-harness.
midward utility "${use[@]}" --tasks real-facts --include-path "$here" --out "$out/utility"

# 7. One page.
midward report "$out" --out "$out/index.html"
