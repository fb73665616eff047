# shellcheck shell=bash
# What the TPU scripts share: options, and the calls of gcloud. Sourced, not run.

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # Read by settings.sh and the scripts.
CHECKOUT=$(dirname "$SCRIPTS")
# shellcheck source=settings.sh
source "$SCRIPTS/settings.sh"

# Below the home folder of the user that gcloud logs in as. worker.sh has the same names.
# shellcheck disable=SC2034 # Read by the scripts that source this.
REMOTE_CODE=jaxrecipes/code
# shellcheck disable=SC2034
REMOTE_JOB=jaxrecipes/job
# shellcheck disable=SC2034
WORKER="bash $REMOTE_CODE/tpu_scripts/worker.sh"

print_help() { # Prints the comment at the head of the script that was called.
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

# Reads --env FILE, --dry-run and --help; the script names the other options and arguments it knows.
# Sets DRY_RUN (yes or no), ENV_FILE and ARGUMENTS, and every setting.
read_command_line() { # known arguments with spaces between, then "$@"
  local known=" $1 " file=$SCRIPTS/.env
  shift
  DRY_RUN=no ARGUMENTS=' '
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help)
        print_help
        exit 0
        ;;
      --dry-run) DRY_RUN=yes ;;
      --env)
        [ $# -ge 2 ] || fail 2 "--env needs a file" "For instance --env tpu_scripts/v6e.env"
        file=$2
        shift
        ;;
      --env=*) file=${1#--env=} ;;
      *)
        case $known in
          *" $1 "*) ARGUMENTS="$ARGUMENTS$1 " ;;
          *)
            printf 'error: unknown argument: %s\n\n' "$1" >&2
            print_help >&2
            exit 2
            ;;
        esac
        ;;
    esac
    shift
  done
  read_settings "$file"
  # shellcheck disable=SC2034 # For the scripts that call others.
  ENV_FILE=$file
  [ "$DRY_RUN" = yes ] || command -v gcloud >/dev/null ||
    fail 1 "gcloud is not installed" "Install the Google Cloud CLI, then: gcloud auth login"
}

has_argument() { case $ARGUMENTS in *" $1 "*) ;; *) return 1 ;; esac; }
dry_run() { [ "$DRY_RUN" = yes ]; }
say() { printf '%s %s\n' "$(date '+%H:%M:%S')" "$*" >&2; }

quoted() { # The words as a line that can be pasted into a shell.
  local word line=
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*)
        word=${word//\'/\'\\\'\'}
        case $word in
          --*=*) word="${word%%=*}='${word#*=}'" ;;
          *) word="'$word'" ;;
        esac
        ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

run() { # Runs a command, or prints it.
  if dry_run; then
    quoted "$@"
  else
    "$@"
  fi
}

comment() { # In a dry run, a line between the commands.
  if dry_run; then printf '# %s\n' "$*"; fi
}

describe_slice() {
  run gcloud compute tpus queued-resources describe "$NAME" --project="$PROJECT" --zone="$ZONE" \
    '--format=value(state.state)'
}

describe_node() {
  run gcloud compute tpus tpu-vm describe "$NAME" --project="$PROJECT" --zone="$ZONE" '--format=value(state)'
}

# The state that a describe command prints, NOT_FOUND, or UNKNOWN where gcloud itself failed, with its
# message on stderr: a lost network must not look like a lost slice.
state_from() { # describe_slice or describe_node
  local errors state=
  errors=$(mktemp)
  if state=$("$1" 2>"$errors"); then
    printf '%s\n' "${state:-UNKNOWN}"
  elif grep -qiE 'NOT_FOUND|was not found' "$errors"; then
    echo NOT_FOUND
  else
    cat "$errors" >&2
    echo UNKNOWN
  fi
  rm -f "$errors"
}

slice_state() { state_from describe_slice; }
node_state() { state_from describe_node; }

on_workers() { # all or a number, command
  local options=("--project=$PROJECT" "--zone=$ZONE" "--worker=$1")
  [ "$INTERNAL_IPS" = no ] || options+=(--internal-ip)
  # --quiet: a new slice has new host keys, and nobody is there to answer a question about them.
  run gcloud compute tpus tpu-vm ssh "$NAME" "${options[@]}" --quiet "--command=$2"
}

copy() { # worker, from, to
  local options=("--project=$PROJECT" "--zone=$ZONE" "--worker=$1")
  [ "$INTERNAL_IPS" = no ] || options+=(--internal-ip)
  run gcloud compute tpus tpu-vm scp "$2" "$3" "${options[@]}" --quiet
}

describe_settings() {
  # shellcheck disable=SC2153 # settings.sh sets HOSTS.
  local machines="$HOSTS hosts"
  [ "$HOSTS" -ne 1 ] || machines='1 host'
  comment "$NAME: $ACCELERATOR_TYPE, $CHIPS chips, $machines, $PROVISIONING, $RUNTIME_VERSION, $ZONE"
}
