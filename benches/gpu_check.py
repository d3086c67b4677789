"""Reads what runs leave, for gpu_check.sh.

    gpu_check.py losses RUN RUN --rtol 1e-3     whether all step losses agree; says how far apart they are
    gpu_check.py pid events.jsonl RANK          the process of a rank
    gpu_check.py kernels FILE.csv               of ncu's kernels, those of one step, by time
"""

import argparse
import collections
import csv
import json
import pathlib
import sys


def records(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def step_losses(run: pathlib.Path) -> dict[int, float]:
    steps = (line for line in records(run / "metrics.jsonl") if line["kind"] == "step")
    return {line["step"]: line["loss"] for line in steps}


def compare(a: pathlib.Path, b: pathlib.Path, rtol: float) -> bool:
    one, other = step_losses(a), step_losses(b)
    if not one or one.keys() != other.keys():
        print(f"{len(one)} steps against {len(other)}")
        return False
    apart = max(abs(other[step] - loss) / abs(loss) for step, loss in one.items())
    print(f"{len(one)} steps, at most {apart:.1e} apart")
    return apart <= rtol


def print_kernels(path: pathlib.Path) -> None:
    """A step is what lies between two calls of the optimizer."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("==")]
    kernels = [(row["Kernel Name"], float(row["Metric Value"].replace(",", ""))) for row in csv.DictReader(lines)]
    ends = [index for index, (name, _) in enumerate(kernels) if "FusedAdam" in name]
    step = kernels[ends[-2] + 1 : ends[-1] + 1]
    times: dict[str, list[float]] = collections.defaultdict(list)
    for name, ns in step:
        times[name].append(ns / 1000)
    print(f"{len(step)} kernels a step, {sum(ns for _, ns in step) / 1000:.0f} us of kernels one by one")
    for name, us in sorted(times.items(), key=lambda item: -sum(item[1])):
        print(f"{sum(us):9.1f} us {len(us):4d} x  {name[:180]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    losses = commands.add_parser("losses")
    losses.add_argument("runs", type=pathlib.Path, nargs=2)
    losses.add_argument("--rtol", type=float, default=1e-3)
    pid = commands.add_parser("pid")
    pid.add_argument("events", type=pathlib.Path)
    pid.add_argument("rank", type=int)
    kernels = commands.add_parser("kernels")
    kernels.add_argument("file", type=pathlib.Path)
    args = parser.parse_args()
    if args.command == "kernels":
        return print_kernels(args.file)
    if args.command == "losses":
        sys.exit(0 if compare(*args.runs, args.rtol) else 1)
    started = (line for line in records(args.events) if line["event"] == "spawned")
    print([line["pid"] for line in started if line["rank"] == args.rank][-1])


if __name__ == "__main__":
    main()
