#!/bin/bash
# Trains under Slurm, on one node:
#
#   sbatch [sbatch options] slurm/train.sh [CONFIG] [launcher options]
#
#   sbatch --gpus=4 slurm/train.sh                             configs/resnet34.yaml on four GPUs
#   sbatch --cpus-per-task=8 slurm/train.sh configs/resnet18.yaml --cpu 2
#
# Submit from the repository, after `cargo build --release`. Ranks: one per GPU of the job; without
# GPUs one per CPU, or as many as `--cpu N` says. The run is kept in
# runs/<config>-slurm-<job id>, so a job that Slurm requeues goes on from its newest checkpoint.
# Two minutes before the time limit it saves one and ends with 8; then `scontrol requeue <job id>`.
#
#SBATCH --job-name=lockstep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=lockstep-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

fail() {
    echo "slurm/train.sh: $1" >&2
    exit "$2"
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "submit it: sbatch slurm/train.sh [CONFIG] [launcher options]" 2
[ "${SLURM_JOB_NUM_NODES:-1}" -eq 1 ] ||
    fail "$SLURM_JOB_NUM_NODES nodes: several are not supported in this version; say --nodes=1" 9

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

if ! given --gpus && ! given --cpu; then
    if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then
        options+=(--gpus "$SLURM_GPUS_ON_NODE")
    else
        options+=(--cpu "${SLURM_CPUS_ON_NODE:-1}")
    fi
fi
if ! given --run-dir; then
    name=$(basename "${config%.*}")
    options+=(--run-dir "runs/$name-slurm-$SLURM_JOB_ID")
fi

launcher=target/release/launcher
[ -x "$launcher" ] || launcher=$(command -v launcher) ||
    fail "no launcher: neither $PWD/target/release/launcher nor on PATH; cargo build --release" 9

# A step has one CPU unless it asks for more.
srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" \
    "$launcher" "${options[@]}" "$config" &
step=$!

# srun hands these on to the launcher, which saves a checkpoint. A trap ends `wait` early.
trap 'handed_on=1; kill -USR1 "$step"' USR1
trap 'handed_on=1; kill -TERM "$step"' TERM
while
    handed_on=
    wait "$step"
    code=$?
    [ -n "$handed_on" ] && [ "$code" -gt 128 ]
do :; done

[ "$code" -ne 8 ] || echo "to go on: scontrol requeue $SLURM_JOB_ID" >&2
exit "$code"
