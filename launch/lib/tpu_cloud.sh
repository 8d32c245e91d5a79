# shellcheck shell=bash disable=SC2034,SC2154 # options are tpu.sh's
# A slice in the cloud: checks before anything is made, creation, deletion, and its hosts. Sourced.
#
# A slice is a queued resource of the same name; its nodes are --name, or with --slices --name-0, ....
created=no  # whether this call has asked for what is there
fresh=no     # whether its hosts were never set up
started=no   # whether its command was started there
following=no # whether this call follows it now
node_names='' # what find_nodes found

# cloud WORDS...: the only way to gcloud for what acts; cloud_says ANSWER WORDS... for what is asked.
# Both go on to the right project and zone, and neither asks questions.
cloud() { act gcloud "$@" --zone "$zone" --project "$project" --quiet; }
cloud_says() {
    local answer=$1
    shift
    ask "$answer" gcloud "$@" --project "$project" --quiet
}

# quiet COMMAND...: what it says on standard error is for the user only if it fails.
quiet() {
    local status=0
    "$@" 2>"$scratch/said" || status=$?
    [ "$status" = 0 ] || cat "$scratch/said" >&2
    return "$status"
}

# keep_agent: an ssh-agent only if it has gcloud's key; with any other gcloud refuses to copy files.
keep_agent() {
    ssh-add -T "$HOME/.ssh/google_compute_engine.pub" >/dev/null 2>&1 || unset SSH_AUTH_SOCK
}

# check_place: everything that would make creation fail, one line each.
check_place() {
    local found
    found=$(ask someone gcloud auth list --filter status:ACTIVE --format 'value(account)' --quiet) &&
        [ -n "$found" ] || fail "gcloud is not logged in; run gcloud auth login"
    cloud_says "$project" projects describe "$project" --format 'value(projectId)' >/dev/null 2>&1 ||
        fail "there is no project $project that this account may see"
    offered --zone "$zone" "zones with TPUs" \
        compute tpus locations list --format 'value(locationId)'
    offered --type "$accelerator" "types in $zone" \
        compute tpus accelerator-types list --zone "$zone" --format 'value(type)'
    offered --runtime "$runtime" "versions in $zone" \
        compute tpus versions list --zone "$zone" --format 'value(version)'
    check_mounts
}

# offered OPTION VALUE WHAT QUESTION...: VALUE must be among the answer's lines.
offered() {
    local option=$1 value=$2 what=$3 found
    shift 3
    found=$(cloud_says "$value" "$@") || fail "could not ask for the $what (is the TPU API enabled?)"
    grep -qxF -- "$value" <<<"$found" ||
        fail "$option $value is not among the $what: $(sort -u <<<"$found" | tr '\n' ' ')"
}

# request DRY FIELD: prints a field of the request, or nothing if there is no such request; 1 if the
# cloud does not say. known DRY FIELD: the same, and after some tries the end.
request() {
    cloud_says "$1" compute tpus queued-resources describe "$name" --zone "$zone" \
        --format "value($2)" 2>"$scratch/said" || grep -q NOT_FOUND "$scratch/said"
}
known() {
    local tries
    for tries in 1 2 3; do
        ! request "$@" || return 0
        [ "$tries" = 3 ] || pause
    done
    fail "could not ask whether there is a $name: $(head -n 1 "$scratch/said")"
}

# check_type: what is there already must be what was asked for.
check_type() {
    local found
    found=$(known "$accelerator" 'tpu.nodeSpec[0].node.acceleratorType')
    [ -z "$found" ] || [ "$found" = "$accelerator" ] ||
        fail "--type: $name exists already and is $found, not $accelerator"
}

node_state() {
    cloud_says READY compute tpus tpu-vm describe "$1" --zone "$zone" --format 'value(state)'
}

# find_nodes: for who was not told how many slices there are. need_nodes: the end if there are none.
find_nodes() {
    node_names=$(cloud_says "$name" compute tpus tpu-vm list --zone "$zone" \
        --filter "queuedResource~/$name\$" --format 'value(name.basename())')
}
need_nodes() {
    find_nodes
    [ -n "$node_names" ] || fail "there is no $name in $zone of $project"
}

nodes() {
    local i
    if [ -n "$node_names" ]; then
        echo "$node_names"
    elif [ "$slices" = 1 ]; then
        echo "$name"
    else
        for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
    fi
}

node_of_slice() {
    nodes | grep -xE -- "$name(-$slice)?" || fail "--slice: $name has no slice $slice"
}

# everywhere COMMAND: on all hosts. on_host WORKER COMMAND: on one. hosts_do WORDS...: host.sh on all;
# 7 if that ran somewhere and failed, any other status if a host was not reached.
everywhere() {
    local node
    for node in $(nodes); do
        quiet cloud compute tpus tpu-vm ssh "$node" --worker all --command "$1" || return
    done
}
hosts_do() { everywhere "bash stylecrafter/host.sh $(quoted "$@") || exit 7"; }
on_host() {
    local node
    node=$(node_of_slice) || exit
    quiet cloud compute tpus tpu-vm ssh "$node" --worker "$1" --command "$2"
}

# guard: from here on, what this call creates is deleted if it fails.
guard() {
    trap 'clean_up 129' HUP
    trap 'clean_up 141' PIPE
    trap 'clean_up 130' INT
    trap 'clean_up 143' TERM
    trap 'clean_up $?' EXIT
}

