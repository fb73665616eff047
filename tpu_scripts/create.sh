#!/usr/bin/env bash
# Asks Google Cloud for the TPU of the settings file and waits until it is there.
#
# usage: tpu_scripts/create.sh [--env FILE] [--dry-run]
#
# The request waits in a queue and expires after WAIT_MINUTES. Calling this again goes on waiting for
# the same request. Exit codes: 0 the TPU is there; 1 it is not; 2 usage or settings.
set -euo pipefail
# shellcheck source=gcloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

create() {
  local options=(
    "--node-id=$NAME" "--project=$PROJECT" "--zone=$ZONE"
    "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION"
    # Google forgets the request then: it must not be granted, and billed, when nobody waits any more.
    "--valid-until-duration=${WAIT_MINUTES}m"
  )
  case $PROVISIONING in
    spot) options+=(--spot) ;;
    reserved) options+=(--reserved) ;;
  esac
  [ -z "$NETWORK" ] || options+=("--network=$NETWORK")
  [ -z "$SUBNETWORK" ] || options+=("--subnetwork=$SUBNETWORK")
  [ "$INTERNAL_IPS" = no ] || options+=(--internal-ips)
  [ -z "$SERVICE_ACCOUNT" ] || options+=("--service-account=$SERVICE_ACCOUNT")
  # --async: the command itself would wait, without saying for what.
  run gcloud compute tpus queued-resources create "$NAME" "${options[@]}" --async --quiet
}

wait_until_active() {
  local state last='' waited=0
  while :; do
    state=$(slice_state)
    if [ "$state" != "$last" ] || [ $((waited % 600)) -lt "$POLL_SECONDS" ]; then
      say "$NAME: $state ($((waited / 60)) of at most $WAIT_MINUTES minutes)"
      last=$state
    fi
    # A request is not to be found until Google has written it down; that takes seconds, not minutes.
    if [ "$state" = NOT_FOUND ] && [ "$waited" -lt 300 ]; then state=new; fi
    case $state in
      ACTIVE) return 0 ;;
      NOT_FOUND | FAILED | SUSPENDING | SUSPENDED | DELETING)
        fail 1 "$NAME is $state: the request was not granted" \
          "Usual reasons: no quota for $ACCELERATOR_TYPE ($PROVISIONING) in $ZONE, no capacity, or it expired." \
          "Google's reason: $(quoted gcloud compute tpus queued-resources describe "$NAME" "--project=$PROJECT" "--zone=$ZONE")" \
          "Then tpu_scripts/delete.sh, and tpu_scripts/create.sh again."
        ;;
    esac
    [ "$waited" -lt $((WAIT_MINUTES * 60)) ] || fail 1 "$NAME is still $state after $WAIT_MINUTES minutes" \
      "Call tpu_scripts/create.sh again to go on waiting, or tpu_scripts/delete.sh to withdraw the request."
    sleep "$POLL_SECONDS"
    waited=$((waited + POLL_SECONDS))
  done
}

read_command_line '' "$@"
describe_settings
if dry_run; then
  comment "does it exist already?"
  describe_slice
  create
  comment "every $POLL_SECONDS seconds until it prints ACTIVE, for at most $WAIT_MINUTES minutes:"
  describe_slice
  exit 0
fi
state=$(slice_state)
case $state in
  NOT_FOUND)
    say "$NAME: asking for $ACCELERATOR_TYPE ($PROVISIONING, $CHIPS chips, $HOSTS hosts) in $ZONE"
    create || fail 1 "Google Cloud did not take the request; its message is above" \
      "The types and versions of a zone: gcloud compute tpus accelerator-types list --zone=$ZONE" \
      "and gcloud compute tpus versions list --zone=$ZONE"
    ;;
  UNKNOWN) fail 1 "cannot ask for the state of $NAME; gcloud's message is above" "Logged in? gcloud auth login" ;;
  *) say "$NAME exists already" ;;
esac
wait_until_active
