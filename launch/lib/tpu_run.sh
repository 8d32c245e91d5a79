# shellcheck shell=bash disable=SC2034,SC2154 # options are tpu.sh's
# One command on all hosts of a slice to its end, through preemptions. Sourced.
#
# stylecrafter train ends with 0 done, 3 stopped and saved, 4 another process was lost, 1 an error,
# 2 usage; 128 and more is a signal. After 3, 4 and signals the same command goes on.
restarts=0
patience=10 # tries in a row with hosts that do not answer, though the slice is said to be there

run_to_the_end() {
    while :; do
        outcome=preempted
        if bring_up && try "set up the hosts" set_up && try "start the command" start_everywhere; then
            [ "$detach" = no ] || { created=no; say "started; run again to follow it"; return 0; }
            started=yes following=yes
            watch_hosts
            following=no
        fi
        case $outcome in
            0) finish 0 "done" ;;
            stopped*) finish "${outcome#stopped }" "stopped as asked; run again to go on" ;;
        esac
        ! one_of "$outcome" "${final_statuses[@]}" ||
            finish "$outcome" "the command ended with $outcome"
        again
    done
}

# bring_up: a slice that is there, or the end.
bring_up() {
    local state
    state=$(known "" state.state) || exit
    case $state in
        '') create_slice ;;
        SUSPENDING | SUSPENDED | FAILED) replace_slice ;;
        ACTIVE) ! gone || replace_slice ;;
        *) wait_for_slice ;;
    esac
}

replace_slice() {
    say "$name was taken away; creating it again"
    delete_slice || fail "could not delete $name"
    create_slice
}

# try WHAT STEP: 1 if the slice was taken away meanwhile; the end if the step itself failed. A step
# that did not reach a host is done again.
try() {
    local status tries
    for ((tries = 0; tries < patience; tries++)); do
        status=0
        "$2" || status=$?
        [ "$status" != 0 ] || return 0
        [ "$status" != 7 ] || fail "could not $1 of $name: see the messages above"
        ! gone || return 1
        pause
    done
    fail "could not $1: the hosts of $name do not answer, though it is" \
        "$(request "" state.state || true)"
}

# gone: the slice was taken away, wholly or in part. Not knowing is not being gone.
gone() {
    local node state
    [ "$dry_run" = no ] || return 1
    state=$(request "" state.state) || true
    case $state in SUSPENDING | SUSPENDED | FAILED) return 0 ;; esac
    for node in $(nodes); do
        state=$(node_state "$node" 2>/dev/null) || continue
        case $state in PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING) return 0 ;; esac
    done
    return 1
}

start_everywhere() {
    say "on every host: $(quoted "${command[@]}")"
    hosts_do start "${command[@]}"
}

# watch_hosts: prints worker 0's output until all hosts are done; sets outcome to what they ended with:
# an error of any, else what calls for another run, else 0; "stopped N", or "preempted".
watch_hosts() {
    local states printed=0 out_of_reach=0 part=$scratch/part
    while :; do
        if states=$(hosts_do state) &&
            on_host 0 "bash stylecrafter/host.sh log $printed" >"$part"; then
            out_of_reach=0
            cat "$part"
            printed=$((printed + $(wc -c <"$part")))
            [ "$dry_run" = no ] || states='exited 0'
            ! grep -q running <<<"$states" || { pause; continue; }
            outcome=$(worst "$states")
            break
        fi
        if gone; then outcome=preempted; break; fi
        out_of_reach=$((out_of_reach + 1))
        [ "$out_of_reach" -lt "$patience" ] ||
            fail "the hosts of $name do not answer; the slice is there:" \
                "$(request "" state.state || true)"
        pause
    done
}

# worst STATES: one word or two for the states of all hosts.
worst() {
    local word status result=0
    while read -r word status; do
        ! one_of "$status" "${final_statuses[@]}" || { echo "$status"; return; }
        case $word:$status in
            *:0) ;;
            stopped:*) result="stopped $status" ;;
            *) [[ $result == stopped* ]] || result=${status:-4} ;; # lost, or never started
        esac
    done <<<"$1"
    echo "$result"
}

# again: another try, if there are any left.
again() {
    restarts=$((restarts + 1))
    [ "$restarts" -le "$max_restarts" ] ||
        fail "ended with $outcome; $max_restarts restarts are used up (--max-restarts)"
    say "ended with $outcome; restart $restarts of $max_restarts"
    [ "$outcome" = preempted ] || pause
}

# finish STATUS WORDS...
finish() {
    local status=$1
    shift
    say "$*"
    case $status in 0 | 3) ;; *) hosts_do last >&2 || true ;; esac
    if [ "$delete_after" = yes ]; then
        delete_slice || fail "could not delete $name: it costs money; try launch/tpu.sh delete"
        delete_after=no # it is done
    elif [ "$status" = 0 ] || [ "$status" = 3 ]; then
        created=no # not a failure
    fi
    exit "$status"
}
