#!/usr/bin/env bash
# What is done on a host: install, mount, run one command detached, say how it goes.
#
#   host.sh setup ID [--wheel FILE | --container IMAGE] [--venv DIR] [--python PROGRAM]
#                    [--mount gs://BUCKET=/FOLDER[:ro]]...
#   host.sh has ID               whether that is set up
#   host.sh start COMMAND...     does nothing if that very command is running
#   host.sh state                none, running, exited N, stopped N (somebody asked) or lost
#   host.sh log [BYTES]          the command's output, from that byte on
#   host.sh last                 the output's last lines, if it ended with an error
#   host.sh stop                 SIGTERM
#
# launch/tpu.sh sends it to ~/stylecrafter of every host; all it makes lies there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here"

fail() { echo "$(hostname): $*" >&2; exit 1; }

python_is_new() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# make_venv PYTHON: with that one; the images' own may be too old, then uv brings one that is not.
make_venv() {
    [ -z "$1" ] || python_is_new "$1" || fail "--python: $1 is no Python of 3.11 or later"
    [ ! -x venv/bin/python ] || return 0
    if python_is_new "${1:-python3}" && "${1:-python3}" -c 'import ensurepip' 2>/dev/null; then
        "${1:-python3}" -m venv venv
    else
        python3 -m pip install --quiet --user uv
        "$HOME/.local/bin/uv" venv --quiet --seed --python 3.12 venv
    fi
}

