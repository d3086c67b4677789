#!/bin/bash
# Trains under Slurm, on one node or several:
#
#   sbatch [sbatch options] slurm/train.sh [CONFIG] [launcher options]
#
#   sbatch --gpus-per-node=4 slurm/train.sh                    # configs/resnet34.yaml on four GPUs
#   sbatch -N 4 --gpus-per-node=8 slurm/train.sh               # ... on 32 GPUs of four nodes
#   sbatch -N 2 --cpus-per-task=8 slurm/train.sh configs/resnet18.yaml --cpu 2
#
# Submit from the repository, which every node must see, after `cargo build --release`; between the CPUs of several
# nodes the trainer needs MPI: `cargo build --release -p trainer --features mpi` after that. One launcher a
# node; ranks: one per GPU, without GPUs one per CPU of the job on a node, or as `--cpu N` says. The run is
# kept in runs/<config>-slurm-<job id>, so a job that is requeued goes on from its newest checkpoint.
#
# Two minutes before the time limit a checkpoint is saved and the job requeued. It is also requeued after
# failures that may not recur: a rank failed (4), a deadline passed (5); not after `scancel`, nor after
# failures that would recur.
#
#   LOCKSTEP_MAX_REQUEUES   so often at most (default 10)
#   LOCKSTEP_SIGNAL         what the launchers are sent to save and stop (default USR1)
#
#SBATCH --job-name=lockstep
#SBATCH --ntasks-per-node=1
#SBATCH --output=lockstep-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

fail() {
    echo "slurm/train.sh: $1" >&2
    exit "$2"
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "not in a Slurm job; submit it: sbatch slurm/train.sh [CONFIG] [launcher options]" 2

config=configs/resnet34.yaml
case "${1:-}" in
    '' | -*) ;;
    *) config=$1; shift ;;
esac
options=("$@")

# Whether the user gave this option, as `--name value` or `--name=value`.
given() {
    local option
    for option in "${options[@]}"; do
        case "$option" in "$1" | "$1="*) return 0 ;; esac
    done
    return 1
}

# `4(x2),2` says that two nodes have four CPUs and one has two.
cpus=$(tr ',' '\n' <<<"${SLURM_JOB_CPUS_PER_NODE:-${SLURM_CPUS_ON_NODE:-1}}" | sed 's/(.*//' | sort -n | head -n 1)
nodes=${SLURM_JOB_NUM_NODES:-1}

if ! given --gpus && ! given --cpu; then
    if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then
        # On several nodes each launcher takes those that it sees: nodes may have different numbers.
        [ "$nodes" -gt 1 ] || options+=(--gpus "$SLURM_GPUS_ON_NODE")
    else
        options+=(--cpu "$cpus")
    fi
fi
# A job of an array is named by the array and its place: its own number may be the whole array's.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
if ! given --run-dir; then
    name=$(basename "${config%.*}")
    options+=(--run-dir "runs/$name-slurm-$job")
fi

launcher=target/release/launcher
[ -x "$launcher" ] || launcher=$(command -v launcher) ||
    fail "no launcher: neither $PWD/target/release/launcher nor on PATH; build it with cargo build --release" 9

# The launchers' shared secret: srun hands it to each, and nobody else sees it.
if [ "$nodes" -gt 1 ] && [ -z "${LOCKSTEP_TOKEN:-}" ]; then
    LOCKSTEP_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    export LOCKSTEP_TOKEN
fi

# A step has one CPU a task unless it asks for more.
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$cpus" \
    --kill-on-bad-exit=1 --export=ALL "$launcher" "${options[@]}" "$config" &
step=$!

# srun hands the signal on to the launchers, which save a checkpoint. A trap ends `wait` early.
asked=
hand_on() {
    asked=$1 handed_on=1
    kill -s "${LOCKSTEP_SIGNAL:-USR1}" "$step"
}
for signal in USR1 USR2 TERM; do
    # shellcheck disable=SC2064 # the signal's name is meant as it is now
    trap "hand_on $signal" "$signal"
done
while
    handed_on=
    wait "$step"
    code=$?
    [ -n "$handed_on" ] && [ "$code" -gt 128 ]
do :; done

requeue() {
    local count=${SLURM_RESTART_COUNT:-0} max=${LOCKSTEP_MAX_REQUEUES:-10}
    if [ "$count" -ge "$max" ]; then
        echo "slurm/train.sh: not requeued: $count of $max requeues are used (LOCKSTEP_MAX_REQUEUES)" >&2
    elif ! command -v scontrol >/dev/null; then
        echo "slurm/train.sh: not requeued: no scontrol here; to go on, submit it again with the same --run-dir" >&2
    else
        echo "slurm/train.sh: exit code $code, requeue $((count + 1)) of $max" >&2
        scontrol requeue "$job"
    fi
}

case "$code" in
    # scancel and preemption send TERM: then somebody else decides.
    8) if [ "$asked" = TERM ]; then echo "to go on: scontrol requeue $job" >&2; else requeue; fi ;;
    4 | 5) [ "$asked" = TERM ] || requeue ;;
esac
exit "$code"
