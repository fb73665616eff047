# shellcheck shell=bash disable=SC2154 # `run` of bats sets status and output.
# A cloud in a folder, for the tests of tpu_scripts. Loaded by the .bats files.
#
# $CLOUD/checkout      a small checkout with the real tpu_scripts
# $CLOUD/bin           first on PATH: gcloud, gcsfuse, sudo, sleep, ... that record and pretend
# $CLOUD/calls         every call of gcloud, a line each
# $CLOUD/states        what the next describes of the slice print; the last line stays
# $CLOUD/nodes         the same for its VMs
# $CLOUD/after_create  the states after the next create (default: WAITING_FOR_RESOURCES, ACTIVE)
# $CLOUD/always_after_create  the same for every create
# $CLOUD/worker-N      the disk of a worker: its home folder; delete empties it
# $CLOUD/plan-worker-N what the next runs of jaxrecipes do there, a line each; the last line stays

setup() {
  CLOUD=$(mktemp -d)
  export CLOUD PATH="$CLOUD/bin:$PATH"
  mkdir -p "$CLOUD/checkout/configs" "$CLOUD/checkout/jaxrecipes" "$CLOUD/bin"
  cp "$BATS_TEST_DIRNAME"/fake_bin/* "$CLOUD/bin"
  cp -r "$BATS_TEST_DIRNAME/../../tpu_scripts" "$CLOUD/checkout"
  rm -f "$CLOUD/checkout/tpu_scripts/.env"
  cd "$CLOUD/checkout" || return
  touch jaxrecipes/one.py pyproject.toml constraints.txt README.md LICENSE configs/mine.yaml
  hosts 1
  settings NAME=mine PROJECT=my-project ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-8 PROVISIONING=on-demand \
    CONFIG=configs/mine.yaml
  states NOT_FOUND
}

teardown() {
  local pid
  for pid in "$CLOUD"/worker-*/jaxrecipes/job/pid; do
    [ -s "$pid" ] && kill -KILL "$(cat "$pid")" 2>/dev/null
  done
  # The parent of a run still writes down how it ended.
  /bin/sleep 0.1
  rm -rf "$CLOUD"
}

settings() { # KEY=VALUE ...: the settings file, from nothing
  printf '%s\n' "$@" >tpu_scripts/.env
}
also() { printf '%s\n' "$@" >>tpu_scripts/.env; }
hosts() { echo "$1" >"$CLOUD/hosts"; }
states() { printf '%s\n' "$@" >"$CLOUD/states"; }
nodes() { printf '%s\n' "$@" >"$CLOUD/nodes"; }
plan() { # worker, what its runs do: one of: exit N, wait (for SIGTERM, then exit 75), stuck
  printf '%s\n' "${@:2}" >"$CLOUD/plan-$1"
}
pod() { # v5e-16: four hosts, a bucket
  hosts 4
  settings NAME=mine PROJECT=my-project ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-16 CONFIG=configs/mine.yaml \
    SHARED=gs://my-bucket OUTPUT=/mnt/shared/runs/mine
}
ready() { # A slice that is there, set up, with the run started.
  states ACTIVE
  tpu_scripts/setup.sh >/dev/null 2>&1
  tpu_scripts/launch.sh >/dev/null 2>&1
  : >"$CLOUD/calls"
}

until_true() { # a command, tried for at most 30 seconds
  local try
  for ((try = 0; try < 600; try++)); do
    if "$@"; then return 0; fi
    /bin/sleep 0.05
  done
  echo "never true: $*"
  return 1
}
exists() { [ -e "$1" ]; }
listening() { # worker number: its run, waiting or stuck, has set up its signals
  until_true exists "$CLOUD/listening-worker-$1"
}
polled() { # how many polls watch.sh has finished
  [ "$(grep -c 'worker.sh status' "$CLOUD/calls")" -gt "$1" ]
}
signal_run() { # signal, worker: to the run and its parent, as a machine does that shuts down
  local pid
  pid=$(cat "$CLOUD/worker-$2/jaxrecipes/job/pid")
  # Field 5 is the process group, which is the run's own.
  kill "-$1" -- "-$(cut -d ' ' -f 5 "/proc/$pid/stat")"
}

code() { # The exit code of the last `run`.
  [ "$status" -eq "$1" ] || { echo "exit code $status, expected $1; it printed:"; echo "$output"; return 1; }
}
says() {
  local text
  for text in "$@"; do
    case $output in *"$text"*) ;; *) echo "not printed: $text"; echo "it printed:"; echo "$output"; return 1 ;; esac
  done
}
silent_about() {
  case $output in *"$1"*) echo "printed: $1"; echo "$output"; return 1 ;; esac
}
called() { # part of a line in calls, how often (default: at least once)
  local count
  count=$(grep -cF -- "$1" "$CLOUD/calls" || true)
  if [ -n "${2:-}" ] && [ "$count" -ne "$2" ] || [ "$count" -eq 0 ] && [ "${2:-1}" -ne 0 ]; then
    echo "$count calls with: $1"
    cat "$CLOUD/calls"
    return 1
  fi
}
verbs() { # The order of the calls, in short.
  sed -E 's/^gcloud (compute tpus )?//; s/^(queued-resources|tpu-vm) ([a-z]+) .*command=.*worker\.sh ([a-z]+).*/\3/
    s/^(queued-resources|tpu-vm) ([a-z]+) .*/\2/' "$CLOUD/calls" | uniq
}
