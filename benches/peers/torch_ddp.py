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

REFERENCE = pathlib.Path(__file__).resolve().parents[2] / "trainer" / "tests" / "reference"
EXIT_SET_UP = 9
ONE_GPU_ONLY = ("compile-graph", "cuda-graph")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TRAINING, TEST = tuple(f"data_batch_{n}.bin" for n in range(1, 6)), ("test_batch.bin",)
SIDE = 32
PIXELS = 3 * SIDE * SIDE


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="print versions and stop")
    parser.add_argument("--mode", choices=["plain", "tuned", "tuned-fp32", "compile", "compile-graph",
                                               "cuda-graph", "none"], default="plain")
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


def physical_cores() -> list[list[int]]:
    """The cores this process may use, each the list of its logical CPUs."""
    cores: dict[tuple[int, int], list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        topology = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            package = int((topology / "physical_package_id").read_text())
            siblings = (topology / "thread_siblings_list").read_text()
            first = int(siblings.replace("-", ",").split(",")[0])
        except (OSError, ValueError):
            package, first = 0, cpu
        cores.setdefault((package, first), []).append(cpu)
    return [cores[key] for key in sorted(cores)]


def take_cores(local_rank: int, local_world_size: int, pin: bool, passive: bool) -> int:
    """Pins this rank; how many threads it should use. Before torch is loaded, which reads both."""
    cores = physical_cores()
    threads = max(len(cores) // local_world_size, 1)
    if local_world_size > len(cores):
        mine = [cores[local_rank % len(cores)]]
    else:
        mine = cores[local_rank * threads : (local_rank + 1) * threads]
    if pin:
        os.sched_setaffinity(0, list(itertools.chain(*mine)))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if passive:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ["KMP_BLOCKTIME"] = "0"
    return threads


def import_torch():
    """torch in full; says what to do where there is none."""
    try:
        import torch
        import torch.distributed
        import torch.nn.parallel
    except Exception as error:  # a broken installation fails in any way it likes
        print(f"torch_ddp: torch does not import in {sys.executable}: {error}\n"
              "torch_ddp: needs a Python with torch in full (pip install torch==2.11.0); the lean "
              "one that `make setup` installs is not enough", file=sys.stderr)
        sys.exit(EXIT_SET_UP)
    return torch


def read_images(torch, folder: pathlib.Path | None, files=TRAINING):
    """Images [N, 3, 32, 32] u8 and labels [N] i64."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        count = 50_000 if files == TRAINING else 10_000  # as CIFAR-10 has
        images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        return images, torch.randint(0, 10, (count,), generator=generator)
    batches = folder / "cifar-10-batches-bin"
    folder = batches if batches.is_dir() else folder
    raw = b"".join((folder / name).read_bytes() for name in files)
    records = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, 1 + PIXELS)
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE).contiguous(), records[:, 0].long()


class Plain:
    """The notes' script with the few lines that DDP's tutorial adds."""

    def __init__(self, torch, model, images, labels, place):
        from torch.utils.data import DataLoader, TensorDataset
        from torch.utils.data.distributed import DistributedSampler

        self.torch = torch
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        images = (images.float() / 255 - mean) / std
        self.sampler = DistributedSampler(
            TensorDataset(images, labels), num_replicas=place.world_size, rank=place.rank,
            seed=place.seed)
        self.loader = DataLoader(
            self.sampler.dataset, batch_size=place.batch, sampler=self.sampler)
        self.device = place.device
        device_ids = [place.device.index] if place.device.type == "cuda" else None
        self.model = torch.nn.parallel.DistributedDataParallel(
            model.to(place.device), device_ids=device_ids)
        self.criterion = torch.nn.CrossEntropyLoss()
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def batches(self):
        for epoch in itertools.count():
            self.sampler.set_epoch(epoch)
            yield from self.loader

    def steps_per_epoch(self):
        return len(self.loader)

    def logits(self, images):
        mean, std = (self.torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return self.model.module(((images.float() / 255 - mean) / std).to(self.device))

    def step(self, batch):
        images, labels = (tensor.to(self.device) for tensor in batch)
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Tuned:
    """What someone who knows PyTorch well would write."""

    def __init__(self, torch, model, images, labels, place, mode):
        self.torch, self.place = torch, place
        self.is_bf16 = mode != "tuned-fp32"
        self.memory_format = torch.channels_last if self.is_bf16 else torch.contiguous_format
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        # Channels last, so that a gathered batch needs no reordering.
        self.images = images.permute(0, 2, 3, 1).contiguous().to(place.device)
        self.labels = labels.to(place.device)
        self.mean, self.std = (
            torch.tensor(values, device=place.device) * 255 for values in (MEAN, STD))
        model = model.to(place.device, memory_format=self.memory_format)
        if mode not in ("none", *ONE_GPU_ONLY):
            device_ids = [place.device.index] if place.device.type == "cuda" else None
            model = torch.nn.parallel.DistributedDataParallel(
                model, device_ids=device_ids, gradient_as_bucket_view=True, static_graph=True)
        match mode:
            case "compile":
                self.model = torch.compile(model)
            case "compile-graph":
                self.model = torch.compile(model, mode="reduce-overhead")
            case _:
                self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameters(), fused=True, capturable=mode == "cuda-graph")
        self.loss = torch.zeros((), device=place.device)

    def batches(self):
        """Indices into the images, of this rank."""
        for epoch in itertools.count():
            generator = self.torch.Generator().manual_seed(self.place.seed * 1_000_003 + epoch)
            order = self.torch.randperm(len(self.labels), generator=generator)
            yield from order[self.place.rank :: self.place.world_size].split(self.place.batch)

    def steps_per_epoch(self):
        mine = len(range(self.place.rank, len(self.labels), self.place.world_size))
        return -(-mine // self.place.batch)

    def normalized(self, pixels):
        """Channels last, bytes."""
        images = (pixels.float() - self.mean) / self.std
        return images.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)

    def autocast(self):
        return self.torch.autocast(
            self.place.device.type, dtype=self.torch.bfloat16, enabled=self.is_bf16)

    def logits(self, images):
        pixels = images.permute(0, 2, 3, 1).to(self.place.device)
        with self.autocast():
            return getattr(self.model, "module", self.model)(self.normalized(pixels))

    def step(self, index):
        index = index.to(self.place.device, non_blocking=True)
        images = self.normalized(self.images.index_select(0, index))
        labels = self.labels.index_select(0, index)
        self.optimizer.zero_grad()
        with self.autocast():
            logits = self.model(images)
            loss = self.torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        self.loss += loss.detach()


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
    # At least two steps: a GPU's times lie between them.
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


class Captured(Tuned):
    """Tuned, as one CUDA graph: the host queues a step in one call."""

    WARMUP_STEPS = 3

    def __init__(self, torch, model, images, labels, place, mode):
        super().__init__(torch, model, images, labels, place, mode)
        self.index = torch.zeros(place.batch, dtype=torch.long, device=place.device)
        self.graph, self.seen = None, 0

    def step(self, index):
        if len(index) < len(self.index):  # the last of an epoch
            return super().step(index)
        self.index.copy_(index, non_blocking=True)
        self.seen += 1
        if self.graph is not None:
            return self.graph.replay()
        stream = self.torch.cuda.Stream()
        stream.wait_stream(self.torch.cuda.current_stream())
        with self.torch.cuda.stream(stream):
            super().step(self.index)
        self.torch.cuda.current_stream().wait_stream(stream)
        if self.seen == self.WARMUP_STEPS:
            self.graph = self.torch.cuda.CUDAGraph()
            with self.torch.cuda.graph(self.graph):
                super().step(self.index)


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
        if place.rank == 0 and args.json:  # what there is, if it is stopped
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
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:  # all are on this machine
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
