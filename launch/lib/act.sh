# shellcheck shell=bash disable=SC2034 # what it sets is read by launchers
# Commands that are run, or with --dry-run printed; and how a launcher speaks. Sourced.
#
# dry_run is yes or no. What would be run goes to file descriptor 3, quoted so that it can be pasted.
dry_run=no
final_statuses=(1 2 126 127) # errors: the same command again would end alike
exec 3>&1

# say WORDS...: a line for the user.
say() {
    local note=''
    [ "$dry_run" = no ] || note=' (dry run)'
    echo "${0##*/}$note: $*" >&2
}

# fail WORDS...: one line, and the end. usage_error: the same for a mistake in the command line.
fail() { say "$*"; exit 1; }
usage_error() { say "$* (--help lists the options)"; exit 2; }

# show COMMAND...: prints it as a shell would read it.
show() { quoted "$@" >&3; }

# parse WORDS...: gives options to the launcher's functions: flag OPTION, which returns 1 for those
# with a value, and take OPTION VALUE. What comes after -- is the command.
parse() {
    local value
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --) shift; command=("$@"); return 0 ;;
            --dry-run) dry_run=yes ;;
            --*)
                if ! flag "$1"; then
                    [[ $1 == *=* ]] && { value=${1#*=}; set -- "${1%%=*}" "$value" "${@:2}"; }
                    [ $# -ge 2 ] || usage_error "$1 needs a value"
                    take "$1" "$2"
                    shift
                fi ;;
            *) usage_error "not understood: $1" ;;
        esac
        shift
    done
}

# act COMMAND...: runs it.
act() {
    if [ "$dry_run" = yes ]; then show "$@"; else "$@"; fi
}

# quoted WORDS...: the words as one line that a shell reads as them.
quoted() { local line; printf -v line '%q ' "$@"; echo "${line% }"; }

# ask ANSWER COMMAND...: prints what the command says; in a dry run it is taken to say ANSWER.
ask() {
    local answer=$1
    shift
    if [ "$dry_run" = yes ]; then show "$@"; echo "$answer"; else "$@"; fi
}

# need VALUE OPTION: an option that must have been given.
need() { [ -n "$1" ] || usage_error "$2 is missing"; }

# one_of WORD LIST...: whether WORD is in LIST.
one_of() {
    local word=$1 other
    shift
    for other in "$@"; do [ "$word" != "$other" ] || return 0; done
    return 1
}

# whole_number OPTION VALUE
whole_number() { [[ $2 =~ ^[0-9]+$ ]] || usage_error "$1 must be a whole number, got $2"; }

# resource_name NAME: what Google Cloud and Kubernetes take as a name.
resource_name() {
    [[ $1 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
        usage_error "--name must be up to 40 of a-z, 0-9 and -, beginning with a letter, got $1"
}
