#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster: a JobSet by kubectl, or the same workload by XPK.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=launch/lib/act.sh
. "$root/launch/lib/act.sh"
# shellcheck source=launch/lib/types.sh
. "$root/launch/lib/types.sh"
# shellcheck source=launch/lib/buckets.sh
. "$root/launch/lib/buckets.sh"

usage() {
    cat <<'END'
usage: launch/gke/run.sh run|logs|status|delete --project P --zone Z --cluster C --name N [options]

  run      -- COMMAND...: run the command on every host of the slices; the cluster starts it again
           after preemptions and lost processes
  logs     the first host's output
  status   the JobSet and its pods
  delete   the JobSet and its pods, which get SIGTERM and two minutes to save

which:
  --project P            the project
  --zone Z               the cluster's zone or region; with --xpk the zone of its slices
  --cluster C            the cluster; its node pools must have the type, or be made when needed
  --name N               of the run; up to 40 of a-z, 0-9 and -
what (run):
  --type T               such as v5e-16, v5p-32, v6e-16
  --image I              launch/gke/Dockerfile makes one
  --slices N             several slices for one run (1)
  --spot                 nodes that are cheaper, and may be taken away
  --mount B=DIR          bucket gs://B at folder DIR, gs://run=/mnt/run; read-only with :ro at the
                         end; may be repeated
  --service-account A    of Kubernetes; for --mount it must have access to the bucket (default)
  --max-restarts N       after preemptions and lost processes (10)
  --xpk                  by XPK instead, in a cluster that XPK made; XPK has its own ways to attach
                         storage and to name a service account
looking (logs):
  --follow               go on printing
  --render               print the manifest, do nothing
  --dry-run              print every command, run none

The image must be there. A command that ends with 1 or 2 is not started again. Training must write to
a folder that all hosts share, such as a --mount.

exit status: 0, 1 an error, 2 usage

example:
  launch/gke/run.sh run --project p --zone us-west4-a --cluster c --name a --type v5e-16 --spot \
      --image us-docker.pkg.dev/p/r/stylecrafter:1 --mount gs://my-runs=/mnt/runs -- \
      stylecrafter train configs/stage1_t2i.py --out /mnt/runs/a \
      --set bundle=/mnt/runs/bundles/videocrafter data.images=/mnt/runs/styled
END
}

project='' zone='' cluster='' name='' type='' image='' slices=1 spot=no mounts=()
service_account=default max_restarts=10 xpk=no follow=no render=no command=()

# flag OPTION
flag() {
    case $1 in
        --spot) spot=yes ;;
        --xpk) xpk=yes ;;
        --follow) follow=yes ;;
        --render) render=yes ;;
        *) return 1 ;;
    esac
}

# take OPTION VALUE
take() {
    case $1 in
        --project) project=$2 ;;
        --zone) zone=$2 ;;
        --cluster) cluster=$2 ;;
        --name) name=$2 ;;
        --type) type=$2 ;;
        --image) image=$2 ;;
        --slices) whole_number "$@"; slices=$2 ;;
        --mount) mount_parts "$2"; mounts+=("$2") ;;
        --service-account) service_account=$2 ;;
        --max-restarts) whole_number "$@"; max_restarts=$2 ;;
        *) usage_error "there is no option $1" ;;
    esac
}

