# setup.sh, launch.sh and sync.sh, with worker.sh really running on the disks of the fake workers.
load fake_cloud

@test "setup: code on every worker, Python 3.12, constraints, bucket, env" {
  pod
  states ACTIVE
  run tpu_scripts/setup.sh
  code 0
  says "worker-0: jaxrecipes is installed" "worker-3: gs://my-bucket is at" "worker-3: 4 TPU chips"
  [ "$(verbs | tr '\n' ' ')" = "ssh scp ssh install mount env " ]
  [ -e "$CLOUD/worker-3/jaxrecipes/code/jaxrecipes/one.py" ]
  [ ! -e "$CLOUD/worker-3/jaxrecipes/code/tpu_scripts/.env" ]
  grep -F "venv --quiet --python 3.12 $CLOUD/worker-2/jaxrecipes/venv" "$CLOUD/uv"
  grep -F -- "--constraints $CLOUD/worker-2/jaxrecipes/code/constraints.txt --reinstall-package jaxrecipes $CLOUD/worker-2/jaxrecipes/code[tpu]" "$CLOUD/uv"
  grep -F "worker-3 gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=200000 my-bucket" "$CLOUD/mounts"
  # Again: mounted and made once.
  run tpu_scripts/setup.sh
  code 0
  [ "$(wc -l <"$CLOUD/mounts")" -eq 4 ]
  [ "$(grep -c venv.--quiet "$CLOUD/uv")" -eq 4 ]
}

@test "setup: an NFS share" {
  pod
  sed -i 's#^SHARED=.*#SHARED=10.0.0.2:/share#' tpu_scripts/.env
  states ACTIVE
  run tpu_scripts/setup.sh
  code 0
  grep -F "worker-1 mount -t nfs -o rw,hard,noac 10.0.0.2:/share" "$CLOUD/mounts"
}

@test "setup waits for ssh, and says so when nobody answers" {
  states ACTIVE
  printf 'no\nno\nyes\n' >"$CLOUD/ssh"
  run tpu_scripts/setup.sh
  code 0
  says "not every worker answers yet (2 of 10)"
  echo no >"$CLOUD/ssh"
  run tpu_scripts/setup.sh
  code 1
  says "Connection timed out" "cannot log in to every worker"
}

@test "setup fails where the installation fails" {
  states ACTIVE
  touch "$CLOUD/install_fails"
  run tpu_scripts/setup.sh
  code 1
  says "no matching distribution"
  silent_about "TPU chips"
}

@test "a file that is gone here is gone there; results there stay" {
  states ACTIVE
  tpu_scripts/setup.sh
  mkdir -p "$CLOUD/worker-0/jaxrecipes/code/runs/old"
  mv jaxrecipes/one.py jaxrecipes/two.py
  run tpu_scripts/sync.sh push
  code 0
  [ ! -e "$CLOUD/worker-0/jaxrecipes/code/jaxrecipes/one.py" ]
  [ -e "$CLOUD/worker-0/jaxrecipes/code/jaxrecipes/two.py" ]
  [ -e "$CLOUD/worker-0/jaxrecipes/code/runs/old" ]
  [ -z "$(ls .cache)" ]
}

@test "a token travels as a file and is on no command line" {
  states ACTIVE
  echo hf_secret >token
  also HF_TOKEN_FILE=token
  run tpu_scripts/setup.sh
  code 0
  [ "$(cat "$CLOUD/worker-0/.cache/huggingface/token")" = hf_secret ]
  [ "$(stat -c %a "$CLOUD/worker-0/.cache/huggingface/token")" = 600 ]
  run grep hf_secret "$CLOUD/calls"
  code 1
}

