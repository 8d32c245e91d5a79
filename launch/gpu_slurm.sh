#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster: one process for each GPU, queued again when it must stop.
#
# It is submitted as a copy, so it needs nothing beside it. `job` is what runs on the first node.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/gpu_slurm.sh submit|logs|status|stop|delete --name N [options] [-- COMMAND...]

  submit   -- COMMAND...: queue the command, to be run in one process for each GPU
  logs     the job's output
  status   the job's state
  stop     SIGTERM to the command: training saves, and the job is not queued again
  delete   the job, at once

which:
  --name N               of the job
what (submit):
  --nodes N              (1)
  --gpus-per-node N      (8)
  --cpus-per-gpu N       (8)
  --partition P          (the cluster's default)
  --account A            (the user's default)
  --qos Q                (the account's default)
  --time T               of one turn, such as 24:00:00 (the partition's)
the nodes (submit):
  --venv DIR             an environment that all nodes see
  --container IMAGE      an image instead, by Pyxis and Enroot
  --mount A=B            folder A of the nodes at B in the container; may be repeated
the run (submit):
  --max-restarts N       after preemptions, time limits and lost processes (10)
looking (logs):
  --follow               go on printing
  --dry-run              print every command, run none

Two minutes before its time is over the command gets SIGTERM, saves and ends with 3; the same job is
then queued again, and so it is after 4 (a process was lost) and signals. Its output is
slurm-NAME.log in the folder that it was submitted from, where logs and stop are called too.
Training must write to a folder that all nodes share. With other options of sbatch:
  sbatch [OPTIONS] launch/gpu_slurm.sh job -- COMMAND...

exit status: 0, 1 an error, 2 usage

example:
  launch/gpu_slurm.sh submit --name a --nodes 2 --partition gpu --time 24:00:00 --venv .venv -- \
      stylecrafter train configs/stage1_t2i.py --out /shared/runs/a
END
}

name='' nodes=1 gpus=8 cpus=8 partition='' account='' qos='' limit='' venv='' container=''
mounts=() max_restarts=10 follow=no dry_run=no command=()
final='1|2|126|127' # errors: another turn would end alike

say() { echo "gpu_slurm.sh: $*" >&2; }
fail() { say "$*"; exit 1; }
usage_error() { say "$* (--help lists the options)"; exit 2; }
whole_number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || usage_error "$1 must be a whole number, got $2"; }

# act COMMAND...: runs it, or in a dry run prints it as a shell would read it.
act() {
    local line
    if [ "$dry_run" = no ]; then "$@"; return; fi
    printf -v line '%q ' "$@"
    echo "${line% }"
}

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --) shift; command=("$@"); return 0 ;;
            --follow) follow=yes ;;
            --dry-run) dry_run=yes ;;
            --*)
                [[ $1 == *=* ]] && set -- "${1%%=*}" "${1#*=}" "${@:2}"
                [ $# -ge 2 ] || usage_error "$1 needs a value"
                take "$1" "$2"
                shift ;;
            *) usage_error "not understood: $1" ;;
        esac
        shift
    done
}

