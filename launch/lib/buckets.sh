# shellcheck shell=bash disable=SC2034,SC2154 # options are the launcher's
# Buckets that hosts have as folders. Sourced.

# mount_parts BUCKET=DIR[:ro]: sets bucket, folder and mode (rw or ro).
mount_parts() {
    [[ $1 =~ ^gs://([a-z0-9][-_.a-z0-9]+)=(/[^:]+)(:ro)?$ ]] ||
        usage_error "--mount must be gs://BUCKET=/FOLDER or gs://BUCKET=/FOLDER:ro, got $1"
    bucket=${BASH_REMATCH[1]} folder=${BASH_REMATCH[2]} mode=${BASH_REMATCH[3]:+ro}
    mode=${mode:-rw}
}

# check_mounts: that the project's account sees every bucket of mounts, and that what is written can be
# renamed whole: with a flat namespace a checkpoint's folder would be copied file by file.
check_mounts() {
    local found mount bucket folder mode
    for mount in ${mounts[@]+"${mounts[@]}"}; do
        mount_parts "$mount"
        found=$(ask True gcloud storage buckets describe "gs://$bucket" --raw \
            --format 'value(hierarchicalNamespace.enabled)' --project "$project" --quiet \
            2>/dev/null) || fail "--mount: there is no bucket gs://$bucket that this account may see"
        [ "$mode" = ro ] || [ "$found" = True ] ||
            fail "--mount: gs://$bucket has no hierarchical namespace, so that checkpoints could not" \
                "be renamed whole; create one with --enable-hierarchical-namespace, or mount it :ro"
    done
}
