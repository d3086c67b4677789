"""The notes' training as a script of PyTorch has it, plain and tuned; torch_ddp.py measures it.

torch is handed in: it may only be imported once a rank has its cores.
"""

import itertools
import pathlib

MODES = ("plain", "tuned", "tuned-fp32", "compile", "compile-graph", "cuda-graph", "none")
ONE_GPU_ONLY = ("compile-graph", "cuda-graph")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TRAINING, TEST = tuple(f"data_batch_{n}.bin" for n in range(1, 6)), ("test_batch.bin",)
SIDE = 32
PIXELS = 3 * SIDE * SIDE


def read_images(torch, folder: pathlib.Path | None, files=TRAINING):
    """Images [N, 3, 32, 32] u8 and labels [N] i64."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        count = 50_000 if files == TRAINING else 10_000  # as many as CIFAR-10 has
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
        # Stored with channels last, so that a gathered batch needs no reordering.
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


class Captured(Tuned):
    """Tuned, as one CUDA graph: the host queues a step in one call."""

    WARMUP_STEPS = 3

    def __init__(self, torch, model, images, labels, place, mode):
        super().__init__(torch, model, images, labels, place, mode)
        self.index = torch.zeros(place.batch, dtype=torch.long, device=place.device)
        self.graph, self.seen = None, 0

    def step(self, index):
        if len(index) < len(self.index):  # the last batch of an epoch
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