@test "launch: the same command on every worker, in the background; a second one changes nothing" {
  pod
  also "OVERRIDES=train.steps=3 data.learn=[a*]"
  states ACTIVE
  tpu_scripts/setup.sh
  for worker in 0 1 2 3; do plan worker-$worker wait; done
  run tpu_scripts/launch.sh
  code 0
  says "worker-0: started" "worker-3: started"
  [ "$(sort "$CLOUD/runs" | cut -d ' ' -f 1 | tr '\n' ' ')" = "worker-0 worker-1 worker-2 worker-3 " ]
  [ "$(cut -d ' ' -f 2- "$CLOUD/runs" | sort -u)" = \
    "jaxrecipes run configs/mine.yaml train.steps=3 data.learn=[a*] output=/mnt/shared/runs/mine" ]
  run tpu_scripts/launch.sh
  code 0
  says "worker-2: running already"
  [ "$(wc -l <"$CLOUD/runs")" -eq 4 ]
  run tpu_scripts/sync.sh logs
  says "== worker-3:" "training in $CLOUD/worker-3/jaxrecipes/code"
}

@test "launch: several hosts need one folder that all see" {
  pod
  sed -i /^OUTPUT/d tpu_scripts/.env
  run tpu_scripts/launch.sh
  code 2
  says "OUTPUT is 'not set'; expected a folder below /mnt/shared: v5litepod-16 has 4 hosts"
  called x 0 2>/dev/null || [ ! -e "$CLOUD/calls" ]
}

@test "launch before setup says so" {
  states ACTIVE
  run tpu_scripts/launch.sh
  code 1
  says "the run was not started on every worker" "tpu_scripts/setup.sh"
}

@test "a run that is told to end writes down its own exit code, not its parent's" {
  plan worker-0 wait
  ready
  local job=$CLOUD/worker-0/jaxrecipes/job
  listening 0
  signal_run TERM 0
  until_true exists "$job/exit_code"
  [ "$(cat "$job/exit_code")" = 75 ]
  grep "state saved" "$job/run.log"
  grep "ended with exit code 75" "$job/run.log"
}

@test "a run that was killed with its parent is lost; one that never was is none" {
  plan worker-0 stuck
  states ACTIVE
  tpu_scripts/setup.sh
  export HOME=$CLOUD/worker-0
  local worker=$HOME/jaxrecipes/code/tpu_scripts/worker.sh job=$HOME/jaxrecipes/job
  run bash "$worker" status
  says "jaxrecipes-status worker-0 none"
  bash "$worker" start configs/mine.yaml 3>&-
  run bash "$worker" status
  says "jaxrecipes-status worker-0 running"
  signal_run KILL 0
  rm -f "$CLOUD/listening-worker-0"
  until_true flock --nonblock "$job/lock" true
  run bash "$worker" status
  says "jaxrecipes-status worker-0 lost"
  # One that does not answer SIGTERM is killed in the end.
  bash "$worker" start configs/mine.yaml 3>&-
  listening 0
  run bash "$worker" stop 2
  code 0
  until_true exists "$job/exit_code"
  until_true flock --nonblock "$job/lock" true
  run bash "$worker" status
  says "jaxrecipes-status worker-0 exit 137"
  run bash "$worker" dance
  code 2
}

@test "pull: from worker 0, small unless weights are asked for" {
  also OUTPUT=runs/mine
  ready
  local folder=$CLOUD/worker-0/jaxrecipes/code/runs/mine
  mkdir -p "$folder/arms/full/checkpoints/10" "$folder/arms/full/final"
  echo report >"$folder/report.html"
  echo weights >"$folder/arms/full/checkpoints/10/array"
  run tpu_scripts/sync.sh pull
  code 0
  [ "$(cat runs/mine/report.html)" = report ]
  [ -e runs/mine/run.log ]
  [ ! -e runs/mine/arms/full/checkpoints ]
  [ ! -e runs/mine/run.tar.gz ]
  run tpu_scripts/sync.sh pull --weights
  code 0
  [ -e runs/mine/arms/full/checkpoints/10/array ]
  sed -i /^OUTPUT/d tpu_scripts/.env
  run tpu_scripts/sync.sh pull
  code 2
  says "OUTPUT is not set"
}

@test "pull: from the bucket, also when the slice is gone" {
  pod
  run tpu_scripts/sync.sh pull
  code 0
  called "storage rsync gs://my-bucket/runs/mine $CLOUD/checkout/runs/mine --recursive --exclude=" 1
  says "no log"
  run tpu_scripts/sync.sh pull --weights
  [ "$(grep -c 'rsync.*--recursive$' "$CLOUD/calls")" -eq 1 ]
}
