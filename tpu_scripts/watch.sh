#!/usr/bin/env bash
# Follows the run until it has ended, and brings it back after a preemption.
#
# usage: tpu_scripts/watch.sh [--delete] [--env FILE] [--dry-run]
#
# When the slice was preempted, suspended or failed, it is deleted and asked for again, set up, and the
# same run is started; `jaxrecipes run` goes on at its last saved state. --delete: when the run has ended
# for good, results are pulled and the slice is deleted. Ctrl-C ends only the watching.
# Exit codes: those of `jaxrecipes run` (0 done, 2 config, 3 data, 4 memory, 5 diverged, ...);
# 1 also where the slice cannot be had or reached.
set -euo pipefail
# shellcheck source=gcloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

# A VM on which nothing was set up has no worker.sh: it says so itself.
STATUS="if [ -f $REMOTE_CODE/tpu_scripts/worker.sh ]; then $WORKER status; else echo jaxrecipes-status \$(hostname) bare; fi"
restarts=0    # How often the run was started again, of at most MAX_RESTARTS.
silent=0      # Polls in a row in which the slice or a worker did not answer.
stuck=0       # Polls in a row in which some workers were interrupted and others go on.
setup_fails=0 # Setups in a row that failed on a slice that is there.

script() { # name, arguments: another script with the same settings
  local words=("$SCRIPTS/$1.sh" "${@:2}" --env "$ENV_FILE")
  if dry_run; then words+=(--dry-run); fi
  "${words[@]}"
}

workers_status() { on_workers all "$STATUS"; }

# running | done | stop N | again | none | bare | mixed | silent, from what the workers say.
verdict() { # status lines on stdin
  awk -v hosts="$HOSTS" '
    $1 == "jaxrecipes-status" { seen++; count[$3]++; if ($3 == "exit") codes[$4]++ }
    END {
      # What a run says about itself comes first: a host whose peer is gone ends with any code.
      for (i = split("2 3 4 5 130", known, " "); i > 0; i--) if (known[i] in codes) definite = known[i]
      if (definite) { print "stop", definite; exit }
      if (seen < hosts) { print "silent"; exit }
      if (count["bare"]) { print "bare"; exit }
      interrupted = count["lost"] + (75 in codes ? codes[75] : 0)
      if (!interrupted) for (code in codes) if (code != 0) { print "stop", code; exit }
      # A host that is done early leaves the others to their last work.
      if (count["running"]) print (interrupted ? "mixed" : "running")
      else if (codes[0] == seen) print "done"
      else if (interrupted) print "again"
      else print "none"
    }'
}

count_restart() { # why
  restarts=$((restarts + 1))
  [ "$restarts" -le "$MAX_RESTARTS" ] || give_up "$1, and it was started again $MAX_RESTARTS times (MAX_RESTARTS)"
  say "$NAME: $1; starting again ($restarts of at most $MAX_RESTARTS)"
}

give_up() { fail 1 "$NAME: $1" "It may still cost money: tpu_scripts/delete.sh"; }

# Errors in the settings end the watch; others show in the next poll.
attempt() { # name, arguments
  local code=0
  script "$@" || code=$?
  [ "$code" -ne 2 ] || exit 2
  return "$code"
}

bring_up() { # The slice is there: set it up where needed (bare), start the run.
  if [ "$1" != bare ] || attempt setup; then
    if attempt launch; then
      setup_fails=0
      return 0
    fi
  fi
  setup_fails=$((setup_fails + 1))
  [ "$setup_fails" -lt 3 ] || give_up "set up or started three times in vain; the messages are above"
}

recreate() { # why
  count_restart "$1"
  attempt delete --yes || give_up "the old slice cannot be deleted"
  if attempt create; then bring_up bare; fi
}

stop_workers() { on_workers all "$WORKER stop 60" || true; }

