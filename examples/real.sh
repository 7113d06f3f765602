#!/usr/bin/env bash
# A real language model in the loop: SmolLM2-135M-Instruct, autoregressive, small enough for a laptop, asked harmless
# made-up things. It is weak, and that is the point: what is said of it must say so.
#
#   examples/real.sh [FOLDER]     from the root of the repository; run again, it goes on where it stopped
#
# MODEL (a folder of weights, made if it isn't there), GOALS a set, LENGTH of responses in tokens, DTYPE and QUICK (no
# check of the judge, small guards) are read from the environment; `make real` installs what it needs. DTYPE=bfloat16
# takes two thirds of the time on a CPU that has its instructions.
set -euo pipefail
out=${1:-runs/real}
here=$(dirname "$0")/real
goals=${GOALS:-8} length=${LENGTH:-24}
model=${MODEL:-$out/SmolLM2-135M-Instruct}
sizes=(--anchors 12 --train 24 --held-out 19) fit=(--fit 12 --train 16)
if [ -n "${QUICK:-}" ]; then sizes=(--anchors 4 --train 8 --held-out 19) fit=(--fit 4 --train 4); fi
# A judge that scored nothing is told, with status 1: here that is a finding, and no failure.
judged() { midward "$@" || [ $? -eq 1 ]; }
mkdir -p "$out"
python "$here/model.py" "$model"
use=(--model "$model" --dtype "${DTYPE:-auto}") self=midward/$model

# 1. Does it answer? A turn of a chat, and every goal.
printf 'What is the capital of France?\n/quit\n' | midward chat "${use[@]}" --length "$length" | tee "$out/chat.txt"
midward generate "${use[@]}" --prompts $here/goals.csv --length "$length" --limit "$goals" --out "$out/replies.jsonl"

# 2. What are its verdicts worth? It judges by rubric what the sandbox's labelled responses did.
if [ -z "${QUICK:-}" ]; then judged judges check --judges harmfulness --judge "$self" | tee "$out/judge.txt"; fi

# 3. The model as target, as attacker, as scorer and as judge. What no text can fulfil (--harmless) is rightly refused.
judged attack "${use[@]}" --length "$length" --goals $here/goals.csv --harmless $here/cannot.csv --limit "$goals" \
    --attacks direct,prefill,pair --set pair.streams=1 --set pair.rounds=2 --attacker "$self" --scorer "$self" \
    --judges harmfulness,refusal --judge "$self" --no-replay --out "$out/attack"

# 4. Guards. It refuses next to nothing for its harm, so the anchors are made of requests that no text can fulfil.
midward guard fit "${use[@]}" --length "$length" --guards sri,sri-maha,perplexity,self-examine --alpha 0.05 \
    --harmless $here/calm.csv --harmful $here/cannot.csv "${sizes[@]}" --out "$out/guard"
judged guard eval "${use[@]}" --guard "$out/guard" --sets prefill --goals $here/goals.csv --harmless $here/calm.csv \
    --limit "$goals" --judges harmfulness --judge "$self" --repeats 1 --out "$out/guarded"

# 5. What its states say. An autoregressive model has one sampler, and every token is a step whose text is judged.
judged dynamics "${use[@]}" --length 14 --attacked prefill:$here/goals.csv --harmless $here/calm.csv "${fit[@]}" --limit 2 \
    --fit-harmful $here/cannot.csv --fit-harmless $here/calm.csv --judges harmfulness --judge "$self" --out "$out/dynamics"

# 6. What it knows: a task of one's own for lm-evaluation-harness.
midward utility "${use[@]}" --tasks real-facts --include-path $here --out "$out/utility"

# 7. One page.
midward report "$out" --out "$out/index.html"
