#!/bin/bash
# Checks Lockstep on a machine with a GPU, and measures it there. That machine needs Python 3 with torch,
# and nothing else: no internet, no Rust, no data.
#
#   benches/gpu_check.sh pack DIR      here, after cargo build --release: what to carry there
#   DIR/benches/gpu_check.sh           there
#   benches/gpu_check.sh --cpu         here, without a GPU: the same checks between CPU ranks
#
# Checks, and speed at batches 64, 256 and 1024, in two parts, of about 6 and 7 minutes by earlier times on an H100:
#
#   DIR/benches/gpu_check.sh --short --seconds 400 --out first
#   DIR/benches/gpu_check.sh --short --seconds 440 --out second --speed 64,256,1024 \
#       --peers cuda-graph,compile-graph,compile
#
#   --data DIR       CIFAR-10's .bin files or their parent; default DIR/data, else made-up images
#   --nccl FILE      a libnccl.so.2 from 2.30 on, which allows several ranks on one GPU;
#                    default DIR/libnccl.so.2
#   --python PATH    the Python that has torch; default python3
#   --out DIR        where records are left; default ./gpu_check
#   --seconds N      time for all of it; default 520
#   --speed N,N      speed alone, at these batches: a round with all of PyTorch's modes takes minutes a batch
#   --peers M,M      PyTorch's modes, as torch_ddp.py has them, the strongest first: the last are cut off;
#                    default cuda-graph,compile-graph,tuned,plain,compile; with --short cuda-graph,tuned,plain
#   --short          one round of speed, without variants of Lockstep, and no profile
#
# Exits with 0 if all that is correctness holds, with 1 if not. Speed decides nothing.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=python3
out=gpu_check
data=
nccl=
device=gpu
seconds=520
speed=
peers=
short=

fail() {
    echo "gpu_check: $1" >&2
    exit 2
}

