#!/usr/bin/env bash
# Trains the embedded demo model from nothing: tokenizer, autoencoder, CLIP, base, both stages.
#
#   launch/train_demo.sh [WORK [STAGE...]]
#
# WORK (work/demo) gets runs and bundles; WORK/bundles/demo is the result. Run it again
# after a stop: what is finished is not done again, and a run goes on where it was stopped. With
# STAGEs (autoencoder clip base stage1 stage2), only these; others must be finished.
set -euo pipefail

work=${1:-work/demo}
shift || true
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(autoencoder clip base stage1 stage2)
configs=$(cd "$(dirname "$0")/../configs" && pwd)
cli=${STYLECRAFTER:-stylecrafter}
mkdir -p "$work/bundles" "$work/runs"

# stage NAME START RESULT [OPTION...]: trains what follows bundle START, merges into bundle RESULT.
stage() {
    local name=$1 start=$work/bundles/$2 result=$work/bundles/$3
    shift 3
    [ ! -e "$result" ] || return 0
    "$cli" train "$configs/demo_$name.py" --out "$work/runs/$name" --set "bundle=$start"
    "$cli" merge "$work/runs/$name" "$result" "$@"
}

[ -e "$work/bundles/new" ] || "$cli" new "$configs/demo_model.py" "$work/bundles/new"
for name in "${stages[@]}"; do
    case $name in
        autoencoder) stage autoencoder new autoencoder ;;
        clip) stage clip autoencoder clip ;;
        base) stage base clip base ;;
        stage1) stage stage1 base stage1 ;;
        stage2) stage stage2 stage1 demo --dtype float16 ;;
        *) echo "train_demo.sh: there is no stage $name" >&2; exit 2 ;;
    esac
done
