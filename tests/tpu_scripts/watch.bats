# watch.sh: the run's end, preemptions, hosts that fail.
load fake_cloud

@test "done: exit code 0, and where the results and the costs are" {
  ready
  run tpu_scripts/watch.sh
  code 0
  says "mine: the run is done" "tpu_scripts/sync.sh pull" "tpu_scripts/delete.sh"
  called "queued-resources delete" 0
}

@test "the run's exit code is the watch's, with the log's last lines" {
  local expected
  for expected in 1 2 3 4 5 130 139; do
    plan worker-0 "exit $expected"
    ready
    run tpu_scripts/watch.sh
    code "$expected"
    says "the run ended with exit code $expected" "training in" "ended with exit code $expected"
    called "queued-resources create" 0
  done
}

@test "preempted: deleted, asked for again, set up, the same run started, until it is done" {
  pod
  for worker in 0 1 2 3; do plan worker-$worker wait "exit 0"; done
  ready
  states ACTIVE ACTIVE SUSPENDING SUSPENDED
  run tpu_scripts/watch.sh
  code 0
  says "mine: running" "it is SUSPENDED; starting again (1 of at most 50)" "mine: WAITING_FOR_RESOURCES" \
    "mine: the run is done"
  [ "$(verbs | grep -v describe | uniq | tr '\n' ' ')" = \
    "status delete create ssh scp ssh install mount env start status " ]
  # The same command, word for word, on every host and both times.
  [ "$(cut -d ' ' -f 2- "$CLOUD/runs" | sort -u | wc -l)" -eq 1 ]
  [ "$(wc -l <"$CLOUD/runs")" -eq 8 ]
}

@test "preempted while the request still says ACTIVE: its VMs tell" {
  pod
  for worker in 0 1 2 3; do plan worker-$worker wait "exit 0"; done
  ready
  nodes READY PREEMPTED
  run tpu_scripts/watch.sh
  code 0
  says "its VMs were taken away; starting again"
  called "queued-resources delete" 1
}

@test "FAILED requests are repeated up to MAX_RESTARTS" {
  pod
  also MAX_RESTARTS=2
  states FAILED
  echo FAILED >"$CLOUD/always_after_create"
  run tpu_scripts/watch.sh
  code 1
  says "starting again (2 of at most 2)" "it was started again 2 times (MAX_RESTARTS)"
  called "queued-resources create" 2
}

@test "exit code 75 on a slice that is still there: only started again" {
  plan worker-0 "exit 75" "exit 75" "exit 0"
  ready
  run tpu_scripts/watch.sh
  code 0
  says "the run was told to end, or its host was started again; starting again (2 of" "the run is done"
  called "queued-resources delete" 0
  called "worker.sh start" 2
  called "worker.sh install" 0
}

@test "a host that was started again is lost, the others wait for it: stopped and started again" {
  pod
  plan worker-0 wait "exit 0"
  plan worker-1 stuck "exit 0"
  plan worker-2 wait "exit 0"
  plan worker-3 wait "exit 0"
  ready
  signal_run KILL 2
  run tpu_scripts/watch.sh
  code 0
  says "mine: mixed" "starting again (1 of" "the run is done"
  called "worker.sh stop 60" 1
  called "queued-resources delete" 0
}

@test "one host diverged: the others are stopped, its code is the one that counts" {
  pod
  plan worker-0 stuck
  plan worker-1 "exit 5"
  plan worker-2 "exit 134"
  plan worker-3 wait
  ready
  run tpu_scripts/watch.sh
  code 5
  says "jaxrecipes-status worker-1 exit 5" "== worker-1:"
  called "worker.sh stop 60" 1
  run tpu_scripts/sync.sh logs
  says "ended with exit code 137"
}

@test "a host that is done early is not a host that failed" {
  pod
  plan worker-3 wait
  ready
  listening 3
  plan worker-3 "exit 0"
  # worker-3 goes on for three polls, the others are done.
  (until_true polled 3; kill -TERM "$(cat "$CLOUD/worker-3/jaxrecipes/job/pid")") 3>&- &
  run tpu_scripts/watch.sh
  code 0
  says "mine: running"
  called "worker.sh stop" 0
}

@test "nothing was set up, or only not started: that is done first" {
  states ACTIVE
  run tpu_scripts/watch.sh
  code 0
  says "mine: bare" "the run is done"
  [ "$(verbs | grep -v describe | uniq | tr '\n' ' ')" = "status ssh scp ssh install env start status " ]
}

@test "a setup that fails three times ends the watch" {
  states ACTIVE
  touch "$CLOUD/install_fails"
  run tpu_scripts/watch.sh
  code 1
  says "set up or started three times in vain" "may still cost money"
}

@test "a worker that does not answer for long: a new slice" {
  plan worker-0 wait "exit 0"
  ready
  printf 'no\n%.0s' $(seq 10) >"$CLOUD/ssh"
  echo yes >>"$CLOUD/ssh"
  run tpu_scripts/watch.sh
  code 0
  says "not every worker has answered for 300 seconds; starting again (1 of"
  called "queued-resources delete" 1
}

@test "a short loss of the network is no loss of the slice" {
  plan worker-0 wait
  ready
  states ACTIVE OFFLINE OFFLINE ACTIVE
  (until_true polled 3; kill -KILL "$(cat "$CLOUD/worker-0/jaxrecipes/job/pid")") 3>&- &
  run tpu_scripts/watch.sh
  code 137
  says "Unable to find the server" "mine: running"
  called "queued-resources delete" 0
}

@test "gcloud that never works ends the watch; a slice that someone deleted too, and it is not made again" {
  states OFFLINE
  run tpu_scripts/watch.sh
  code 1
  says "gcloud has failed 20 times in a row"
  states NOT_FOUND
  run tpu_scripts/watch.sh
  code 1
  says "there is no mine in us-west4-a" "tpu_scripts/create.sh"
  called "queued-resources create" 0
}

@test "a spot slice needs a folder that outlives it" {
  sed -i 's/on-demand/spot/' tpu_scripts/.env
  run tpu_scripts/watch.sh
  code 2
  says "the disk of a spot VM is gone after a preemption" "SHARED=gs://my-bucket and OUTPUT=/mnt/shared/mine"
}

@test "--delete: results are pulled, then the slice is deleted; kept when they cannot be pulled" {
  also OUTPUT=runs/mine
  ready
  run tpu_scripts/watch.sh --delete
  code 1
  says "no run folder: runs/mine" "results could not be pulled, so the slice was not deleted"
  called "queued-resources delete" 0
  mkdir -p "$CLOUD/worker-0/jaxrecipes/code/runs/mine"
  run tpu_scripts/watch.sh --delete
  code 0
  called "queued-resources delete" 1
  [ -e runs/mine/run.log ]
}

@test "Ctrl-C ends the watch, not the run" {
  plan worker-0 wait
  ready
  # In a session of its own and without job control, bash ignores SIGINT in the background: SIGTERM here.
  tpu_scripts/watch.sh >"$CLOUD/out" 2>&1 3>&- &
  local watch=$!
  until_true polled 1
  kill -TERM "$watch"
  run wait "$watch"
  wait "$watch" && return 1
  grep "mine goes on and costs money" "$CLOUD/out"
  kill -0 "$(cat "$CLOUD/worker-0/jaxrecipes/job/pid")"
}
