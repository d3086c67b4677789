"""Which cores a rank computes on."""

import itertools
import os
import pathlib


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
