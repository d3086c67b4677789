"""PyTorch DDP on the notes' networks: what Lockstep's images/s are measured against.

    python -m torch.distributed.run --standalone --nproc-per-node 2 torch_ddp.py \
        --mode tuned --model resnet18 --batch-per-rank 64 --steps 60 --json FILE

Seven modes:
  plain   the notes' script as a user moves it to DDP: fp32, AdamW and DDP with their defaults, a
          DataLoader over tensors with a DistributedSampler, loss.item() in every step
  tuned   bf16 autocast, channels_last, fused AdamW, gradient_as_bucket_view, static_graph, the whole
          data set as bytes on the device, no waiting for the device inside a step
  tuned-fp32
          tuned, but fp32 and the default memory format: on a CPU and small images it may be faster
  compile tuned, with torch.compile
  compile-graph
          tuned, with torch.compile's mode reduce-overhead, which fuses kernels and replays them as CUDA
          graphs: one GPU only
  cuda-graph
          tuned, with the whole step captured once as a CUDA graph and replayed: one GPU only
  none    tuned, but ranks do not communicate while they train: what DDP would reach for free

Ranks talk over NCCL on GPUs (--device cuda), over Gloo on the CPU; they are pinned as Lockstep's are,
with as many threads as there are cores for each. `--check` says whether all this can work here, and
prints versions as JSON; it exits with 9 where torch does not import.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import sys
import time

from cores import take_cores
from trainers import MODES, ONE_GPU_ONLY, TEST, Captured, Plain, Tuned, read_images

REFERENCE = pathlib.Path(__file__).resolve().parents[2] / "trainer" / "tests" / "reference"
EXIT_SET_UP = 9


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="print versions and stop")
    parser.add_argument("--mode", choices=MODES, default="plain")
    parser.add_argument("--model", choices=["resnet18", "resnet34"], default="resnet18")
    parser.add_argument("--stem", choices=["notes", "cifar"], default="notes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch-per-rank", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60, help="timed steps")
    parser.add_argument("--most-seconds", type=float, default=float("inf"), help="time no more steps after "
                        "so long; one rank only")
    parser.add_argument("--warmup-steps", type=int, default=10, help="steps before those")
    parser.add_argument("--to-accuracy", type=float, help="instead of timing steps: train until the "
                        "test accuracy is this, evaluating after every epoch")
    parser.add_argument("--epochs", type=int, default=20, help="with --to-accuracy: at most so many")
    parser.add_argument("--seed", type=int, default=0, help="of weights and the order of samples")
    parser.add_argument("--data", type=pathlib.Path, help="folder with CIFAR-10's .bin files, or its "
                        "parent; without it images are random")
    parser.add_argument("--train-images", type=int, help="only the first so many")
    parser.add_argument("--no-pin", action="store_true", help="leave ranks where the system puts them")
    parser.add_argument("--json", type=pathlib.Path, help="where rank 0 writes what was measured")
    return parser.parse_args()


def import_torch():
    """torch in full; says what to do where there is none."""
    try:
        import torch
        import torch.distributed
        import torch.nn.parallel
    except Exception as error:  # a broken installation may raise anything
        print(f"torch_ddp: torch does not import in {sys.executable}: {error}\n"
              "torch_ddp: needs a Python with torch in full (pip install torch==2.11.0); the lean "
              "one that `make setup` installs is not enough", file=sys.stderr)
        sys.exit(EXIT_SET_UP)
    return torch


class Place:
    """This rank among all."""

    def __init__(self, torch, args):
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.batch, self.seed = args.batch_per_rank, args.seed
        local_rank = int(os.environ["LOCAL_RANK"])
        self.device = torch.device(args.device, local_rank) if args.device == "cuda" else \
            torch.device("cpu")
        if args.device == "cuda":
            torch.cuda.set_device(self.device)


def measure(torch, trainer, place, args) -> dict:
    """Trains, and times all steps after the warm-up. Of this rank."""
    on_gpu = place.device.type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    batches, step_ms, data_seconds = trainer.batches(), [], 0.0
    first_step_at = time.time()
    for step in range(args.warmup_steps):
        trainer.step(next(batches))
        if step == 0:
            wait()
            first_step_done_at = time.time()
    wait()
    torch.distributed.barrier()
    timed_from = time.time()
    started, marks, images, steps = time.perf_counter(), [], 0, 0
    # At least two steps: on a GPU, step times are those between two events.
    while steps < args.steps and (steps < 2 or time.perf_counter() - started < args.most_seconds):
        steps += 1
        before = time.perf_counter()
        batch = next(batches)
        data_seconds += time.perf_counter() - before
        images += len(batch[-1]) if isinstance(batch, (list, tuple)) else len(batch)
        trainer.step(batch)
        if on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append(event)
        else:
            step_ms.append((time.perf_counter() - before) * 1e3)
    wait()
    seconds = time.perf_counter() - started
    if on_gpu:
        step_ms = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
        peak_memory_bytes = torch.cuda.max_memory_reserved()
    else:
        peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "images": images,
        "seconds": seconds,
        "step_ms": [round(value, 4) for value in step_ms],
        "steps": steps,
        "data_ms": data_seconds / steps * 1e3,
        "first_step_at": first_step_at,
        "first_step_done_at": first_step_done_at,
        "timed_from": timed_from,
        "timed_to": timed_from + seconds,
        "peak_memory_bytes": peak_memory_bytes,
        "cpus": sorted(os.sched_getaffinity(0)),
    }


def evaluate(torch, trainer, place, images, labels) -> float:
    """The accuracy on all images, with rank 0's running statistics; each rank takes its part."""
    for buffer in trainer.model.buffers():
        torch.distributed.broadcast(buffer, 0)
    trainer.model.eval()
    hits = torch.zeros((), device=place.device)
    with torch.no_grad():
        mine = slice(place.rank, None, place.world_size)
        for part, wanted in zip(images[mine].split(500), labels[mine].split(500)):
            hits += (trainer.logits(part).argmax(-1) == wanted.to(place.device)).sum()
    trainer.model.train()
    torch.distributed.all_reduce(hits)
    return hits.item() / len(labels)


