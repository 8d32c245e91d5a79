# shellcheck shell=bash disable=SC2034 # what it sets is read by those who call
# Kinds of TPU slices under the names used here and by the clouds' tools. Sourced.
#
# A slice is named for its chips on v5e and v6e, and for twice as many cores on v4 and v5p.
# Sources: Cloud TPU's pages on versions and runtime versions, GKE's "Plan TPUs", and XPK.

#  ours  Cloud TPU      GKE's label          runtime version       chips of a unit
generations=(
    "v4  v4         tpu-v4-podslice      tpu-ubuntu2204-base   2"
    "v5e v5litepod  tpu-v5-lite-podslice v2-alpha-tpuv5-lite   1"
    "v5p v5p        tpu-v5p-slice        v2-alpha-tpuv5        2"
    "v6e v6e        tpu-v6e-slice        v2-alpha-tpuv6e       1"
)
flat=(1:1x1 4:2x2 8:2x4 16:4x4 32:4x8 64:8x8 128:8x16 256:16x16)
cubic=(4:2x2x1 8:2x2x2 16:2x2x4 32:2x4x4 64:4x4x4 128:4x4x8 256:4x8x8 512:8x8x8)

# tpu_type NAME: sets accelerator, runtime, label, chips and topology ("" if NAME's size has none
# here); returns 1 if NAME is of no generation above. v5e-16 and v5litepod-16 are the same.
tpu_type() {
    local row ours theirs unit size pair
    [[ $1 =~ ^([a-z0-9]+)-([0-9]+)$ ]] || return 1
    size=$((10#${BASH_REMATCH[2]}))
    for row in "${generations[@]}"; do
        read -r ours theirs label runtime unit <<<"$row"
        one_of "${BASH_REMATCH[1]}" "$ours" "$theirs" || continue
        accelerator=$theirs-$size chips=$((size / unit)) topology=
        local sizes=("${flat[@]}")
        [ "$unit" = 1 ] || sizes=("${cubic[@]}")
        for pair in "${sizes[@]}"; do
            [ "${pair%%:*}" != "$chips" ] || topology=${pair#*:}
        done
        return 0
    done
    return 1
}
