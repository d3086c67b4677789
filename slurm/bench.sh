#!/bin/bash
# Measures scaling under Slurm, beside PyTorch DDP: one job as large as the largest node count.
#
#   slurm/bench.sh [--nodes 1,2,4] [--gpus-per-node 8] [sbatch options --] [scaling options]
#
#   slurm/bench.sh --gpus-per-node 4 -- --configs configs/resnet34.yaml --batch-per-rank 64,256
#   slurm/bench.sh --nodes 1,2,4 --gpus-per-node 8 --time=1:00:00 -- --python .venv/bin/python
#   slurm/bench.sh --nodes 1,2,3 -- --cpu 1 --global-batch 192
#
# Ranks: one node has 1, 2, 4, ... up to all its GPUs, without GPUs its CPUs, or as `--cpu` and `--gpus` say;
# of several nodes each has the most. All counts take turns in each round, so what disturbs one disturbs
# all. On CPUs all_reduce is measured by itself too, and steps shown beside their prediction.
#
# Run it in the repository, which every node must see, after `cargo build --release -p benches -p launcher
# -p trainer`, for several nodes of CPUs with `--features benches/mpi,trainer/mpi`. Results:
# benches/results/slurm-<job id>.
#
#SBATCH --job-name=lockstep-bench
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --output=lockstep-bench-%j.out

bin=target/release

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

# Of a list such as 1,2,4.
largest() {
    tr ',' '\n' <<<"$1" | sort -n | tail -n 1
}

# The value of option $1 among the rest, as `--name value` or `--name=value`.
value_of() {
    local name=$1
    shift
    while [ $# -gt 0 ]; do
        case "$1" in
            "$name") echo "${2:-}"; return ;;
            "$name"=*) echo "${1#*=}"; return ;;
        esac
        shift
    done
}

# all_reduce by itself, by as many CPU ranks as training has: --nodes $1, --cpu $2. Sets $tables.
measure_all_reduce() {
    local nodes ranks mpirun table bytes=65536,262144,1048576,4194304,16908584
    mpirun=${LOCKSTEP_MPIRUN:-.deps/venv/bin/mpirun}
    [ -x "$mpirun" ] || mpirun=mpirun
    tables=()
    for nodes in ${1//,/ }; do
        # Several nodes have the most ranks each.
        [ "$nodes" -eq 1 ] && ranks=${2//,/ } || ranks=$(largest "$2")
        for ranks in $ranks; do
            table=$out/all_reduce-$((nodes * ranks)).json
            if [ "$nodes" -gt 1 ]; then
                "$mpirun" -n $((nodes * ranks)) --map-by "ppr:$ranks:node:oversubscribe" --bind-to none \
                    "$bin/all_reduce" --bytes $bytes --json "$table" || return
            elif [ "$ranks" -gt 1 ]; then
                "$bin/all_reduce" --ranks "$ranks" --bytes $bytes --json "$table" || return
            else
                continue
            fi
            tables+=("$table")
        done
    done
}

# In a job: measure.
if [ -n "${SLURM_JOB_ID:-}" ]; then
    options=("$@")
    gpus=$(value_of --gpus "$@")
    cpu=$(value_of --cpu "$@")
    if [ -z "$gpus$cpu" ]; then
        if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then
            options+=(--gpus "$(counts_up_to "$SLURM_GPUS_ON_NODE")")
        else
            cpu=$(counts_up_to "${SLURM_CPUS_ON_NODE:-1}")
            options+=(--cpu "$cpu")
        fi
    fi
    [ -n "$(value_of --configs "$@")" ] || options+=(--configs configs/resnet18.yaml,configs/resnet34.yaml)
    # A step has one CPU a task unless it asks for more.
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_ON_NODE:-1}
    # The launchers' shared secret: srun hands it to each, and nobody else sees it.
    LOCKSTEP_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    export LOCKSTEP_TOKEN
    out=benches/results/slurm-$SLURM_JOB_ID
    mkdir -p "$out"
    "$bin/scaling" --out "$out" "${options[@]}" || exit
    [ -n "$cpu" ] || exit 0
    measure_all_reduce "$(value_of --nodes "$@")" "$cpu" || fail "no prediction: all_reduce failed" 1
    [ "${#tables[@]}" -eq 0 ] || exec "$bin/scaling" check "$out/results.json" "${tables[@]}"
    exit
fi

# Outside: submit.
nodes=1
submit=()
while [ $# -gt 0 ]; do
    case "$1" in
        --nodes) nodes=${2:?}; shift 2 ;;
        --nodes=*) nodes=${1#*=}; shift ;;
        --gpus-per-node) submit+=("$1=${2:?}"); shift 2 ;;
        --) shift; break ;;
        -h | --help) sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) submit+=("$1"); shift ;;
    esac
done
[[ $nodes =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] || fail "--nodes $nodes: expected numbers, such as 1,2,4" 2
for program in scaling all_reduce launcher trainer; do
    [ -x "$bin/$program" ] || fail "no $PWD/$bin/$program: build it with cargo build --release -p benches -p launcher -p trainer" 9
done
exec sbatch --nodes="$(largest "$nodes")" "${submit[@]}" "$0" --nodes "$nodes" "$@"
