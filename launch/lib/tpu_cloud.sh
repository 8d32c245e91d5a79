# shellcheck shell=bash disable=SC2034,SC2154 # options are tpu.sh's
# A slice in the cloud: checks before anything is made, creation, deletion, and its hosts. Sourced.
#
# A slice is a queued resource of the same name; its nodes are --name, or with --slices --name-0, ....
created=no  # whether this call has asked for what is there
fresh=no     # whether its hosts were never set up
following=no # whether this call follows a command on the hosts

# cloud WORDS...: the only way to gcloud for what acts; cloud_says ANSWER WORDS... for what is asked.
# Both go on to the right project and zone, and neither asks questions.
cloud() { act gcloud "$@" --zone "$zone" --project "$project" --quiet; }
cloud_says() {
    local answer=$1
    shift
    ask "$answer" gcloud "$@" --project "$project" --quiet
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

request_state() {
    cloud_says ACTIVE compute tpus queued-resources describe "$name" --zone "$zone" \
        --format 'value(state.state)'
}

# exists: in a dry run, nothing does.
exists() { [ -n "$(request_state_or_none "")" ]; }

# request_state_or_none DRY: the state, or nothing if there is no such request.
request_state_or_none() {
    cloud_says "$1" compute tpus queued-resources describe "$name" --zone "$zone" \
        --format 'value(state.state)' 2>/dev/null || true
}

node_state() {
    cloud_says READY compute tpus tpu-vm describe "$1" --zone "$zone" --format 'value(state)'
}

nodes() {
    local i
    if [ "$slices" = 1 ]; then echo "$name"; return; fi
    for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
}

node_of_slice() { if [ "$slices" = 1 ]; then echo "$name"; else echo "$name-$slice"; fi; }

# everywhere COMMAND: on all hosts. on_host WORKER COMMAND: on one. hosts_do WORDS...: host.sh on all;
# 7 if that ran somewhere and failed, any other status if a host was not reached.
everywhere() {
    local node
    for node in $(nodes); do
        cloud compute tpus tpu-vm ssh "$node" --worker all --command "$1" || return
    done
}
hosts_do() { everywhere "bash stylecrafter/host.sh $(quoted "$@") || exit 7"; }
on_host() { cloud compute tpus tpu-vm ssh "$(node_of_slice)" --worker "$1" --command "$2"; }

# guard: from here on, what this call creates is deleted if it fails.
guard() {
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap clean_up EXIT
}

clean_up() {
    local status=$?
    trap '' INT TERM
    [ "$created" = no ] || [ "$following" = no ] || stop_and_wait
    if [ "$created" = yes ] && [ "$keep" = yes ] && [ "$dry_run" = no ]; then
        say "$name is kept, and costs money; launch/tpu.sh delete removes it"
    elif [ "$created" = yes ]; then
        say "deleting $name, which this call created"
        delete_slice || say "could not delete $name: it may cost money; see launch/tpu.sh status"
    fi
    exit "$status"
}

# stop_and_wait: the command gets two minutes to save.
stop_and_wait() {
    local began=$SECONDS
    say "stopping the command, so that it saves"
    hosts_do stop || return 0
    while [ $((SECONDS - began)) -lt 120 ] && hosts_do state | grep -q running; do pause; done
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
    cloud compute tpus queued-resources create "$name" "${options[@]}" \
        --valid-until-duration "${timeout}s" || fail "could not ask for $name: see gcloud's message"
    wait_for_slice
}

wait_for_slice() {
    local state said='' began=$SECONDS
    while :; do
        state=$(request_state) || state=unknown
        case $state in
            ACTIVE) return 0 ;;
            FAILED | SUSPENDING | SUSPENDED)
                fail "$name is $state: $(cloud_says '' compute tpus queued-resources describe "$name" \
                    --zone "$zone" --format 'value(state)' || true)" ;;
        esac
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
    cloud compute tpus queued-resources delete "$name" --force || return 1
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
    local parcel=${TMPDIR:-/tmp}/stylecrafter-$name node files
    act mkdir -p "$parcel"
    if [ -z "$wheel$container" ]; then
        act git -C "$root" archive --format tar --output "$parcel/code.tar" "$code_id" \
            stylecrafter_jax configs pyproject.toml constraints.txt README.md LICENSE
    else
        act tar -C "$root" -cf "$parcel/code.tar" configs constraints.txt
    fi
    files=("$launch/lib/host.sh" "$parcel/code.tar")
    [ -z "$wheel" ] || files+=("$wheel")
    everywhere 'mkdir -p stylecrafter' || return 1
    for node in $(nodes); do
        cloud compute tpus tpu-vm scp "${files[@]}" "$node:stylecrafter/" --worker all || return 1
    done
    act rm -r "$parcel"
}