ended() { # exit code
  if has_argument --delete; then
    # Results before the disk goes; where they cannot be had, the slice is kept.
    script sync pull || give_up "results could not be pulled, so the slice was not deleted"
    script delete --yes || exit 1
  else
    say "results: tpu_scripts/sync.sh pull; the slice still costs money: tpu_scripts/delete.sh"
  fi
  exit "$1"
}

look() { # One poll of a slice that is ACTIVE.
  local answer='' node
  node=$(node_state)
  case $node in
    READY | UNKNOWN) ;; # UNKNOWN: gcloud failed; whether the workers answer decides.
    PREEMPTED | TERMINATED | STOPPED | STOPPING | NOT_FOUND)
      recreate "its VMs were taken away"
      return 0
      ;;
    *) return 0 ;; # CREATING, RESTARTING, REPAIRING, ...: Google is at work.
  esac
  answer=$(workers_status) || true
  set -- "$(printf '%s\n' "$answer" | verdict)"
  # shellcheck disable=SC2086 # Two words.
  set -- $1
  [ "$1" = silent ] || silent=0
  [ "$1" = mixed ] || stuck=0
  if [ "$1" != "$last" ]; then say "$NAME: $1"; fi
  last=$1
  case $1 in
    running) ;;
    done)
      say "$NAME: the run is done"
      ended 0
      ;;
    stop)
      stop_workers
      on_workers all "$WORKER log 30" || true
      printf '%s\n' "$answer" >&2
      say "$NAME: the run ended with exit code $2; the workers' last lines are above"
      ended "$2"
      ;;
    again)
      count_restart "the run was told to end, or its host was started again"
      bring_up ready
      ;;
    mixed)
      # Hosts end one after the other, and saving takes a while; then the rest is stopped.
      stuck=$((stuck + 1))
      if [ "$stuck" -ge 20 ]; then stop_workers; fi
      ;;
    silent)
      silent=$((silent + 1))
      [ "$silent" -lt 10 ] || recreate "not every worker has answered for $((silent * POLL_SECONDS)) seconds"
      ;;
    *) bring_up "$1" ;;
  esac
}

read_command_line '--delete' "$@"
[ "$PROVISIONING" != spot ] || require_shared_output "the disk of a spot VM is gone after a preemption"
[ "$HOSTS" -eq 1 ] || require_shared_output "$ACCELERATOR_TYPE has $HOSTS hosts, and all must see one run folder"
describe_settings
if dry_run; then
  comment "every $POLL_SECONDS seconds:"
  describe_slice
  describe_node
  workers_status
  comment "when it was preempted, suspended or failed:"
  script delete --yes
  script create
  script setup
  script launch
  comment "when the run was told to end (exit code 75) and the slice is still there:"
  script launch
  comment "when the run ended with another code than 0:"
  on_workers all "$WORKER stop 60"
  on_workers all "$WORKER log 30"
  if has_argument --delete; then
    comment "when the run has ended for good:"
    script sync pull
    script delete --yes
  fi
  exit 0
fi
trap 'say "watching ended; $NAME goes on and costs money (tpu_scripts/watch.sh, tpu_scripts/delete.sh)"; exit 130' INT TERM
last='' unknown=0
while :; do
  state=$(slice_state)
  [ "$state" = UNKNOWN ] || unknown=0
  case $state in
    ACTIVE) look ;;
    SUSPENDED | FAILED) recreate "it is $state" ;;
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING)
      if attempt create; then bring_up bare; fi
      ;;
    NOT_FOUND) fail 1 "there is no $NAME in $ZONE, so it was deleted by someone" "To make it: tpu_scripts/create.sh" ;;
    UNKNOWN)
      unknown=$((unknown + 1))
      [ "$unknown" -lt 20 ] || give_up "gcloud has failed 20 times in a row; its message is above"
      ;;
    *) ;; # SUSPENDING, DELETING, RESETTING: it will be something else soon.
  esac
  sleep "$POLL_SECONDS"
done
