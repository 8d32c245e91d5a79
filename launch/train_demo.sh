#!/usr/bin/env bash
# Trains the embedded demo model from nothing: tokenizer, autoencoder, CLIP, base, both stages.
#
#   launch/train_demo.sh [WORK [STAGE...]]
#
# WORK (work/demo) gets runs and bundles; WORK/bundles/demo is the result. Run it again
# after a stop: what is finished is not done again, and a run goes on where it was stopped. With
# STAGEs (autoencoder clip pictures motion base stage1 stage2), only these; others must be finished.
# SETTINGS in the environment, such as "train.steps=100 train.log_every=10", go to every run.
set -euo pipefail

work=${1:-work/demo}
shift || true
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(autoencoder clip pictures motion base stage1 stage2)
for name in "${stages[@]}"; do
    case $name in
        autoencoder | clip | pictures | motion | base | stage1 | stage2) ;;
        *) echo "train_demo.sh: there is no stage $name" >&2; exit 2 ;;
    esac
done
configs=$(cd "$(dirname "$0")/../configs" && pwd)
cli=${STYLECRAFTER:-stylecrafter}
read -ra settings <<<"${SETTINGS:-}"
mkdir -p "$work/bundles" "$work/runs"

# stage CONFIG START RESULT [SETTING...]: trains from bundle START, merges into bundle RESULT.
stage() {
    local config=$configs/demo_$1.py start=$work/bundles/$2 result=$work/bundles/$3 dtype=()
    local run=$work/runs/$3
    shift 3
    [ ! -e "$result" ] || return 0
    "$cli" train "$config" --out "$run" --set "bundle=$start" "$@" ${settings[@]+"${settings[@]}"}
    [ "$(basename "$result")" != demo ] || dtype=(--dtype float16)
    "$cli" merge "$run" "$result" ${dtype[@]+"${dtype[@]}"}
}

[ -e "$work/bundles/new" ] || "$cli" new "$configs/demo_model.py" "$work/bundles/new"
for name in "${stages[@]}"; do
    case $name in
        autoencoder) stage autoencoder new autoencoder ;;
        clip) stage clip autoencoder clip ;;
        pictures) stage base clip pictures data.videos=null ;;
        motion)
            stage base pictures motion train.steps=4000 loss.timestep_shift=8 data.image_share=0.2
            ;;
        base)
            stage base motion base train.steps=500 train.ema_decay=0.99 \
                optimizer.learning_rate=5e-4 optimizer.schedule=cosine optimizer.decay_steps=500
            ;;
        stage1) stage stage1 base stage1 ;;
        stage2) stage stage2 stage1 demo ;;
    esac
done