# clean_up STATUS: the end. A second signal may come before the first lines of this are run, as that of
# a closed pipe, into which the shell itself says what the first one ended: then it begins again.
clean_up() {
    local status=$1
    # Nothing may end this before the slice is gone: no second signal, no closed terminal or pipe.
    trap '' INT TERM HUP PIPE
    trap - EXIT
    [ "$BASHPID" = $$ ] || exit "$status"
    set +e
    [ "$created$delete_after" = nono ] || [ "$following" = no ] || stop_and_wait
    if [ "$created" = yes ] && [ "$keep" = yes ] && [ "$dry_run" = no ]; then
        say "$name is kept, and costs money; launch/tpu.sh delete removes it"
    elif [ "$created" = no ] && [ "$delete_after" = yes ] && [ "$started" = no ] && ! idle; then
        say "$name is kept, and costs money: its hosts may be running something else"
    elif [ "$created$delete_after" != nono ]; then
        say "deleting $name"
        delete_slice || say "could not delete $name: it may cost money; see launch/tpu.sh status"
    fi
    rm -rf "$scratch"
    exit "$status"
}

# idle: all hosts say that no command is running.
idle() {
    local states
    states=$(hosts_do state) && [[ $states != *running* ]]
}

# stop_and_wait: the command gets two minutes to save.
stop_and_wait() {
    local began=$SECONDS states
    say "stopping the command, so that it saves"
    hosts_do stop || return 0
    while [ $((SECONDS - began)) -lt 120 ] && states=$(hosts_do state); do
        [[ $states == *running* ]] || return 0
        pause
    done
}

create_slice() {
    local options=(--accelerator-type "$accelerator" --runtime-version "$runtime")
    if [ "$slices" = 1 ]; then
        options+=(--node-id "$name")
    else
        options+=(--node-count "$slices" --node-prefix "$name")
    fi
    [ -z "$capacity" ] || options+=("$capacity")
    [ -z "$network" ] || options+=(--network "$network")
    [ "$internal_ips" = no ] || options+=(--internal-ips)
    [ -z "$service_account" ] || options+=(--service-account "$service_account")
    say "asking for $accelerator in $zone"
    created=yes fresh=yes
    if ! quiet cloud compute tpus queued-resources create "$name" "${options[@]}" \
        --valid-until-duration "${timeout}s"; then
        ! grep -q ALREADY_EXISTS "$scratch/said" || created=no # somebody else's
        fail "could not ask for $name: see gcloud's message"
    fi
    wait_for_slice
}

wait_for_slice() {
    local state said='' began=$SECONDS
    while :; do
        state=$(request ACTIVE state.state) || true
        case $state in
            ACTIVE) return 0 ;;
            FAILED | SUSPENDING | SUSPENDED)
                fail "$name is $state: $(cloud_says '' compute tpus queued-resources describe "$name" \
                    --zone "$zone" --format 'value(state)' || true)" ;;
        esac
        state=${state:-unknown}
        [ "$state" = "$said" ] || say "$name is $state"
        said=$state
        [ $((SECONDS - began)) -lt "$timeout" ] ||
            fail "$name is still $state after $timeout s (--timeout)"
        pause
    done
}

# pause: a sleep that a signal ends.
pause() {
    sleep "$poll" &
    wait $! || true
}

delete_slice() {
    quiet cloud compute tpus queued-resources delete "$name" --force || return 1
    created=no
}

# which_code: sets code_id, what hosts are told apart by; the current commit unless told otherwise.
which_code() {
    local changed
    if [ -n "$wheel" ]; then
        code_id="wheel $(cksum <"$wheel")"
    elif [ -n "$container" ]; then
        code_id="container $container"
    else
        code_id=$(git -C "$root" rev-parse HEAD 2>/dev/null) ||
            usage_error "this folder is no git repository: say --wheel or --container"
        changed=$(git -C "$root" status --porcelain | wc -l)
        if [ "$allow_dirty" = no ] && [ "$changed" -gt 0 ]; then
            fail "$((changed)) files differ from commit ${code_id:0:12}, which hosts would get:" \
                "commit them, or say --allow-dirty to go without them"
        fi
    fi
}

# set_up: code and host.sh to all hosts, and what host.sh does with them. Hosts that have this code
# get nothing, but mount what is not mounted.
set_up() {
    local id="$code_id${venv:+ in $venv}${python:+ with $python}" mount words
    words=(setup "$id")
    [ -z "$wheel" ] || words+=(--wheel "$(basename "$wheel")")
    [ -z "$container" ] || words+=(--container "$container")
    [ -z "$venv" ] || words+=(--venv "$venv")
    [ -z "$python" ] || words+=(--python "$python")
    for mount in ${mounts[@]+"${mounts[@]}"}; do words+=(--mount "$mount"); done
    if [ "$fresh" = yes ] || ! hosts_do has "$id" 2>/dev/null; then
        say "setting up the hosts with ${code_id:0:60}"
        send_code || return
    fi
    hosts_do "${words[@]}" || return
    fresh=no
}

# send_code: the code and host.sh to ~/stylecrafter of all hosts.
send_code() {
    local node files
    act mkdir -p "$scratch" # for who pastes a dry run
    if [ -z "$wheel$container" ]; then
        act git -C "$root" archive --format tar --output "$scratch/code.tar" "$code_id" \
            stylecrafter_jax configs pyproject.toml constraints.txt README.md LICENSE
    else
        act tar -C "$root" -cf "$scratch/code.tar" configs constraints.txt
    fi || fail "could not pack the code"
    files=("$launch/lib/host.sh" "$scratch/code.tar")
    [ -z "$wheel" ] || files+=("$wheel")
    everywhere 'mkdir -p stylecrafter' || return 1
    for node in $(nodes); do
        quiet cloud compute tpus tpu-vm scp "${files[@]}" "$node:stylecrafter/" --worker all ||
            return 1
    done
}
