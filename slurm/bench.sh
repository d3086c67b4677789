#!/bin/bash
# Measures scaling under Slurm: submits one job for each node count, each of which measures its GPU
# counts beside PyTorch DDP.
#
#   slurm/bench.sh [--nodes 1,2,4] [--gpus-per-node 8] [sbatch options --] [scaling options]
#
#   slurm/bench.sh --gpus-per-node 4 -- --configs configs/resnet34.yaml --batch-per-rank 64,256
#   slurm/bench.sh --gpus-per-node 8 --partition=gpu --time=1:00:00 -- --python .venv/bin/python
#
# Run it in the repository, after `cargo build --release`. Results: benches/results/slurm-<job id>.
# This version trains on one node, so a node count above 1 is refused.
#
#SBATCH --job-name=lockstep-bench
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --output=lockstep-bench-%j.out

fail() {
    echo "slurm/bench.sh: $1" >&2
    exit "$2"
}

# 1, 2, 4, ... up to and with $1.
counts_up_to() {
    local count=1 list=1
    while [ $((count *= 2)) -lt "$1" ]; do list+=,$count; done
    [ "$1" -eq 1 ] || list+=,$1
    echo "$list"
}

scaling=target/release/scaling

# In a job: measure.
if [ -n "${SLURM_JOB_ID:-}" ]; then
    gpus=${SLURM_GPUS_ON_NODE:-0}
    if [ "$gpus" -gt 0 ]; then
        ranks=(--gpus "$(counts_up_to "$gpus")")
    else
        ranks=(--cpu "$(counts_up_to "${SLURM_CPUS_ON_NODE:-1}")")
    fi
    options=("$@")
    [[ " $* " == *" --configs"* ]] || options+=(--configs configs/resnet18.yaml,configs/resnet34.yaml)
    exec srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" \
        "$scaling" "${ranks[@]}" --out "benches/results/slurm-$SLURM_JOB_ID" "${options[@]}"
fi

# Outside: submit.
nodes=1
gpus_per_node=
submit=()
while [ $# -gt 0 ]; do
    case "$1" in
        --nodes) nodes=${2:?}; shift 2 ;;
        --nodes=*) nodes=${1#*=}; shift ;;
        --gpus-per-node) gpus_per_node=${2:?}; shift 2 ;;
        --gpus-per-node=*) gpus_per_node=${1#*=}; shift ;;
        --) shift; break ;;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) submit+=("$1"); shift ;;
    esac
done
[ -x "$scaling" ] || fail "no $PWD/$scaling: cargo build --release -p benches -p launcher -p trainer" 9
[ -z "$gpus_per_node" ] || submit+=(--gpus-per-node="$gpus_per_node")
for count in ${nodes//,/ }; do
    [[ $count =~ ^[1-9][0-9]*$ ]] || fail "--nodes $nodes: wants numbers, such as 1,2,4" 2
    [ "$count" -eq 1 ] || fail "--nodes $count: several are not supported in this version" 9
    sbatch --nodes="$count" "${submit[@]}" "$0" "$@" || exit
done
