#!/usr/bin/env bash
# Trains on Cloud TPUs: creates slices, sets up their hosts, runs a command on all of them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
launch=$root/launch
# shellcheck source=launch/lib/act.sh
. "$launch/lib/act.sh"
# shellcheck source=launch/lib/types.sh
. "$launch/lib/types.sh"
# shellcheck source=launch/lib/buckets.sh
. "$launch/lib/buckets.sh"
# shellcheck source=launch/lib/tpu_cloud.sh
. "$launch/lib/tpu_cloud.sh"
# shellcheck source=launch/lib/tpu_run.sh
. "$launch/lib/tpu_run.sh"

usage() {
    cat <<'END'
usage: launch/tpu.sh create|run|logs|status|ssh|stop|delete --project P --zone Z --name N [options]

  create   ask for the slice, wait for it, set up its hosts
  run      -- COMMAND...: create what is missing, run the command on every host, print worker 0's
           output to its end; after a preemption, create, set up and run again
  logs     a worker's output
  status   the slice, and the command on each host
  ssh      a shell on a worker, or with -- COMMAND... that command on it
  stop     SIGTERM to the command: training saves and ends with status 3
  delete   the slice and its request

which:
  --project P            the project
  --zone Z               such as us-west4-a
  --name N               of the slice; up to 40 of a-z, 0-9 and -
what (create, run):
  --type T               such as v5e-16, v5p-32, v6e-16, or Cloud TPU's own name with --runtime
  --runtime V            software version of the hosts (the usual one of the type)
  --spot                 cheaper, and may be taken away
  --reserved             from the project's reservation; neither: on demand
  --slices N             several slices for one run (1)
  --service-account A    of the hosts (the project's default)
  --network N            (default)
  --internal-ips         hosts without addresses outside
  --timeout SECONDS      wait as long for the slice, then give up (3600)
the hosts (create, run):
  --allow-dirty          send the current commit though files differ from it
  --wheel FILE           this package instead of the current commit
  --container IMAGE      this image instead of an installation
  --venv DIR             an environment that the hosts' image has, instead of a new one
  --python PROGRAM       the hosts' Python, 3.11 or later (python3, or a new one by uv)
  --mount B=DIR          bucket gs://B at folder DIR, gs://run=/mnt/run; read-only with :ro at the
                         end; may be repeated
the run (run):
  --max-restarts N       after preemptions and lost processes (10)
  --detach               start the command and leave; run again to follow it
  --delete-after         delete the slice at the end, whatever that was and whoever created it, but
                         not if something else is running there
  --keep-on-failure      keep what was created though something failed
  --poll SECONDS         between two looks at the hosts (20)
looking (logs, ssh):
  --worker N             or all (0)
  --slice N              of several (0)
  --follow               go on printing
  --dry-run              print every command, run none

Hosts get the current commit; files that differ from it are an error. What this call created is
deleted if it fails or is interrupted. Training must write to a folder that all hosts share.

exit status: the command's own; 0 done, 1 an error, 2 usage, 3 stopped and saved, 130 interrupted

example:
  launch/tpu.sh run --project p --zone us-west4-a --name a --type v5e-16 --spot --delete-after \
      --mount gs://my-runs=/mnt/runs -- stylecrafter train configs/stage1_t2i.py --out /mnt/runs/a \
      --set bundle=/mnt/runs/bundles/videocrafter data.images=/mnt/runs/styled
END
}

project='' zone='' name='' type='' runtime='' capacity='' slices=1 service_account='' network=''
internal_ips=no timeout=3600 allow_dirty=no wheel='' container='' venv='' python='' mounts=()
max_restarts=10 detach=no delete_after=no keep=no poll=20 worker=0 slice=0 follow=no command=()

# flag OPTION
flag() {
    case $1 in
        --spot | --reserved)
            [ -z "$capacity" ] || usage_error "--spot and --reserved exclude each other"
            capacity=$1 ;;
        --internal-ips) internal_ips=yes ;;
        --allow-dirty) allow_dirty=yes ;;
        --detach) detach=yes ;;
        --delete-after) delete_after=yes ;;
        --keep-on-failure) keep=yes ;;
        --follow) follow=yes ;;
        *) return 1 ;;
    esac
}

