#!/usr/bin/env bash
# Which guard? SRI Guard, by steps and by blocks, and its published rivals, under one protocol on the sandbox: the same
# answers, one false-positive rate, every kind of harmless request. docs/monitors.md says what is asked and what came out.
#
#   examples/guards.sh [FOLDER] [PART ...]     run again, it goes on where it stopped
#
# PARTs, all of them but `aligned` unless named: fit tune test opened block arms aligned refits. COUNT requests a set, HELD_OUT to calibrate, FITS,
# MODEL and DTYPE are read from the environment.
set -euo pipefail
out=${1:-runs/guards}
[ $# -gt 0 ] && shift
parts=${*:-fit tune test opened block arms refits}
count=${COUNT:-200} held_out=${HELD_OUT:-1000} fits=${FITS:-0 1 2} use=(--model "${MODEL:-sandbox}" --dtype "${DTYPE:-auto}")
calm=benign,benign-wrapped,banned
sets=$calm,plain,wrappers,prefill,prefill-mid,pad,dija
sizes=(--harmless $calm --anchors 200 --train 300 --held-out "$held_out" --alpha 0.01)

guards=sri,sri-maha,sri-blocks=sri-blocks:detector=autoencoder,sri-blocks-maha=sri-blocks
guards+=,energy,energy-ratio=energy:signals=ratio,energy-slope=energy:signals=slope,energy-speed=energy:signals=speed
guards+=,eos,eos-all=eos:looks=all,cascade,masks
guards+=,hesitate,hesitate-routed=hesitate:arm=routed,hesitate-heavy=hesitate:arm=heavy
guards+=,direction,csd-score,prefuse,prefuse-prompt=prefuse:view=prompt,prefuse-response=prefuse:view=response

for part in $parts; do
    case $part in
    fit) # several fits that share no prompt
        for fit in $fits; do
            midward guard fit "${use[@]}" --guards "$guards" "${sizes[@]}" --draw "$fit" --out "$out/fit-$fit"
        done
        ;;
    tune) # where guards and settings are chosen; they are fitted on the tuning split
        midward guard eval "${use[@]}" --guard "$out/fit-0" --split train --sets $sets --limit "$count" --repeats 1 --out "$out/tune"
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
    block) # B1: SRI Guard by steps and by blocks on one block of 32 positions in 32 steps
        how=("${use[@]}" --length 32 --block 32 --steps 32)
        for fit in $fits; do
            midward guard fit "${how[@]}" --guards sri,sri-maha,sri-blocks=sri-blocks:detector=autoencoder,sri-blocks-maha=sri-blocks "${sizes[@]}" --draw "$fit" --out "$out/block/fit-$fit"
            midward guard eval "${how[@]}" --guard "$out/block/fit-$fit" --sets $sets --limit "$((count / 2))" --repeats 1 --out "$out/block/test-$fit"
        done
        ;;
    arms) # defences that sample otherwise: an answer of their own to every request
        midward guard fit "${use[@]}" --guards sad,sad-all=sad:last=1,raec,csd,csd-steer=csd:arm=steer,csd-remask=csd:arm=remask,diffuguard "${sizes[@]}" --out "$out/arms"
        midward guard eval "${use[@]}" --guard "$out/arms" --sets $sets --limit "$((count / 3))" --repeats 1 --out "$out/test-arms"
        ;;
    aligned) # ADAPTERS="label=folder ...": the same on aligned models
        for adapter in ${ADAPTERS:-}; do
            label=${adapter%%=*} own=("${use[@]}" --adapter "${adapter#*=}")
            midward guard fit "${own[@]}" --guards sri-blocks=sri-blocks:detector=autoencoder,energy,eos,cascade "${sizes[@]}" --out "$out/fit-$label"
            midward guard eval "${own[@]}" --guard "$out/fit-$label" --sets $sets --limit "$((count / 2))" --repeats 1 --out "$out/test-$label"
        done
        ;;
    refits) # B2 to B4
        python -m tools.refits "$out/refits" --dtype "${DTYPE:-auto}"
        ;;
    esac
done
