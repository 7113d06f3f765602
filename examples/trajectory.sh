#!/usr/bin/env bash
# Does MOSA hold? Attacks on the denoising trajectory and the alignments that claim to stop them, under one protocol, on
# the sandbox. docs/trajectory.md says what is asked and what came out; python -m tools.trajectory FOLDER makes its tables.
#
#   examples/trajectory.sh [FOLDER] [PART ...]     run again, it goes on where it stopped
#
# PARTs, all of them unless named: align anchors base hijack attacks prompts contexts suffixes utility.
# GOALS a set, SEEDS of training, METHODS and DTYPE are read from the environment. 200 goals take days of a core in all:
# GOALS=60 hours.
set -euo pipefail
out=${1:-runs/trajectory}
[ $# -gt 0 ] && shift
parts=${*:-align anchors base hijack attacks prompts contexts suffixes utility}
goals=${GOALS:-200} seeds=${SEEDS:-0 1 2} dtype=(--dtype "${DTYPE:-auto}")
methods=${METHODS:-initial mosa-published mosa mosa-anchored sft rt a2d a2d-benign dpo ra}
fractions=${FRACTIONS:-0,0.01,0.03,0.125,0.25}
native=(--block 16 --order low_confidence --threshold 0.9) # the sandbox's own sampling; the probe's is the published one

# What each label of a table is trained by: 160 steps of 8 harmful and 8 benign prompts (dpo 4, of eight rows each; ra 60
# of 2, of eight sampled responses each), recipe `stable` but for mosa-published.
flags() {
    case $1 in
    initial | mosa) echo "--method $1 --max-steps 160" ;;
    mosa-published) echo "--method mosa --recipe published --max-steps 160" ;;
    mosa-anchored) echo "--method mosa --reveal 1.0 --reveal-room any --reveal-rate linear --max-steps 160" ;;
    dpo) echo "--method dpo --batch-size 4 --max-steps 160" ;;
    ra) echo "--method ra --batch-size 2 --max-steps 60 ${dtype[*]}" ;;
    ra-0) echo "--method ra --most-anchors 0 --batch-size 2 --max-steps 60 ${dtype[*]}" ;;
    a2d-benign) echo "--method a2d --batch-size 8 --max-steps 160 --benign-per-prompt 2 --benign-beta 100" ;;
    *) echo "--method $1 --batch-size 8 --max-steps 160" ;;
    esac
}
adapters() { # LABEL ...: the flags that name their adapters
    for label in "$@"; do for seed in $seeds; do
        if [ -e "$out/adapters/$label-$seed/adapter_model.safetensors" ]; then echo "--adapter $label=$out/adapters/$label-$seed"; fi
    done; done
}
attack() { # FOLDER FLAGS ...
    midward attack "${dtype[@]}" --goals sandbox --count "$goals" --judges oracle,readable --no-replay "${@:2}" --out "$out/$1"
}
anchor() { # FOLDER FLAGS ...
    midward probe anchor "${dtype[@]}" --count "$goals" --draws 1 "${@:2}" --out "$out/anchor/$1"
}

for part in $parts; do
    case $part in
    align)
        for seed in $seeds; do for label in $methods; do
            # shellcheck disable=SC2046
            midward align $(flags "$label") --seed "$seed" --out "$out/adapters/$label-$seed"
        done; done
        ;;
    anchors) # T1 to T4, T14: the curve of every model, harmless goals with anchors of their own beside it
        for seed in $seeds; do
            anchor "base-$seed" --fractions $fractions --benign $((goals / 2)) "${native[@]}" --seed "$seed"
            for label in $methods; do
                anchor "$label-$seed" --adapter "$out/adapters/$label-$seed" --fractions $fractions --benign $((goals / 2)) "${native[@]}" --seed "$seed"
            done
        done
        ;;
    base) # T1, T12, T16 on the base model and its relatives
        for seed in $seeds; do
            anchor "sources-$seed" --fractions 0,0.03,0.125 --sources own,other,neutral,refusal "${native[@]}" --seed "$seed"
            anchor "published-$seed" --fractions 0,0.01,0.03,0.125 --seed "$seed"
            anchor "window-$seed" --fractions 0,0.03,0.125 --places window "${native[@]}" --seed "$seed"
            anchor "outside-$seed" --fractions 0,0.03,0.125 --places outside "${native[@]}" --seed "$seed"
            for block in 8 32 96; do
                anchor "block-$block-$seed" --fractions 0,0.03,0.125 --block $block --order low_confidence --steps 96 --seed "$seed"
            done
            anchor "sandbox-block-$seed" --model sandbox-block --fractions 0,0.01,0.03,0.125 "${native[@]}" --seed "$seed"
        done
        ;;
    hijack) # T7, T8: four arms, and what becomes of end tokens
        # shellcheck disable=SC2046
        for case in both-stop prefill0-stop remask-stop write-stop both-forbid both-keep prefill0-forbid prefill0-keep; do
            attack "hijack/$case" $(adapters a2d mosa) --attacks trajhijack --set trajhijack.arm=${case%-*} --end ${case#*-}
        done
        attack hijack/generic $(adapters a2d mosa) --attacks trajhijack --set trajhijack.prefix=generic --set trajhijack.tokens=8
        ;;
    attacks) # T9, T15 and the rest of what asks once
        # shellcheck disable=SC2046
        attack attacks $(adapters $methods) --attacks direct,prefill,pad,dija
        for form in code table json yaml; do
            attack "nesting-$form" $(adapters mosa a2d ra) --attacks nesting --set nesting.form=$form
        done
        ;;
    prompts) # T13: searches, equal queries
        # shellcheck disable=SC2046
        attack prompts $(adapters mosa-published mosa) --attacks pair,tap --set pair.streams=4 --set pair.rounds=5 \
            --set tap.roots=1 --set tap.branching=2 --set tap.width=4 --set tap.depth=6 \
            --budget 20
        ;;
    contexts) # T11: kinds and lengths, without the forced opening; then behind it, where MOSA leaves room to rise
        for kind in neutral completed safe fraud benign concise detailed; do
            for tokens in 8 24 64; do
                attack "contexts/$kind-$tokens" --attacks post-context --set post-context.prefix=false \
                    --set post-context.kind=$kind --set post-context.tokens=$tokens
            done
        done
        for kind in none neutral completed fraud; do
            # shellcheck disable=SC2046
            attack "contexts/prefix-$kind" $(adapters mosa) --attacks post-context --set post-context.kind=$kind
        done
        ;;
    suffixes) # T5, T6: suffixes for a whole response, at equal row-forwards
        few=$((goals / 3))
        midward probe gcg "${dtype[@]}" --aim response --objectives first,target --count $few --out "$out/gcg/base-0"
        for label in mosa mosa-published; do
            midward probe gcg "${dtype[@]}" --adapter "$out/adapters/$label-0" --aim response --objectives first --count $few --out "$out/gcg/$label-0"
        done
        ;;
    utility)
        # shellcheck disable=SC2046
        midward utility "${dtype[@]}" $(adapters $methods) --tasks benign,benign-wrapped,banned,sums,recall,programs --limit "$goals" --out "$out/utility"
        ;;
    esac
done