what_to_run() {
    [ ${#command[@]} -gt 0 ] || usage_error "run needs -- COMMAND..."
    need "$type" --type
    need "$image" --image
    tpu_type "$type" && [ -n "$topology" ] ||
        usage_error "--type must be a slice of v4, v5e, v5p or v6e such as v5e-16, got $type"
    [ "$slices" -ge 1 ] || usage_error "--slices must be 1 or more, got $slices"
    if [ "$xpk" = yes ]; then
        [ ${#mounts[@]} -eq 0 ] || usage_error "--mount is not for --xpk"
        [ "$service_account" = default ] || usage_error "--service-account is not for --xpk"
        [ "$render" = no ] || usage_error "--render is not for --xpk"
    fi
    chips_of_host=$((chips < 4 ? chips : 4))
    hosts=$((chips / chips_of_host))
}

# json WORD: the word as a string of JSON, which is YAML as well.
json() {
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t}
    printf '"%s"' "$text"
}

# joined OPEN CLOSE WORDS...: a list or map of YAML out of finished parts.
joined() {
    local open=$1 close=$2 list
    shift 2
    printf -v list '%s, ' "$@"
    [ $# -gt 0 ] || list=', '
    printf '%s%s%s' "$open" "${list%, }" "$close"
}

# manifest: jobset.yaml with everything filled in.
manifest() {
    local text word mount bucket folder mode words=() volumes=() places=() annotations=() selector
    local tolerations=('{key: google.com/tpu, operator: Exists, effect: NoSchedule}') i=0
    # Kubernetes reads $(NAME) and $$ in commands; doubled, a $ is one.
    for word in "${command[@]}"; do words+=("$(json "${word//\$/\$\$}")"); done
    selector=("cloud.google.com/gke-tpu-accelerator: $label")
    selector+=("cloud.google.com/gke-tpu-topology: $(json "$topology")")
    if [ "$spot" = yes ]; then
        selector+=('cloud.google.com/gke-spot: "true"')
        tolerations+=(
            '{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}'
        )
    fi
    for mount in ${mounts[@]+"${mounts[@]}"}; do
        mount_parts "$mount"
        annotations=('gke-gcsfuse/volumes: "true"')
        places+=("{name: bucket-$i, mountPath: $(json "$folder"), readOnly: $(read_only)}")
        volumes+=("{name: bucket-$i, csi: {driver: gcsfuse.csi.storage.gke.io, readOnly: $(read_only), \
volumeAttributes: {bucketName: $(json "$bucket"), mountOptions: $(json "$(mount_options)")}}}")
        i=$((i + 1))
    done
    text=$(<"$root/launch/gke/jobset.yaml")
    fill name "$name"
    fill max_restarts "$max_restarts"
    fill slices "$slices"
    fill hosts "$hosts"
    fill chips "$chips_of_host"
    fill final_statuses "$(joined '[' ']' "${final_statuses[@]}")"
    fill service_account "$(json "$service_account")"
    fill image "$(json "$image")"
    fill node_selector "$(joined '{' '}' "${selector[@]}")"
    fill tolerations "$(joined '[' ']' "${tolerations[@]}")"
    fill pod_annotations "$(joined '{' '}' ${annotations[@]+"${annotations[@]}"})"
    fill volume_mounts "$(joined '[' ']' ${places[@]+"${places[@]}"})"
    fill volumes "$(joined '[' ']' ${volumes[@]+"${volumes[@]}"})"
    fill command "$(joined '[' ']' "${words[@]}")" # last, for it may hold what looks like a hole
    echo "$text"
}

# fill NAME VALUE: in manifest's text. Newer shells would take an & in VALUE for the match.
fill() {
    local hole="\${$1}"
    shopt -u patsub_replacement 2>/dev/null || true
    text=${text//"$hole"/$2}
}

read_only() { if [ "$mode" = ro ]; then echo true; else echo false; fi; }

# mount_options: hosts must see each other's files in what they write.
mount_options() {
    if [ "$mode" = ro ]; then echo implicit-dirs; else
        echo implicit-dirs,metadata-cache:ttl-secs:0
    fi
}

kube() { act kubectl --context "gke_${project}_${location}_$cluster" "$@"; }

# find_cluster: sets location, and has kubectl know the cluster. A zone may be one of a regional
# cluster's, as XPK makes them.
find_cluster() {
    local tool state='' tools=(gcloud kubectl)
    [ "$xpk" = no ] || tools+=(xpk)
    for tool in "${tools[@]}"; do
        [ "$dry_run" = yes ] || command -v "$tool" >/dev/null || fail "$tool is not on PATH"
    done
    for location in "$zone" "${zone%-[a-z]}"; do
        state=$(ask RUNNING gcloud container clusters describe "$cluster" --location "$location" \
            --format 'value(status)' --project "$project" --quiet 2>/dev/null) || continue
        break
    done
    [ -n "$state" ] ||
        fail "there is no cluster $cluster in $zone of $project that this account may see"
    [ "$state" = RUNNING ] || fail "the cluster $cluster is $state, not RUNNING"
    act gcloud container clusters get-credentials "$cluster" --location "$location" \
        --project "$project" --quiet
}

do_run() {
    local words
    check_mounts
    if [ "$xpk" = yes ]; then
        words=(--project "$project" --zone "$zone" --cluster "$cluster" --workload "$name")
        words+=(--tpu-type "$accelerator" --num-slices "$slices" --docker-image "$image")
        words+=(--max-restarts "$max_restarts")
        [ "$spot" = no ] || words+=(--spot)
        act xpk workload create "${words[@]}" --command "$(quoted "${command[@]}")"
        return
    fi
    kube get crd jobsets.jobset.x-k8s.io >/dev/null ||
        fail "the cluster $cluster has no JobSet; see https://jobset.sigs.k8s.io/docs/installation"
    [ "$dry_run" = yes ] || ! kube get jobset "$name" >/dev/null 2>&1 ||
        fail "the run $name exists already; delete removes it"
    if [ "$dry_run" = yes ]; then
        { echo "$(kube apply -f - 3>&1) <<'MANIFEST'"; manifest; echo MANIFEST; } >&3
        return
    fi
    manifest | kube apply -f -
    say "$name is started; logs --follow prints what it says"
}

do_logs() {
    local labels=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0
    local words=(--selector "$labels,batch.kubernetes.io/job-completion-index=0" --tail -1)
    [ "$follow" = no ] || words+=(--follow)
    kube logs "${words[@]}"
}

do_status() {
    kube get jobset "$name"
    kube get pods --selector "jobset.sigs.k8s.io/jobset-name=$name" --output wide
}

main() {
    local verb=${1:-}
    case $verb in
        -h | --help) usage; exit 0 ;;
        run | logs | status | delete) shift ;;
        '') usage >&2; exit 2 ;;
        *) usage_error "there is no command $verb" ;;
    esac
    parse "$@"
    need "$name" --name
    resource_name "$name"
    if [ "$verb" = run ]; then
        what_to_run
        if [ "$render" = yes ]; then manifest; return; fi
    elif [ ${#command[@]} -gt 0 ]; then
        usage_error "$verb takes no command"
    fi
    need "$project" --project
    need "$zone" --zone
    need "$cluster" --cluster
    find_cluster
    case $verb in
        run) do_run ;;
        logs) do_logs ;;
        status) do_status ;;
        delete) kube delete jobset "$name" --cascade foreground ;;
    esac
}

main "$@"