# take OPTION VALUE
take() {
    case $1 in
        --name) name=$2 ;;
        --nodes) whole_number "$@"; nodes=$2 ;;
        --gpus-per-node) whole_number "$@"; gpus=$2 ;;
        --cpus-per-gpu) whole_number "$@"; cpus=$2 ;;
        --partition) partition=$2 ;;
        --account) account=$2 ;;
        --qos) qos=$2 ;;
        --time) limit=$2 ;;
        --venv) venv=$2 ;;
        --container) container=$2 ;;
        --mount)
            [[ $2 == /*=/* ]] || usage_error "--mount must be /FOLDER=/FOLDER, got $2"
            mounts+=("${2%%=*}:${2#*=}") ;;
        --max-restarts) [ "$2" = 0 ] || whole_number "$@"; max_restarts=$2 ;;
        *) usage_error "there is no option $1" ;;
    esac
}

do_submit() {
    local options inside=(--max-restarts "$max_restarts") mount
    [ ${#command[@]} -gt 0 ] || usage_error "submit needs -- COMMAND..."
    [ -z "$venv" ] || [ -z "$container" ] || usage_error "--venv and --container exclude each other"
    [ -z "$venv" ] || [ -x "$venv/bin/python" ] || usage_error "--venv: there is no $venv/bin/python"
    [ -n "$container" ] || [ ${#mounts[@]} -eq 0 ] || usage_error "--mount is for --container"
    options=(--parsable --job-name "$name" --output "slurm-$name.log" --nodes "$nodes")
    # One task for each GPU, and every task sees all of its node: JAX takes the one of its number.
    options+=(--gpus-per-node "$gpus" --ntasks-per-node "$gpus" --cpus-per-task "$cpus")
    [ -z "$partition" ] || options+=(--partition "$partition")
    [ -z "$account" ] || options+=(--account "$account")
    [ -z "$qos" ] || options+=(--qos "$qos")
    [ -z "$limit" ] || options+=(--time "$limit")
    [ -z "$venv" ] || inside+=(--venv "$(cd "$venv" && pwd)")
    [ -z "$container" ] || inside+=(--container "$container")
    for mount in ${mounts[@]+"${mounts[@]}"}; do inside+=(--mount "${mount/:/=}"); done
    act sbatch "${options[@]}" "${BASH_SOURCE[0]}" job "${inside[@]}" -- "${command[@]}"
}

# do_job: on the first node, inside of the job. The steps get SIGTERM from SLURM; this shell may get
# it as well, and must stay to queue the job again.
do_job() {
    local status=0 interrupted=no words=(--kill-on-bad-exit=0 --wait=300 --gpu-bind=none) list
    local log=/proc/$$/fd/2 before error=''
    [ -n "${SLURM_JOB_ID:-}" ] || usage_error "job is for inside of a job; submit queues one"
    [ ${#command[@]} -gt 0 ] || usage_error "job needs -- COMMAND..."
    [ -z "$venv" ] || export PATH=$venv/bin:$PATH
    # srun takes no --cpus-per-task from the job since SLURM 22.05.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || words+=(--cpus-per-task "$SLURM_CPUS_PER_TASK")
    if [ -n "$container" ]; then
        words+=(--container-image "$container")
        printf -v list '%s,' ${mounts[@]+"${mounts[@]}"}
        [ ${#mounts[@]} -eq 0 ] || words+=(--container-mounts "${list%,}")
    fi
    trap 'interrupted=yes' TERM
    before=$(stat -L -c %s "$log")
    srun "${words[@]}" "${command[@]}" &
    while :; do
        status=0
        wait $! || status=$?
        [ "$interrupted" = yes ] || break
        interrupted=no # the signal ended the wait, not the step
    done
    # srun ends with the largest status; that of a task that lost another hides the other's error.
    # Both are in what it says to the job's output, which is a file unless a user said otherwise.
    [ ! -f "$log" ] || error=$(tail -c "+$((before + 1))" "$log" |
        sed -nE "s/^.*srun: error: .*: Exited with exit code ($final)\$/\1/p" | head -n 1)
    status=${error:-$status}
    say "the command ended with $status"
    if [ -e "slurm-$SLURM_JOB_ID.stopped" ]; then
        rm "slurm-$SLURM_JOB_ID.stopped"
        exit "$status"
    fi
    [[ ! $status =~ ^(0|$final)$ ]] || exit "$status"
    [ "${SLURM_RESTART_COUNT:-0}" -lt "$max_restarts" ] ||
        fail "$max_restarts restarts are used up (--max-restarts)"
    say "queued again"
    scontrol requeue "$SLURM_JOB_ID"
}

# job_number: of the newest job of this name.
job_number() {
    local found
    if [ "$dry_run" = yes ]; then echo JOB; return; fi
    found=$(squeue --me --name "$name" --noheader --format %A | sort -n | tail -n 1)
    [ -n "$found" ] || fail "there is no job $name in the queue"
    echo "$found"
}

do_logs() {
    if [ "$follow" = yes ]; then
        act tail -n +1 -F "slurm-$name.log"
    else
        act cat "slurm-$name.log"
    fi
}

do_stop() {
    local job
    job=$(job_number)
    act touch "slurm-$job.stopped"
    act scancel --signal TERM "$job"
}

do_delete() {
    local job
    job=$(job_number)
    act scancel "$job"
}

main() {
    local verb=${1:-}
    case $verb in
        -h | --help) usage; exit 0 ;;
        submit | logs | status | stop | delete | job) shift ;;
        '') usage >&2; exit 2 ;;
        *) usage_error "there is no command $verb" ;;
    esac
    parse "$@"
    if [ "$verb" != job ]; then
        [ -n "$name" ] || usage_error "--name is missing"
        [[ $name =~ ^[A-Za-z0-9][-._A-Za-z0-9]*$ ]] ||
            usage_error "--name must be of letters, digits, . _ and -, got $name"
        [ "$verb" = submit ] || [ ${#command[@]} -eq 0 ] || usage_error "$verb takes no command"
    fi
    [ "$verb" = job ] || [ "$verb" = logs ] || [ "$dry_run" = yes ] || command -v sbatch >/dev/null ||
        fail "sbatch is not on PATH; this is for a SLURM cluster's login node"
    case $verb in
        submit) do_submit ;;
        job) do_job ;;
        logs) do_logs ;;
        status) act squeue --me --name "$name" ;;
        stop) do_stop ;;
        delete) do_delete ;;
    esac
}

main "$@"; exit