# Copies what the other machine needs to $1.
pack() {
    local program
    mkdir -p "$1"/{bin,benches/peers,trainer/tests/reference,configs} || exit
    for program in launcher trainer scaling; do
        [ -x "$root/target/release/$program" ] ||
            fail "no target/release/$program: cargo build --release -p benches -p launcher -p trainer"
        strip -o "$1/bin/$program" "$root/target/release/$program" || exit
    done
    # The trainer looks for the library that captures CUDA graphs in its own folder.
    cp "$(ls -t "$root"/target/release/build/torch-ext-*/out/libtorch_ext_cuda.so | head -n 1)" "$1/bin/" ||
        fail "no libtorch_ext_cuda.so: CUDA's headers were missing; make setup, and build again"
    cp "$root"/configs/*.yaml "$1/configs/"
    cp "$root/benches/gpu_check.sh" "$root/benches/gpu_check.py" "$1/benches/"
    cp "$root"/benches/peers/*.py "$1/benches/peers/"
    cp "$root/trainer/tests/reference/notes_resnet.py" "$1/trainer/tests/reference/"
    git -C "$root" describe --always --dirty >"$1/version" 2>/dev/null || true
    du -sh "$1"
}

if [ "${1:-}" = pack ]; then
    pack "${2:?where to}"
    exit
fi
while [ $# -gt 0 ]; do
    case "$1" in
        --cpu) device=cpu; shift ;;
        --short) short=1; shift ;;
        --data | --nccl | --python | --out | --seconds | --speed | --peers)
            [ $# -ge 2 ] || fail "$1 wants a value"
            declare "${1#--}=$2"
            shift 2
            ;;
        -h | --help) sed -n '2,30s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) fail "unknown option $1" ;;
    esac
done

[[ $speed =~ ^([1-9][0-9]*(,[1-9][0-9]*)*)?$ ]] || fail "--speed wants batches, such as 256,1024, not $speed"

bin=$root/bin
[ -d "$bin" ] || bin=$root/target/release
[ -n "$data" ] || [ ! -d "$root/data" ] || data=$root/data
[ -n "$nccl" ] || [ ! -e "$root/libnccl.so.2" ] || nccl=$root/libnccl.so.2
for program in launcher trainer scaling; do
    [ -x "$bin/$program" ] || fail "no $bin/$program"
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
PATH=$bin:$PATH
# libtorch from Python's torch, which must be the version that the programs were built with.
if [ "$bin" = "$root/bin" ]; then
    lib=$("$python" -c 'import torch, os; print(os.path.join(torch.__path__[0], "lib"))') ||
        fail "$python has no torch"
    export LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
images=(--set data.train_images=5000 --set data.test_images=1000)
if [ -n "$data" ]; then
    export CIFAR10_DIR=$data
else
    images+=(--set data.dataset=synthetic)
fi
config=$root/configs/resnet18.yaml
# Settings with which rounding errors stay small for twenty steps. AdamW's first steps are as long as the
# learning rate whatever the gradient, which turns rounding into a percent of loss within three steps; SGD
# does so within ten at a rate of 0.001. At the rate below, a gradient that is wrong by a tenth still shows.
comparable=(--set precision=fp32 --set performance.tf32=false --set optimizer.name=sgd --set optimizer.lr=0.00005
    --set performance.convolution=library)
results=()
is_correct=1
rm -rf "$out"/run-* "$out"/speed-* "$out"/results.txt

# Prints the seconds left, at least one: timeout(1) takes 0 for no limit.
left() {
    local rest=$((seconds - SECONDS))
    echo $((rest > 1 ? rest : 1))
}

# Records a result: $1 name, $2 status (ok, FAILED, skipped, ...), $3 what was seen.
note() {
    results+=("$(printf '%-58s %-8s %s' "$1" "$2" "$3")")
    echo "gpu_check: ${results[-1]}"
    [ "$2" != FAILED ] || is_correct=
}

# Trains $2 ranks on $1 (gpu or cpu) in $out/run-$3; further arguments go to the launcher. With in_place=exec
# the shell is replaced by the training command, so that it can be stopped.
train() {
    local where=$1 ranks=$2 name=$3
    shift 3
    local several=()
    if [ "$where" = gpu ] && [ "$ranks" -gt "$(gpu_count)" ]; then
        several=(env NCCL_MULTI_RANK_GPU_ENABLE=1 LD_PRELOAD="$nccl")
    fi
    ${in_place:-} "${several[@]}" timeout --kill-after=20 "$(left)" launcher "--${where/gpu/gpus}" "$ranks" --quiet --resume never \
        --run-dir "$out/run-$name" "${images[@]}" "${comparable[@]}" "$@" "$config" \
        >"$out/$name.log" 2>&1
}

gpu_count() { nvidia-smi -L 2>/dev/null | grep -c ^GPU; }

# Records under name $1 whether the losses of runs $2 and $3 agree within the relative tolerance $4.
same_losses() {
    local seen
    if seen=$("$python" "$root/benches/gpu_check.py" losses "$out/run-$2" "$out/run-$3" --rtol "$4"); then
        note "$1" ok "$seen"
    else
        note "$1" FAILED "$seen"
    fi
}

# Prints why run $1 failed: what a rank said, or else the last line of its log.
last_words() {
    { grep -m 1 '^ *it said: ' "$out/$1.log" || grep -v '^ *$' "$out/$1.log" | tail -n 1; } | cut -c 1-160
}

one_rank_agrees_with_the_cpu() {
    local twenty=(--set train.max_steps=20 --set metrics.log_every=1)
    train cpu 1 reference "${twenty[@]}" || { note "20 steps on the CPU" FAILED "$(last_words reference)"; return; }
    # Without a GPU: the same mathematics with another implementation of convolutions.
    local other=()
    [ "$device" = gpu ] || other=(--set performance.convolution=matmul)
    if train "$device" 1 device "${twenty[@]}" "${other[@]}"; then
        same_losses "one rank: 20 losses in fp32 agree with the CPU's" reference device 1e-3
    else
        note "one rank: 20 losses in fp32 agree with the CPU's" FAILED "$(last_words device)"
    fi
}

a_checkpoint_loads_on_the_cpu() {
    local name="its checkpoint loads on the CPU and goes on"
    if timeout --kill-after=20 "$(left)" launcher --cpu 1 --quiet --run-dir "$out/run-resumed" --resume "$out/run-device" \
        "${images[@]}" "${comparable[@]}" --set train.max_steps=22 "$config" >"$out/resumed.log" 2>&1 &&
        grep -q '"steps":22' "$out/run-resumed/metrics.jsonl"; then
        note "$name" ok "22 steps"
    else
        note "$name" FAILED "$(last_words resumed)"
    fi
}

a_graph_changes_nothing() {
    local name="a CUDA graph: 20 losses agree with those of eager steps"
    local twenty=(--set train.max_steps=20 --set metrics.log_every=1)
    [ "$device" = gpu ] || { note "$name" skipped "no GPU"; return; }
    train gpu 1 eager "${twenty[@]}" --set performance.cuda_graph=off &&
        train gpu 1 graph "${twenty[@]}" --set performance.cuda_graph=on ||
        { note "$name" FAILED "$(last_words eager); $(last_words graph)"; return; }
    # cuDNN chooses kernels by timing them, and may choose others in another run: two eager runs differed by
    # 5e-4 on an H100.
    same_losses "$name" eager graph 1e-3
}

fused_batch_norm_changes_little_in_bf16() {
    local name="bf16: 20 losses with fused batch norm are near libtorch's" is_fused
    local twenty=(--set train.max_steps=20 --set metrics.log_every=1 --set precision=bf16)
    [ "$device" = gpu ] || { note "$name" skipped "no GPU"; return; }
    for is_fused in true false; do
        train gpu 1 "fused-$is_fused" "${twenty[@]}" --set performance.fused_batch_norm=$is_fused ||
            { note "$name" FAILED "$(last_words "fused-$is_fused")"; return; }
    done
    # A loose tolerance: bf16 rounds each activation by up to 4e-3 of itself, and the two round in different
    # places. An error of a few percent in the forward pass shows; in a gradient, only a gross one.
    same_losses "$name" fused-false fused-true 1e-2
}

# Batch norm uses the statistics of a rank's own images, so a run is compared with one of the same number of
# ranks. On a GPU two ranks replay a graph, or fail, and four take steps without one.
several_ranks_agree_with_as_many_on_the_cpu() {
    local ranks name graph steps=(--set train.max_steps=10 --set metrics.log_every=1)
    for ranks in 2 4; do
        name="$ranks ranks: 10 losses in fp32 agree with $ranks CPU ranks'"
        graph=(--set performance.cuda_graph=off)
        if [ "$device" = gpu ] && [ "$ranks" = 2 ]; then
            graph=(--set performance.cuda_graph=on)
            name+=", by a graph"
        fi
        if [ "$device" = gpu ] && [ "$ranks" -gt "$(gpu_count)" ] && [ -z "$nccl" ]; then
            note "$name" skipped "$(gpu_count) GPUs and no --nccl from 2.30 on"
            continue
        fi
        local batch=(--set train.batch_size_per_rank=$((64 / ranks)))
        train cpu "$ranks" "reference-$ranks" "${steps[@]}" "${batch[@]}" --set comm.overlap=off
        if train "$device" "$ranks" "device-$ranks" "${steps[@]}" "${batch[@]}" --set comm.overlap=on \
            --set comm.bucket_cap_mib=4 "${graph[@]}"; then
            same_losses "$name" "reference-$ranks" "device-$ranks" 1e-3
        else
            note "$name" FAILED "$(last_words "device-$ranks")"
        fi
    done
}

a_killed_rank_is_named() {
    local name="a killed rank is named, and the job stops in time" ranks=2 pid start code events
    [ "$device" = cpu ] || [ "$(gpu_count)" -ge 2 ] || [ -n "$nccl" ] || ranks=1
    events=$out/run-killed/events.jsonl
    in_place=exec train "$device" "$ranks" killed --set comm.timeout_seconds=20 --set train.epochs=1000 &
    local job=$!
    for _ in $(seq 300); do
        sleep 0.2
        grep -q '"kind":"step"' "$out/run-killed/metrics.jsonl" 2>/dev/null && break
        kill -0 $job 2>/dev/null || break
    done
    pid=$("$python" "$root/benches/gpu_check.py" pid "$events" $((ranks - 1))) || pid=
    if [ -z "$pid" ]; then
        note "$name" FAILED "no rank was started: $(last_words killed)"
        kill $job 2>/dev/null
        wait $job
        return
    fi
    start=$SECONDS
    kill -9 "$pid"
    wait $job
    code=$?
    if [ $code -eq 4 ] && [ $((SECONDS - start)) -le 40 ] &&
        grep -q "rank $((ranks - 1)) failed: killed by SIGKILL" "$out/killed.log"; then
        note "$name" ok "rank $((ranks - 1)) of $ranks, exit 4 after $((SECONDS - start)) s"
    else
        note "$name" FAILED "exit $code after $((SECONDS - start)) s: $(last_words killed)"
    fi
}

# Measures interleaved rounds at each batch size, as many as there is time for. The strongest peers run first,
# since the last are cut off. 49,152 training images are whole batches of 64, 256 and 1024: for a smaller last
# batch, peers would compile or capture anew. Lockstep's steps take two seconds in total, estimated from an
# H100 (0.9 ms at 64, 2.2 at 1024); a peer takes as many steps, or three seconds of them.
speed() {
    local batch steps missing peer name each rounds=20 batches=${speed:-64,256,1024} counts=(--gpus 1)
    local variants=(--variant fp32:precision=fp32 --variant eager:performance.cuda_graph=off
        --variant separate:performance.fused_batch_norm=false)
    local modes=${peers:-cuda-graph,compile-graph,tuned,plain,compile}
    [ -z "$short" ] || { rounds=1 variants=() modes=${peers:-cuda-graph,tuned,plain}; }
    if [ "$device" = cpu ]; then
        batches=${speed:-16} counts=(--cpu 1) modes=${peers:-tuned} variants=(--variant fp32:precision=fp32)
    fi
    batches=(${batches//,/ })
    while [ ${#batches[@]} -gt 0 ]; do
        batch=${batches[0]} name=speed-${batches[0]}
        each=$((($(left) - 20) / ${#batches[@]}))
        batches=("${batches[@]:1}")
        [ "$each" -ge 30 ] || { note "$name beside PyTorch" skipped "no time left"; continue; }
        steps=$((22000000 / (8000 + 14 * batch) / 10 * 10))
        [ "$device" = gpu ] || steps=10
        timeout --kill-after=20 "$each" scaling "${counts[@]}" --configs "$config" --set train.epochs=1000 \
            --batch-per-rank "$batch" --steps "$steps" --train-images 49152 --peer-seconds 3 \
            --repeats "$rounds" --pause-seconds 0 \
            --timeout-seconds 90 "${variants[@]}" --no-isolated --peers "$modes" \
            --python "$python" --peer-script "$root/benches/peers/torch_ddp.py" ${data:+--data "$data"} \
            --out "$out/$name" >"$out/$name.log" 2>&1
        sleep 5 # peers that were cut off may still be ending
        if ! scaling render "$out/$name/results.json" >"$out/$name.md" 2>>"$out/$name.log"; then
            note "$name beside PyTorch" skipped "$(last_words "$name")"
            continue
        fi
        missing=
        for peer in ${modes//,/ }; do
            grep -q "DDP, $peer |" "$out/$name.md" || missing+=" $peer"
        done
        if [ -z "$missing" ]; then
            note "$name beside PyTorch" measured "$out/$name/report.html"
        else
            note "$name beside PyTorch" "in part" "without$missing: failed, or no time; $out/$name/report.html"
        fi
    done
}

# Lists each kernel of one step of a graph, with Nsight Compute. The kernels that are skipped are those of the
# warm-up and of cuDNN's trials.
profile() {
    local name="profile of a step" ncu
    ncu=$(command -v ncu || ls -d /usr/local/cuda/bin/ncu 2>/dev/null)
    if [ "$device" = cpu ]; then
        note "$name" measured "the split in speed-16/table.md"
    elif [ -z "$ncu" ]; then
        note "$name" skipped "no ncu here"
    elif timeout 70 "$ncu" --csv --log-file "$out/kernels.csv" --metrics gpu__time_duration.sum \
        --graph-profiling node --clock-control none --launch-skip 20000 --launch-count 1200 \
        trainer --device cuda --run-dir "$out/run-profile" --resume never "${images[@]}" \
        --set data.train_images=50000 --set train.max_steps=400 "$config" >"$out/profile.log" 2>&1 &&
        "$python" "$root/benches/gpu_check.py" kernels "$out/kernels.csv" >"$out/profile.txt"; then
        note "$name" measured "$(head -n 1 "$out/profile.txt")"
    else
        note "$name" skipped "$(last_words profile)"
    fi
}

if [ -z "$speed" ]; then
    one_rank_agrees_with_the_cpu
    a_checkpoint_loads_on_the_cpu
    a_graph_changes_nothing
    fused_batch_norm_changes_little_in_bf16
    several_ranks_agree_with_as_many_on_the_cpu
    a_killed_rank_is_named
    [ -n "$short" ] || profile
fi
speed

{
    cat "$out"/speed-*.md 2>/dev/null | grep -e '^|' -e ' failed at [0-9]* ranks*: '
    echo
    echo "Lockstep $(cat "$root/version" 2>/dev/null || git -C "$root" describe --always --dirty 2>/dev/null)" \
        "on $(nvidia-smi -L 2>/dev/null | head -n 1 | grep . || grep -m 1 'model name' /proc/cpuinfo | cut -d : -f 2)," \
        "$SECONDS s"
    printf '%s\n' "${results[@]}"
} | tee "$out/results.txt"
[ -n "$is_correct" ]
