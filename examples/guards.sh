#!/usr/bin/env bash
# Which guard? SRI Guard, by steps and by blocks, and its published rivals, under one protocol on the sandbox: the same
# answers, one false-positive rate, every kind of harmless request. docs/monitors.md says what is asked and what came out.
#
#   examples/guards.sh [FOLDER] [PART ...]     run again, it goes on where it stopped
#
# PARTs: fit tune test opened late block arms removed refits unless named; also choice, and aligned. COUNT requests a set,
# HELD_OUT to calibrate, FITS, MODEL (sandbox, sandbox-ar, sandbox-block) and DTYPE are read from the environment.
set -euo pipefail
out=${1:-runs/guards}
[ $# -gt 0 ] && shift
parts=${*:-fit tune test opened late block arms removed refits}
count=${COUNT:-200} held_out=${HELD_OUT:-1000} fits=${FITS:-0 1 2} model=${MODEL:-sandbox}
use=(--model "$model" --dtype "${DTYPE:-auto}")
calm=benign,benign-wrapped,banned
sets=$calm,plain,wrappers,prefill,prefill-mid,pad
sizes=(--harmless $calm --anchors 200 --train 300 --held-out "$held_out" --alpha 0.01)

guards=sri,sri-maha,sri-blocks=sri-blocks:detector=autoencoder,sri-blocks-maha=sri-blocks
guards+=,energy,energy-ratio=energy:signals=ratio,energy-slope=energy:signals=slope,energy-speed=energy:signals=speed
guards+=,eos,eos-all=eos:looks=all,cascade,masks,"cascade-hesitate=cascade:members=[masks, hesitate, energy]"
guards+=,hesitate,hesitate-routed=hesitate:arm=routed,hesitate-heavy=hesitate:arm=heavy,direction
if [ "$model" != sandbox-ar ]; then # which has no masks to read, to send or to fill
    guards+=,csd-score,prefuse,prefuse-prompt=prefuse:view=prompt,prefuse-response=prefuse:view=response
    guards+=,"cascade-prefuse=cascade:members=[masks, prefuse, hesitate, energy]"
    sets+=,dija
fi

removed() { # FIT: the refusal direction and random ones, taken out (beta 1) and turned round (beta 2)
    local first=random=ablation:direction=random seed=$((2 * $1))
    echo "ablation,ablation-turned=ablation:beta=2,$first;seed=$seed,${first/=/-turned=};seed=$seed;beta=2,${first/=/-turned-b=};seed=$((seed + 1));beta=2"
}

for part in $parts; do
    case $part in
    fit) # several fits, each of the next prompts
        for fit in $fits; do
            midward guard fit "${use[@]}" --guards "$guards" "${sizes[@]}" --draw "$fit" --out "$out/fit-$fit"
        done
        ;;
    tune) # where guards and settings are chosen; they are fitted on the tuning split
        midward guard eval "${use[@]}" --guard "$out/fit-0" --split train --sets $sets --limit "$count" --repeats 1 --out "$out/tune"
        ;;
    choice) # the same by a rule, on fits of their own: of the train split, looked at on the tuning split
        for fit in $fits; do
            midward guard fit "${use[@]}" --guards "$guards" "${sizes[@]}" --split train --draw "$fit" --out "$out/choice/fit-$fit"
            midward guard eval "${use[@]}" --guard "$out/choice/fit-$fit" --split tuning --sets $sets --limit "$((count / 2))" --repeats 1 --out "$out/choice/test-$fit"
        done
        ;;
    test) # looked at once
        for fit in $fits; do
            midward guard eval "${use[@]}" --guard "$out/fit-$fit" --sets $sets --limit "$count" --repeats 1 --out "$out/test-$fit"
        done
        ;;
    opened) # harmless requests behind the attacks' own shapes
        for fit in $fits; do
            midward guard eval "${use[@]}" --guard "$out/fit-$fit" --goals sandbox-benign --sets prefill,prefill-mid,pad --limit "$((count / 2))" --repeats 1 --out "$out/opened-$fit"
        done
        ;;
    late) # B5: single tokens of a compliant answer at eight places, and harmless requests behind theirs
        for fit in $fits; do
            midward guard eval "${use[@]}" --guard "$out/fit-$fit" --sets anchoring --limit "$((count / 2))" --repeats 1 --out "$out/late-$fit"
            midward guard eval "${use[@]}" --guard "$out/fit-$fit" --goals sandbox-benign --sets anchoring --limit "$((count / 2))" --repeats 1 --out "$out/late-opened-$fit"
        done
        ;;
    block) # B1: SRI Guard by steps and by blocks on one block of 32 positions in 32 steps
        how=("${use[@]}" --length 32 --block 32 --steps 32)
        for fit in $fits; do
            midward guard fit "${how[@]}" --guards sri,sri-maha,sri-blocks=sri-blocks:detector=autoencoder,sri-blocks-maha=sri-blocks "${sizes[@]}" --draw "$fit" --out "$out/block/fit-$fit"
            midward guard eval "${how[@]}" --guard "$out/block/fit-$fit" --sets $sets --limit "$((count / 2))" --repeats 1 --out "$out/block/test-$fit"
        done
        ;;
    arms) # defences that sample otherwise: an answer of their own to every request
        for fit in $fits; do
            midward guard fit "${use[@]}" --guards sad,sad-all=sad:last=1,raec,csd,csd-steer=csd:arm=steer,csd-remask=csd:arm=remask,diffuguard "${sizes[@]}" --draw "$fit" --out "$out/arms/fit-$fit"
            midward guard eval "${use[@]}" --guard "$out/arms/fit-$fit" --sets benign,prefill,pad,dija --limit "$((count / 3))" --repeats 1 --out "$out/arms/test-$fit"
            midward guard eval "${use[@]}" --guard "$out/arms/fit-$fit" --sets benign-wrapped,banned --limit "$((count / 3))" --repeats 1 --out "$out/arms/calm-$fit"
            midward guard eval "${use[@]}" --guard "$out/arms/fit-$fit" --goals sandbox-benign --sets prefill,pad --limit "$((count / 5))" --repeats 1 --out "$out/arms/opened-$fit"
        done
        ;;
    removed) # G8: the refusal direction taken out
        for fit in $fits; do
            midward guard fit "${use[@]}" --guards "$(removed "$fit")" "${sizes[@]}" --draw "$fit" --out "$out/removed/fit-$fit"
            midward guard eval "${use[@]}" --guard "$out/removed/fit-$fit" --sets benign,plain --limit "$((count / 2))" --repeats 1 --out "$out/removed/test-$fit"
        done
        ;;
    aligned) # ADAPTERS="label=folder ...": the end token (or ALIGNED=hesitate,...) and the refusal direction there
        for adapter in ${ADAPTERS:-}; do
            own=("${use[@]}" --adapter "${adapter#*=}") to=$out/${adapter%%=*}
            for fit in $fits; do
                midward guard fit "${own[@]}" --guards "${ALIGNED:-eos,eos-all=eos:looks=all}" "${sizes[@]}" --draw "$fit" --out "$to/fit-$fit"
                midward guard eval "${own[@]}" --guard "$to/fit-$fit" --sets $sets --limit "$((count / 2))" --repeats 1 --out "$to/test-$fit"
                midward guard eval "${own[@]}" --guard "$to/fit-$fit" --goals sandbox-benign --sets prefill,prefill-mid,pad --limit "$((count / 2))" --repeats 1 --out "$to/opened-$fit"
                midward guard fit "${own[@]}" --guards "$(removed "$fit")" "${sizes[@]}" --draw "$fit" --out "$to/removed/fit-$fit"
                midward guard eval "${own[@]}" --guard "$to/removed/fit-$fit" --sets benign,plain --limit "$((count / 2))" --repeats 1 --out "$to/removed/test-$fit"
            done
        done
        ;;
    refits) # B2 to B4
        python -m tools.refits "$out/refits" --dtype "${DTYPE:-auto}"
        ;;
    esac
done
