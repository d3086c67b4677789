#!/bin/bash
# Runs slurm/train.sh on a Slurm of its own: one controller, one node, one key, in a temporary
# directory, all gone at the end.
#
#   slurm/test.sh [DIR]     DIR holds launcher and trainer; default target/release
#
# Needs slurmctld, slurmd and munged (Debian: slurm-wlm, munge); is skipped where they are missing.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
bin=$(cd "${1:-$repository/target/release}" && pwd)
PATH=$PATH:/usr/sbin:/sbin

for program in slurmctld slurmd munged sbatch srun scontrol scancel; do
    if ! command -v "$program" >/dev/null; then
        echo "slurm/test.sh: skipped, $program is not installed"
        exit 0
    fi
done
for program in launcher trainer; do
    [ -x "$bin/$program" ] || { echo "slurm/test.sh: no $bin/$program: build it first" >&2; exit 1; }
done

work=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-slurm.XXXXXX")
chmod 755 "$work"
pids=()

cleanup() {
    local code=$?
    trap - EXIT
    if [ "$code" -ne 0 ]; then
        tail -n 40 "$work"/*.log "$work"/submit/*.out 2>/dev/null || true
    fi
    # Jobs first: the node's daemon ends them.
    [ "${#pids[@]}" -lt 3 ] || scancel --quiet --user="$(id -un)" 2>/dev/null || true
    local index
    for ((index = ${#pids[@]} - 1; index >= 0; index--)); do
        kill "${pids[index]}" 2>/dev/null || true
        wait "${pids[index]}" 2>/dev/null || true
    done
    rm -rf "$work"
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Polls until "$@" succeeds, for a minute.
eventually() {
    local attempt
    for ((attempt = 0; attempt < 600; attempt++)); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    echo "slurm/test.sh: did not happen within a minute: $*" >&2
    return 1
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

start_slurm() {
    local host user
    host=$(hostname -s)
    user=$(id -un)
    mkdir -p "$work"/{munge,state,spool,submit}
    chmod 700 "$work/munge"
    (umask 077 && head -c 1024 /dev/urandom >"$work/munge/key")
    # --force: a socket under /tmp, and a key that is not root's, are wanted here.
    munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge.socket" \
        --pid-file="$work/munge/pid" --seed-file="$work/munge/seed" \
        --log-file="$work/munge/log" >"$work/munged.log" 2>&1 &
    pids+=($!)
    eventually test -S "$work/munge.socket"

    cat >"$work/slurm.conf" <<EOF
ClusterName=lockstep
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=10 State=UP
EOF
    # No cgroup is needed here, and the one for version 2 would want systemd.
    local cgroup=cgroup/v1
    case "$(slurmd -V)" in "slurm 2"[4-9]* | "slurm 23.11"*) cgroup=disabled ;; esac
    echo "CgroupPlugin=$cgroup" >"$work/cgroup.conf"
    export SLURM_CONF=$work/slurm.conf
    slurmctld -D -f "$SLURM_CONF" >"$work/slurmctld.log" 2>&1 &
    pids+=($!)
    slurmd -D -f "$SLURM_CONF" >"$work/slurmd.log" 2>&1 &
    pids+=($!)
    eventually node_is_idle
}

node_is_idle() {
    sinfo --noheader --format=%T | grep -qx idle
}

check() {
    local name=$1
    shift
    if "$@"; then
        echo "ok: $name"
    else
        echo "FAILED: $name" >&2
        return 1
    fi
}

# Submits a job, prints its id.
submit() {
    sbatch --parsable --ntasks=1 --cpus-per-task="$(nproc)" "$repository/slurm/train.sh" "$@"
}

# The state and exit code of a job that has ended, such as `COMPLETED 0:0`.
ended_as() {
    scontrol --oneliner show job "$1" |
        sed -En 's/.* JobState=([A-Z]+) .* ExitCode=([0-9]+:[0-9]+).*/\1 \2/p'
}

has_ended() {
    case "$(ended_as "$1")" in COMPLETED* | FAILED* | CANCELLED* | TIMEOUT* | NODE_FAIL*) ;; *) return 1 ;; esac
}

a_job_trains_to_the_end() {
    local job
    job=$(submit short.yaml --cpu 2)
    eventually has_ended "$job" || return 1
    [ "$(ended_as "$job")" = "COMPLETED 0:0" ] || { ended_as "$job"; cat "lockstep-$job.out"; return 1; }
    grep -q '"event":"verdict","exit_code":0' "runs/short-slurm-$job/events.jsonl"
    [ -s "runs/short-slurm-$job/logs/rank-1.log" ]
}

steps_were_taken() {
    grep -q 'epoch 1/' "lockstep-$1.out"
}

started_again() {
    [ "$(grep -c '"event":"spawned"' "$1")" -ge 4 ]
}

a_signal_saves_and_a_requeue_goes_on() {
    local job events
    job=$(submit long.yaml --cpu 2)
    events=runs/long-slurm-$job/events.jsonl
    eventually steps_were_taken "$job" || return 1
    # What --signal=B:USR1@120 does before the time limit.
    scancel --batch --signal=USR1 "$job"
    eventually has_ended "$job" || return 1
    [ "$(ended_as "$job")" = "FAILED 8:0" ] || { ended_as "$job"; cat "lockstep-$job.out"; return 1; }
    grep -q '"event":"stop_requested","reason":"SIGUSR1"' "$events" || return 1
    scontrol requeue "$job"
    # Slurm would wait for two minutes.
    eventually scontrol update job="$job" StartTime=now
    eventually started_again "$events" || return 1
    scancel "$job"
    eventually has_ended "$job"
}

several_nodes_are_refused() {
    local output code=0
    output=$(SLURM_JOB_ID=1 SLURM_JOB_NUM_NODES=2 bash "$repository/slurm/train.sh" 2>&1) || code=$?
    [ "$code" -eq 9 ] && [[ $output == *"several are not supported"* ]]
}

# Only srun is replaced: this machine may have no GPU to allocate.
gpus_of_the_job_are_passed_on() {
    local output
    mkdir -p stub
    printf '#!/bin/sh\necho "$@"\n' >stub/srun
    chmod +x stub/srun
    output=$(PATH=$PWD/stub:$PATH SLURM_JOB_ID=7 SLURM_GPUS_ON_NODE=4 \
        bash "$repository/slurm/train.sh" --quiet)
    [[ $output == *"launcher --quiet --gpus 4 --run-dir runs/resnet34-slurm-7 configs/resnet34.yaml" ]]
}

start_slurm
cd "$work/submit"
mkdir target
ln -s "$bin" target/release
cat >short.yaml <<'EOF'
data: {dataset: synthetic, train_images: 128, test_images: 32}
train: {epochs: 1, batch_size_per_rank: 32}
precision: fp32
EOF
sed 's/epochs: 1,/epochs: 1000,/' short.yaml >long.yaml
check "a job trains to the end" a_job_trains_to_the_end
check "a signal saves a checkpoint and a requeued job goes on" a_signal_saves_and_a_requeue_goes_on
check "several nodes are refused" several_nodes_are_refused
check "GPUs of the job are passed on" gpus_of_the_job_are_passed_on
