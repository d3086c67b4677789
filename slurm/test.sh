#!/bin/bash
# Runs slurm/train.sh on a Slurm of its own, of three nodes: see cluster.sh.
#
#   slurm/test.sh [DIR]     DIR holds launcher and trainer (built with MPI); default target/release
#
#   CIFAR10_DIR             trains on those images instead of synthetic ones
#
# Is skipped where the cluster is not possible.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
bin=$(cd "${1:-$repository/target/release}" && pwd)
. "$repository/slurm/cluster.sh"

missing=$(cluster_is_possible) || { echo "slurm/test.sh: skipped, $missing"; exit 0; }
for program in launcher trainer; do
    [ -x "$bin/$program" ] || { echo "slurm/test.sh: no $bin/$program: build it first" >&2; exit 1; }
done

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
    sbatch --parsable --cpus-per-task=2 "$@"
}

trained=$repository/slurm/train.sh

# What a job wrote, for whoever reads the failure.
show() {
    state_of "$1"
    cat "lockstep-$1.out"
    return 1
}

ended_with() {
    eventually has_ended "$1" || show "$1" || return 1
    [ "$(state_of "$1")" = "$2" ] || show "$1"
}

# Epoch, losses and accuracies of a run.
results() {
    grep '"kind":"epoch"' "runs/$1/metrics.jsonl" | python3 -c '
import json, sys
for line in sys.stdin:
    it = json.loads(line)
    print(it["epoch"], *(it[key] for key in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")))'
}

# Two runs with the same ranks differ by the order in which gradients are added, no more. Tolerance: a thousandth
# of a loss, a hundredth of the images.
same_results() {
    paste <(results "$1") <(results "$2") | python3 -c '
import sys
lines = [[float(word) for word in line.split()] for line in sys.stdin]
assert lines and all(len(line) == 10 for line in lines), lines
for line in lines:
    mine, other = line[:5], line[5:]
    assert mine[0] == other[0] and all(
        abs(mine[at] - other[at]) < 1e-3 * other[at] and abs(mine[at + 1] - other[at + 1]) < 0.01
        for at in (1, 3)), (mine, other)'
}

# Six ranks, on one, two and three nodes: over shared memory and over MPI.
jobs_on_one_two_and_three_nodes_train_alike() {
    local count job
    for count in 1 2 3; do
        job=$(submit -N "$count" "$trained" smooth.yaml --cpu $((6 / count)) --run-dir "runs/on-$count")
        ended_with "$job" "COMPLETED 0:0" || return 1
        grep -q '"event":"verdict","exit_code":0' "runs/on-$count/events.jsonl" || return 1
        [ -s "runs/on-$count/logs/rank-5.log" ] || return 1
    done
    same_results on-2 on-1 && same_results on-3 on-1
}

steps_were_taken() {
    grep -q 'epoch [0-9]*/' "lockstep-$1.out"
}

spawned_at_least() {
    [ "$(grep -c '"event":"spawned"' "$1")" -ge "$2" ]
}

# A node refuses a job that comes back within the second in which it was killed; Slurm itself waits two
# minutes.
runs_again() {
    [ "$(squeue --noheader --states=PENDING --format=%i --jobs="$1" 2>/dev/null)" != "$1" ] ||
        { sleep 3; scontrol update job="$1" StartTime=now; }
    spawned_at_least "$2" "$3"
}

# What --signal=B:USR1@120 does before the time limit, twice; then to the end, like one that was let alone.
a_job_that_is_requeued_twice_ends_like_one_that_was_not() {
    local job events=runs/twice/events.jsonl times
    job=$(submit -N 2 "$trained" medium.yaml --cpu 1 --run-dir runs/twice)
    for times in 1 2; do
        eventually spawned_at_least "$events" $((2 * times)) || show "$job" || return 1
        eventually training_since "$times" || show "$job" || return 1
        scancel --batch --signal=USR1 "$job"
        # Slurm would wait for two minutes.
        eventually runs_again "$job" "$events" $((2 * times + 2)) || show "$job" || return 1
    done
    ended_with "$job" "COMPLETED 0:0" || return 1
    [ "$(grep -c '"reason":"SIGUSR1' "$events")" -eq 2 ] || show "$job" || return 1
    job=$(submit -N 2 "$trained" medium.yaml --cpu 1 --run-dir runs/once)
    ended_with "$job" "COMPLETED 0:0" || return 1
    [ "$(results twice)" = "$(results once)" ]
}

training_since() {
    [ "$(grep -c '"kind":"epoch"' runs/twice/metrics.jsonl)" -ge "$1" ]
}

a_job_with_higher_priority_takes_the_nodes_and_gives_them_back() {
    local job urgent events=runs/preempted/events.jsonl
    job=$(submit -N 3 "$trained" long.yaml --cpu 1 --run-dir runs/preempted)
    eventually steps_were_taken "$job" || show "$job" || return 1
    urgent=$(sbatch --parsable -N 3 --partition=urgent --wrap 'sleep 1')
    ended_with_any "$urgent" || return 1
    eventually runs_again "$job" "$events" 6 || show "$job" || return 1
    grep -q '"event":"stop_requested","reason":"SIGTERM' "$events" || show "$job" || return 1
    [ -e runs/preempted/checkpoints/latest ] || return 1
    scancel "$job"
    eventually has_ended "$job"
}

ended_with_any() {
    eventually has_ended "$1"
}

# By itself: Slurm, which may be a minute early, sends a signal (SIGURG) that means nothing to anybody.
a_job_saves_before_its_time_is_up() {
    local job
    job=$(submit -N 2 --time=2 --signal=B:23@1 --export=ALL,LOCKSTEP_MAX_REQUEUES=0 "$trained" \
        long.yaml --cpu 1 --run-dir runs/walltime)
    ended_with "$job" "FAILED 8:0" || return 1
    grep -q "before its time limit and stop" "lockstep-$job.out" || show "$job" || return 1
    grep -q "the job's time limit" runs/walltime/events.jsonl || show "$job" || return 1
    grep -q "0 of 0 requeues are used" "lockstep-$job.out"
}

a_job_that_is_cancelled_saves_and_does_not_come_back() {
    local job
    job=$(submit -N 2 "$trained" long.yaml --cpu 1 --run-dir runs/cancelled)
    eventually steps_were_taken "$job" || show "$job" || return 1
    scancel "$job"
    eventually has_ended "$job" || show "$job" || return 1
    grep -q '"event":"verdict","exit_code":8' runs/cancelled/events.jsonl || show "$job" || return 1
    [ -e runs/cancelled/checkpoints/latest ] || return 1
    ! grep -q "requeue [0-9]* of" "lockstep-$job.out" || show "$job" || return 1
    [[ $(state_of "$job") == CANCELLED* ]] || show "$job"
}

a_node_that_goes_down_ends_the_job_and_is_named() {
    local job
    job=$(submit -N 2 --no-kill --export=ALL,LOCKSTEP_MAX_REQUEUES=0 "$trained" long.yaml --cpu 1 \
        --run-dir runs/down)
    eventually steps_were_taken "$job" || show "$job" || return 1
    stop_node n2
    eventually grep -q 'node 1 (n2) is lost' "lockstep-$job.out" || show "$job" || return 1
    eventually grep -q '"event":"verdict","exit_code":4' runs/down/events.jsonl || show "$job" || return 1
    scancel "$job" 2>/dev/null || true
    eventually has_ended "$job" || return 1
    start_node n2
    scontrol update NodeName=n2 State=RESUME 2>/dev/null || true
    eventually all_nodes_are_idle
}

# Only srun and scontrol are replaced: this machine may have no GPU to allocate.
gpus_and_arrays_are_passed_on() {
    local output
    mkdir -p stub
    printf '#!/bin/sh\necho "$@"\nexit "${STUB_CODE:-0}"\n' >stub/srun
    printf '#!/bin/sh\necho "scontrol $@"\n' >stub/scontrol
    chmod +x stub/*
    output=$(PATH=$PWD/stub:$PATH SLURM_JOB_ID=7 SLURM_GPUS_ON_NODE=4 bash "$trained" --quiet)
    [[ $output == *"launcher --quiet --gpus 4 --run-dir runs/resnet34-slurm-7 configs/resnet34.yaml" ]] ||
        { echo "$output"; return 1; }
    output=$(PATH=$PWD/stub:$PATH SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=3 SLURM_ARRAY_JOB_ID=5 \
        SLURM_JOB_CPUS_PER_NODE='8(x2),4' SLURM_ARRAY_TASK_ID=2 STUB_CODE=4 bash "$trained") || true
    [[ $output == *"--cpus-per-task=4 "*"runs/resnet34-slurm-5_2"*"scontrol requeue 5_2" ]] ||
        { echo "$output"; return 1; }
}

a_failure_that_would_recur_is_not_requeued() {
    local output code=0
    output=$(PATH=$PWD/stub:$PATH SLURM_JOB_ID=7 STUB_CODE=2 bash "$trained") || code=$?
    [ "$code" -eq 2 ] && [[ $output != *scontrol* ]]
}

# A doctor on each node of a job with these options of sbatch; `before` is run on each before it.
submit_doctor() {
    local before=$1
    shift
    sbatch --parsable -N 2 --output=lockstep-%j.out "$@" --wrap "
        export LOCKSTEP_TOKEN=0123456789abcdef0123456789abcdef
        srun --cpus-per-task=1 bash -c '$before; exec target/release/launcher doctor --cpu 1 \
            --join-timeout 60 --run-dir runs/doctor short.yaml'"
}

# `says job severity subject text`
says() {
    grep -q "^$2  *$3  *.*$4" "lockstep-$1.out" || show "$1"
}

doctors_of_two_nodes_find_each_other_and_measure() {
    local job
    job=$(submit_doctor : --ntasks-per-node=1)
    ended_with "$job" "COMPLETED 0:0" || return 1
    says "$job" ok "Slurm tasks" "one launcher on each of 2 nodes" &&
        says "$job" ok port "node 0 listens at" && says "$job" ok nodes "n2 joined over eth0" &&
        says "$job" ok clocks "the clock of node 1 (n2) differs by" &&
        says "$job" ".*" all-reduce "over 2 ranks of 2 nodes, over mpi" && [ ! -e runs/doctor ]
}

doctors_find_too_many_tasks_a_wrong_clock_and_missing_images() {
    local job shim=$PWD/wrong_clock.so
    job=$(submit_doctor : --ntasks-per-node=2)
    ended_with "$job" "FAILED 9:0" || return 1
    says "$job" BROKEN "Slurm tasks" "srun started 4 launchers on 2 nodes" || return 1
    job=$(submit_doctor '[ $SLURM_NODEID = 0 ] || set -- --set data.dataset=image_folder; \
        exec target/release/launcher doctor --cpu 1 "$@" short.yaml' --ntasks-per-node=1)
    ended_with "$job" "FAILED 9:0" || return 1
    says "$job" BROKEN nodes "node 1 (n2) cannot take part: data: " || return 1
    cc -shared -fPIC -o "$shim" "$repository/launcher/tests/faults/wrong_clock.c" || return 0
    job=$(submit_doctor "[ \$SLURM_NODEID = 0 ] || export LD_PRELOAD=$shim" --ntasks-per-node=1)
    ended_with "$job" "COMPLETED 0:0" || return 1
    says "$job" warning clocks "the clock of node 1 (n2) differs by -[23][0-9.]* s"
}

doctors_find_a_slow_network() {
    local job network=/run/netns/ls$tag-n2
    nsenter --net="$network" tc qdisc add dev eth0 root tbf rate 300mbit burst 256kb latency 50ms || return 1
    job=$(submit_doctor : --ntasks-per-node=1)
    eventually has_ended "$job"
    nsenter --net="$network" tc qdisc delete dev eth0 root
    ended_with "$job" "COMPLETED 0:0" || return 1
    says "$job" warning all-reduce "over 2 ranks of 2 nodes, over mpi"
}

# Programs of Slurm that a node need not have: all but srun.
a_job_trains_and_stops_where_there_is_no_scontrol() {
    local job
    mkdir without
    ln -s /usr/bin/* without/
    rm -f without/scontrol
    job=$(submit -N 2 --export="ALL,PATH=$PWD/without" "$trained" long.yaml --cpu 1 --run-dir runs/without)
    eventually steps_were_taken "$job" || show "$job" || return 1
    scancel --batch --signal=USR1 "$job"
    ended_with "$job" "FAILED 8:0" || return 1
    grep -q "not requeued: no scontrol here" "lockstep-$job.out" || show "$job" || return 1
    [ -e runs/without/checkpoints/latest ]
}

start_cluster 3 2
cd "$work/submit"
mkdir target
ln -s "$bin" target/release
[ -n "${CIFAR10_DIR:-}" ] && data_set=cifar10 || data_set=synthetic
cat >short.yaml <<YAML
data: {dataset: $data_set, train_images: 480, test_images: 96}
train: {epochs: 2, batch_size_per_rank: 8}
model: {name: resnet18}
precision: fp32
performance: {convolution: library}
YAML
# Rounding stays rounding for 20 steps: maps of one pixel want many images, and AdamW's first steps are as long as
# the learning rate whatever the gradient.
sed -e 's/480, test_images: 96/3840, test_images: 480/' -e 's/batch_size_per_rank: 8/batch_size_per_rank: 64/' \
    -e '$a optimizer: {name: sgd, lr: 0.001}' short.yaml >smooth.yaml
sed 's/epochs: 2, batch_size_per_rank: 8/epochs: 6, batch_size_per_rank: 16/' short.yaml >medium.yaml
sed 's/epochs: 2, batch_size_per_rank: 8/epochs: 1000, batch_size_per_rank: 16/' short.yaml >long.yaml
check "GPUs and arrays are passed on" gpus_and_arrays_are_passed_on
check "a failure that would recur is not requeued" a_failure_that_would_recur_is_not_requeued
check "doctors of two nodes find each other and measure" doctors_of_two_nodes_find_each_other_and_measure
check "doctors find what is planted" doctors_find_too_many_tasks_a_wrong_clock_and_missing_images
check "doctors find a slow network" doctors_find_a_slow_network
check "a job trains and stops where there is no scontrol" a_job_trains_and_stops_where_there_is_no_scontrol
check "jobs on one, two and three nodes train alike" jobs_on_one_two_and_three_nodes_train_alike
check "a job that is requeued twice ends like one that was not" a_job_that_is_requeued_twice_ends_like_one_that_was_not
check "a job that is preempted saves and goes on" a_job_with_higher_priority_takes_the_nodes_and_gives_them_back
check "a job saves before its time is up" a_job_saves_before_its_time_is_up
check "a job that is cancelled saves and does not come back" a_job_that_is_cancelled_saves_and_does_not_come_back
check "a node that goes down ends the job and is named" a_node_that_goes_down_ends_the_job_and_is_named