def train_to(torch, trainer, place, args) -> list[dict]:
    """Trains until the test accuracy is `args.to_accuracy`; when each epoch's evaluation ended."""
    images, labels = read_images(torch, args.data, TEST)
    batches, ends = trainer.batches(), []
    torch.distributed.barrier()
    started = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        for batch in itertools.islice(batches, trainer.steps_per_epoch()):
            trainer.step(batch)
        accuracy = evaluate(torch, trainer, place, images, labels)
        ends.append({"epoch": epoch, "seconds": time.perf_counter() - started,
                     "test_accuracy": accuracy})
        if place.rank == 0 and args.json:  # kept even if the process is stopped
            args.json.write_text(epochs_text(args, ends) + "\n")
        if accuracy >= args.to_accuracy:
            break
    return ends


def epochs_text(args, ends: list[dict]) -> str:
    return json.dumps({"mode": args.mode, "seed": args.seed, "epochs": ends}, indent=2)


def percentile(values: list[float], fraction: float) -> float:
    ordered = sorted(values)
    return ordered[round((len(ordered) - 1) * fraction)]


def main() -> None:
    args = parse_args()
    if args.check:
        torch = import_torch()
        print(json.dumps({"torch": torch.__version__, "python": sys.version.split()[0],
                          "cuda": torch.cuda.is_available()}))
        return
    if "RANK" not in os.environ:
        sys.exit("torch_ddp: start it with python -m torch.distributed.run --standalone "
                 "--nproc-per-node N torch_ddp.py ...")
    if args.warmup_steps < 1 or args.steps < 2:
        sys.exit("torch_ddp: needs at least one warm-up step and two timed ones")
    if args.to_accuracy is not None and args.data is None:
        sys.exit("torch_ddp: --to-accuracy needs real images: --data")
    if args.mode in ONE_GPU_ONLY and (args.device != "cuda" or os.environ["WORLD_SIZE"] != "1"):
        sys.exit(f"torch_ddp: --mode {args.mode} is for one GPU")
    if args.most_seconds < float("inf") and os.environ["WORLD_SIZE"] != "1":
        sys.exit("torch_ddp: --most-seconds is for one rank: several would not stop at the same step")
    threads = take_cores(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]),
                         not args.no_pin, args.mode != "plain")
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:  # all ranks are on this machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch = import_torch()
    sys.path.insert(0, str(REFERENCE))
    from notes_resnet import ResNet

    torch.manual_seed(args.seed)
    place = Place(torch, args)
    backend = "nccl" if args.device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend)
    images, labels = (part[: args.train_images] for part in read_images(torch, args.data))
    model = ResNet(args.model, args.stem)
    if args.mode == "plain":
        trainer = Plain(torch, model, images, labels, place)
    else:
        kind = Captured if args.mode == "cuda-graph" else Tuned
        trainer = kind(torch, model, images, labels, place, args.mode)
    del images, labels
    if args.to_accuracy is not None:
        epochs = train_to(torch, trainer, place, args)
        torch.distributed.destroy_process_group()
        if place.rank == 0 and not args.json:
            print(epochs_text(args, epochs))
        return
    mine = measure(torch, trainer, place, args)
    ranks = [None] * place.world_size
    torch.distributed.all_gather_object(ranks, mine)
    torch.distributed.destroy_process_group()
    if place.rank == 0:
        report(args, ranks, threads, torch.__version__, backend)


def report(args, ranks: list[dict], threads: int, version: str, backend: str) -> None:
    result = {
        "mode": args.mode,
        "model": args.model,
        "stem": args.stem,
        "device": args.device,
        "backend": backend,
        "torch": version,
        "data": "cifar10" if args.data else "random",
        "world_size": len(ranks),
        "batch_size_per_rank": args.batch_per_rank,
        "threads_per_rank": threads,
        "warmup_steps": args.warmup_steps,
        "steps": ranks[0]["steps"],
        "images_per_s": sum(rank["images"] for rank in ranks)
        / max(rank["seconds"] for rank in ranks),
        "step_ms_p50": percentile(ranks[0]["step_ms"], 0.5),
        "step_ms_p95": percentile(ranks[0]["step_ms"], 0.95),
        "peak_memory_bytes": max(rank["peak_memory_bytes"] for rank in ranks),
        "first_step_at": max(rank["first_step_at"] for rank in ranks),
        "first_step_done_at": max(rank["first_step_done_at"] for rank in ranks),
        "timed_from": min(rank["timed_from"] for rank in ranks),
        "timed_to": max(rank["timed_to"] for rank in ranks),
        "ranks": ranks,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    summary = {key: value for key, value in result.items() if key != "ranks"}
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