# mount_bucket gs://BUCKET=/FOLDER[:ro]. Written buckets are never cached: hosts must see each
# other's files. An existing mount stays, and must be the same.
mount_bucket() {
    local name=${1#gs://} folder mode=rw options=(--metadata-cache-ttl-secs 0) found there
    folder=${name#*=} name=${name%%=*}
    if [ "$folder" != "${folder%:ro}" ]; then folder=${folder%:ro} mode=ro options=(-o ro); fi
    if found=$(findmnt --noheadings --output SOURCE,OPTIONS --mountpoint "$folder"); then
        read -r found there <<<"$found"
        [ "$found ${there%%,*}" = "$name $mode" ] ||
            fail "--mount: $folder is $found (${there%%,*}) already, not $name ($mode)"
        return 0
    fi
    command -v gcsfuse >/dev/null || install_gcsfuse
    sudo mkdir -p "$folder"
    sudo gcsfuse --implicit-dirs -o allow_other --uid "$(id -u)" --gid "$(id -g)" \
        "${options[@]}" "$name" "$folder"
}

# From Google's instructions for Debian and Ubuntu.
install_gcsfuse() {
    local keys=/usr/share/keyrings/cloud.google.asc site=https://packages.cloud.google.com/apt
    curl -fsS "$site/doc/apt-key.gpg" | sudo tee "$keys" >/dev/null
    echo "deb [signed-by=$keys] $site gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    # A new host may be upgrading itself; update does not wait for that of its own accord.
    for _ in $(seq 60); do ! sudo apt-get -qq update || break; sleep 10; done
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y gcsfuse >/dev/null
}

pull_image() {
    local registry=${1%%/*}
    case $registry in *.pkg.dev | gcr.io | *.gcr.io)
        sudo gcloud auth configure-docker "$registry" --quiet ;;
    esac
    sudo docker pull --quiet "$1"
}

has() { [ -e ready ] && [ "$(cat ready)" = "$1" ]; }

# setup ID [OPTIONS]: ID says what is set up; a host that has it already does nothing.
setup() {
    local id=$1 wheel='' image='' venv='' python='' mounts=() mount
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --wheel) wheel=$2 ;;
            --container) image=$2 ;;
            --venv) venv=$2 ;;
            --python) python=$2 ;;
            --mount) mounts+=("$2") ;;
            *) fail "setup does not know $1" ;;
        esac
        shift 2
    done
    for mount in ${mounts[@]+"${mounts[@]}"}; do mount_bucket "$mount"; done
    if ! has "$id"; then install; fi
    [ -n "$image$venv" ] || venv=$here/venv
    # Also for a host that has it: there may be another mount.
    { declare -p image; declare -p venv; declare -p wheel; declare -p mounts; } >settings
    echo "$id" >ready
}

# install: what setup was told. pip takes a rebuilt wheel of the same version for the one it has.
install() {
    [ "$(state)" != running ] || fail "is running a command of another set-up; stop it first"
    rm -rf ready src lib
    mkdir -p src bin
    tar -xf code.tar -C src
    printf '#!/usr/bin/env bash\nexec python -m stylecrafter_jax "$@"\n' >bin/stylecrafter
    chmod +x bin/stylecrafter
    if [ -n "$image" ]; then
        pull_image "$image"
    elif [ -n "$venv" ]; then
        [ -x "$venv/bin/python" ] || fail "there is no $venv/bin/python"
        [ -z "$wheel" ] || "$venv/bin/python" -m pip install --quiet --no-deps --target lib "$wheel"
    else
        make_venv "$python"
        venv/bin/python -m pip install --quiet --disable-pip-version-check \
            -c src/constraints.txt "${wheel:-./src}[tpu]"
        [ -z "$wheel" ] || venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --force-reinstall --no-deps "$wheel"
    fi
}

# in_place COMMAND...: becomes the command, in its environment.
in_place() {
    local image venv wheel mounts mount volumes=()
    # shellcheck source=/dev/null # written by setup
    . "$here/settings"
    cd "$here/src"
    if [ -n "$image" ]; then
        for mount in ${mounts[@]+"${mounts[@]}"}; do
            mount=${mount#*=} mount=${mount%:ro}
            volumes+=(-v "$mount:$mount")
        done
        sudo docker rm --force stylecrafter >/dev/null 2>&1 || true
        exec sudo docker run --rm --name stylecrafter --privileged --net=host --shm-size=16g \
            --stop-timeout 120 ${volumes[@]+"${volumes[@]}"} "$image" "$@"
    fi
    export PATH=$here/bin:$venv/bin:$PATH PYTHONUNBUFFERED=1
    if [ -n "$wheel" ]; then export PYTHONPATH=$here/lib; else export PYTHONPATH=$here/src; fi
    exec "$@"
}

# supervise COMMAND...: runs it and leaves its status in a file. SIGTERM is for the command alone: when
# a host goes down all processes get it, and a second one might cut the saving short.
supervise() {
    local child status interrupted=no
    trap 'interrupted=yes' TERM
    (in_place "$@") >>run/log 2>&1 &
    child=$!
    echo "$child" >run/child
    echo $$ >run/pid
    while :; do
        status=0
        wait "$child" || status=$?
        [ "$interrupted" = yes ] || break
        interrupted=no # the signal ended the wait, not the command
    done
    echo "$status" >run/status.part
    mv run/status.part run/status
}

# No process of another name answers: a number is used again after a reboot.
alive() {
    local pid
    [ -e run/pid ] && [ ! -e run/status ] || return 1
    pid=$(cat run/pid)
    [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'host\.sh supervise'
}

start() {
    local command
    printf -v command '%q ' "$@"
    if alive; then
        [ "$(cat run/command)" = "$command" ] || fail "is running another command: $(cat run/command)"
        return 0
    fi
    [ -e settings ] || fail "is not set up"
    mkdir -p run
    [ ! -e run/log ] || mv run/log run/log.before
    rm -f run/status run/stopped run/pid
    : >run/log
    echo "$command" >run/command
    setsid bash "$here/host.sh" supervise "$@" </dev/null >/dev/null 2>&1 &
    for _ in $(seq 100); do
        [ ! -s run/pid ] || return 0
        sleep 0.05
    done
    fail "could not start: $command"
}

state() {
    local word=exited
    [ ! -e run/stopped ] || word=stopped
    if [ ! -e run/command ]; then
        echo none
    elif [ -e run/status ]; then
        echo "$word $(cat run/status)"
    elif alive; then
        echo running
    elif [ -e run/status ]; then
        echo "$word $(cat run/status)" # it ended between the two looks
    else
        echo lost
    fi
}

stop() {
    alive || return 0
    touch run/stopped
    # shellcheck source=/dev/null # written by setup
    . ./settings
    if [ -n "$image" ]; then
        sudo docker kill --signal TERM stylecrafter >/dev/null
    else
        kill -TERM "$(cat run/child)"
    fi
}

last() {
    [ -e run/status ] && [ "$(cat run/status)" != 0 ] || return 0
    echo "$(hostname): ended with $(cat run/status):"
    tail -n 20 run/log
}

main() {
    case ${1:-} in
        setup) setup "${@:2}" ;;
        has) has "$2" ;;
        start) start "${@:2}" ;;
        supervise) supervise "${@:2}" ;;
        state) state ;;
        last) last ;;
        stop) stop ;;
        log) [ ! -e run/log ] || tail -c "+$((${2:-0} + 1))" run/log ;;
        *) sed -n '2,/^set -/{/^#/p}' "$here/host.sh" >&2; exit 2 ;;
    esac
}

main "$@"; exit # in one line: this file may be replaced while it supervises