# take OPTION VALUE
take() {
    case $1 in
        --project) project=$2 ;;
        --zone) zone=$2 ;;
        --name) name=$2 ;;
        --type) type=$2 ;;
        --runtime) runtime=$2 ;;
        --slices) whole_number "$@"; slices=$2 ;;
        --service-account) service_account=$2 ;;
        --network) network=$2 ;;
        --timeout) whole_number "$@"; timeout=$2 ;;
        --wheel) wheel=$2 ;;
        --container) container=$2 ;;
        --venv) venv=$2 ;;
        --python) python=$2 ;;
        --mount) mount_parts "$2"; mounts+=("$2") ;;
        --max-restarts) whole_number "$@"; max_restarts=$2 ;;
        --poll) [[ $2 =~ ^[0-9.]+$ ]] || usage_error "--poll must be seconds, got $2"; poll=$2 ;;
        --worker)
            [[ $2 =~ ^([0-9]+|all)$ ]] || usage_error "--worker must be a number or all, got $2"
            worker=$2 ;;
        --slice) whole_number "$@"; slice=$2 ;;
        *) usage_error "there is no option $1" ;;
    esac
}

# what_to_create: the options that say what a slice is, checked without asking the cloud.
what_to_create() {
    local given_runtime=$runtime
    need "$type" --type
    if ! tpu_type "$type"; then
        [ -n "$given_runtime" ] ||
            usage_error "--type must be of v4, v5e, v5p or v6e, or come with --runtime, got $type"
        accelerator=$type
    fi
    runtime=${given_runtime:-$runtime}
    [ "$slices" -ge 1 ] || usage_error "--slices must be 1 or more, got $slices"
    [ -z "$wheel" ] || [ -z "$container" ] ||
        usage_error "--wheel and --container exclude each other"
    [ -z "$wheel" ] || [ -f "$wheel" ] || usage_error "--wheel: there is no file $wheel"
    [[ $wheel == '' || $wheel == *.whl ]] || usage_error "--wheel must be a .whl file, got $wheel"
    which_code
}

main() {
    local verb=${1:-}
    case $verb in
        -h | --help) usage; exit 0 ;;
        create | run | logs | status | ssh | stop | delete) shift ;;
        '') usage >&2; exit 2 ;;
        *) usage_error "there is no command $verb" ;;
    esac
    parse "$@"
    need "$project" --project
    need "$zone" --zone
    need "$name" --name
    resource_name "$name"
    case $verb in
        create | logs | status | stop | delete)
            [ ${#command[@]} -eq 0 ] || usage_error "$verb takes no command" ;;
        run) [ ${#command[@]} -gt 0 ] || usage_error "run needs -- COMMAND..." ;;
    esac
    case $verb in create | run) what_to_create ;; esac
    [ "$verb" = run ] || delete_after=no
    [ "$detach" = no ] || [ "$delete_after" = no ] ||
        usage_error "--detach and --delete-after exclude each other: nobody would see the end"
    [ "$dry_run" = yes ] || command -v gcloud >/dev/null ||
        fail "gcloud is not on PATH; the Google Cloud SDK has it"
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/stylecrafter-XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    keep_agent
    "do_$verb"
}

do_create() {
    local state
    check_place
    state=$(known "" state.state)
    [ -z "$state" ] || fail "$name exists already and is $state; run uses it, delete removes it"
    guard
    create_slice
    try "set up the hosts" set_up || fail "$name was taken away while it was set up"
    created=no
    say "$name is ready"
}

do_run() {
    check_place
    check_type
    guard
    run_to_the_end
}

do_logs() {
    need_nodes
    if [ "$follow" = yes ]; then
        on_host "$worker" 'tail -n +1 -F stylecrafter/run/log'
    else
        on_host "$worker" 'bash stylecrafter/host.sh log'
    fi
}

do_status() {
    local node state
    state=$(known ACTIVE state.state)
    [ -n "$state" ] || fail "there is no $name in $zone of $project"
    echo "request: $state"
    find_nodes
    for node in $node_names; do echo "$node: $(node_state "$node")"; done
    # shellcheck disable=SC2016 # for the hosts' shell
    [ "$state" != ACTIVE ] || everywhere 'echo "$(hostname): $(bash stylecrafter/host.sh state)"'
}

do_ssh() {
    local words=(--worker "$worker") node
    need_nodes
    node=$(node_of_slice)
    [ ${#command[@]} -eq 0 ] || words+=(--command "$(quoted "${command[@]}")")
    cloud compute tpus tpu-vm ssh "$node" "${words[@]}"
}

do_stop() { need_nodes; hosts_do stop; }

do_delete() { delete_slice; }

main "$@"
