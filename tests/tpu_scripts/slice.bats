# create.sh and delete.sh, and what --dry-run prints.
load fake_cloud

@test "create asks, waits with progress, and ends when the slice is active" {
  echo "WAITING_FOR_RESOURCES
PROVISIONING
ACTIVE" >"$CLOUD/after_create"
  run tpu_scripts/create.sh
  code 0
  says "mine: WAITING_FOR_RESOURCES (0 of at most 720 minutes)" "mine: PROVISIONING" "mine: ACTIVE"
  called "queued-resources create mine --node-id=mine --project=my-project --zone=us-west4-a --accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite --valid-until-duration=720m --async --quiet" 1
  called "queued-resources describe mine --project=my-project --zone=us-west4-a --format=value(state.state)" 4
  [ "$(sort -u "$CLOUD/sleeps")" = "sleep 30" ]
}

@test "spot, reserved, networks and accounts" {
  sed -i 's/on-demand/spot/' tpu_scripts/.env
  also NETWORK=net SUBNETWORK=sub INTERNAL_IPS=yes SERVICE_ACCOUNT=me@my-project.iam.gserviceaccount.com WAIT_MINUTES=90
  run tpu_scripts/create.sh
  code 0
  called "--valid-until-duration=90m --spot --network=net --subnetwork=sub --internal-ips --service-account=me@my-project.iam.gserviceaccount.com" 1
  run tpu_scripts/sync.sh logs --dry-run
  says "--worker=all --internal-ip --quiet"
  sed -i 's/spot/reserved/' tpu_scripts/.env
  run tpu_scripts/create.sh --dry-run
  says "--valid-until-duration=90m --reserved"
  silent_about --spot
}

@test "create goes on waiting for a request that is there" {
  states PROVISIONING PROVISIONING ACTIVE
  run tpu_scripts/create.sh
  code 0
  says "mine exists already"
  called "queued-resources create" 0
}

@test "a request that fails or expires: reason, and what to do" {
  echo "WAITING_FOR_RESOURCES
FAILED" >"$CLOUD/after_create"
  run tpu_scripts/create.sh
  code 1
  says "error: mine is FAILED" "no quota for v5litepod-8 (on-demand) in us-west4-a" "tpu_scripts/delete.sh" \
    "gcloud compute tpus queued-resources describe mine"
}

@test "the wait has an end" {
  also WAIT_MINUTES=1
  echo WAITING_FOR_RESOURCES >"$CLOUD/after_create"
  run tpu_scripts/create.sh
  code 1
  says "still WAITING_FOR_RESOURCES after 1 minutes" "go on waiting"
  [ "$(wc -l <"$CLOUD/sleeps")" -eq 2 ]
}

@test "a request that is never there after it was taken" {
  echo NOT_FOUND >"$CLOUD/after_create"
  run tpu_scripts/create.sh
  code 1
  says "error: mine is NOT_FOUND: the request was not granted"
  [ "$(wc -l <"$CLOUD/sleeps")" -eq 10 ]
}

@test "a request that Google does not take, a network that is down" {
  touch "$CLOUD/create_fails"
  run tpu_scripts/create.sh
  code 1
  says "RESOURCE_EXHAUSTED" "accelerator-types list --zone=us-west4-a"
  states OFFLINE
  run tpu_scripts/create.sh
  code 1
  says "Unable to find the server" "gcloud auth login"
}

@test "delete: asks or takes --yes, tries again, and is content when nothing is there" {
  states ACTIVE
  run tpu_scripts/delete.sh </dev/null
  code 2
  says "give --yes"
  called "queued-resources delete" 0
  touch "$CLOUD/delete_fails"
  run tpu_scripts/delete.sh --yes
  code 0
  says "is being suspended" "mine is deleted"
  called "queued-resources delete mine --project=my-project --zone=us-west4-a --force --quiet" 2
  run tpu_scripts/delete.sh --yes
  code 0
  says "there is none in us-west4-a"
}

@test "--dry-run runs nothing, and what it prints can be pasted" {
  pod
  local script
  for script in "create" "setup" "launch" "watch --delete" "sync push" "sync pull" "sync logs" "delete"; do
    # shellcheck disable=SC2086 # A name and its arguments.
    set -- $script
    run "tpu_scripts/$1.sh" "${@:2}" --dry-run
    code 0
    [ ! -e "$CLOUD/calls" ]
    [ ! -e "$CLOUD/sleeps" ]
    [ ! -e runs ]
    # Comments aside, each line is one command: its words, read by a shell again, are those that would run.
    bash -n <<<"$output"
    grep -v '^#' <<<"$output" | grep -vE '^(gcloud|env COPYFILE_DISABLE=1 tar|tar|mkdir|rm) ' && return 1
  done
  # Pasted, they do what the script does: the calls are equal word for word, but for the process number in
  # the archive's name.
  states ACTIVE
  tpu_scripts/setup.sh --dry-run | bash >/dev/null
  mv "$CLOUD/calls" "$CLOUD/pasted"
  tpu_scripts/setup.sh >/dev/null
  diff <(sed 's/mine-[0-9]*/mine/' "$CLOUD/pasted") <(sed 's/mine-[0-9]*/mine/' "$CLOUD/calls")
  [ -z "$(ls .cache)" ]
}
