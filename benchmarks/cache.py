"""The image cache: building it from a parquet file, and how often four processes that open it hold it in memory.

Memory of the building process is counted above what it was before. Rss counts the pages of the file that a process has
in memory, and Pss divides each by the number of processes that share it: four times a quarter is one copy.
"""

import argparse
import multiprocessing
import multiprocessing.synchronize
import os
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.record import Record, table
from ddpm_hf.config import DataConfig
from ddpm_hf.data import load_cached_images

PROCESSES = 4
MIB = 2**20


def build(config: DataConfig) -> dict[str, Any]:
    """Build the cache in this process: time, and memory at its highest above what it was before."""
    load_cached_images(DataConfig(cache_dir=config.cache_dir))  # loads all code
    before = status("VmRSS")
    start = time.perf_counter()
    data = load_cached_images(config)
    seconds = time.perf_counter() - start
    return {
        "images": len(data),
        "shape": list(data.shape),
        "mib": data.images.nbytes / MIB,
        "seconds": seconds,
        "images_per_second": len(data) / seconds,
        "peak_mib_above_before": (status("VmHWM") - before) / MIB,
    }


def read(config: DataConfig, barrier: multiprocessing.synchronize.Barrier) -> dict[str, float]:
    """Open the cache, read all of it, and say what the mapping takes while the other processes hold it too."""
    start = time.perf_counter()
    data = load_cached_images(config)
    seconds = time.perf_counter() - start
    data.images.max()
    barrier.wait()
    row = {"open_seconds": seconds, **mapping("images.bin", data.images.nbytes)}
    barrier.wait()
    return row


def mapping(file_name: str, size: int) -> dict[str, float]:
    """MiB of the mapping of a file of this name and size in this process's memory, from /proc/self/smaps.

    Rss counts its pages that are in memory; Pss divides each by the number of processes that share it.
    """
    for header, body in re.findall(r"^(\w+-\w+ .*)\n((?:\w+:.*\n)+)", Path("/proc/self/smaps").read_text(), re.M):
        start, stop = (int(end, 16) for end in header.split()[0].split("-"))
        if header.endswith(f"/{file_name}") and 0 <= stop - start - size < os.sysconf("SC_PAGE_SIZE"):
            kib = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", body, re.M))
            return {"rss_mib": int(kib["Rss"]) / 1024, "pss_mib": int(kib["Pss"]) / 1024}
    raise LookupError(f"{file_name} is not mapped")


def status(entry: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    found = re.search(rf"^{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None, entry
    return 1024 * int(found[1])


def in_processes(folder: Path, config: DataConfig) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Build in one new process and read in four, with caches of their own, so that nothing is there beforehand."""
    os.environ |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}  # read by each new process
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        built = pool.submit(build, config).result()
    with context.Manager() as manager, ProcessPoolExecutor(PROCESSES, context) as pool:
        barrier: Any = manager.Barrier(PROCESSES)
        return built, [job.result() for job in [pool.submit(read, config, barrier) for _ in range(PROCESSES)]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to build from."""
    parser.add_argument("--data", type=Path, required=True, help="a parquet file of images")


def run(arguments: argparse.Namespace, record: Record) -> None:
    """A row of the building, and one of each process that reads."""
    with tempfile.TemporaryDirectory() as folder:
        config = DataConfig(name=str(arguments.data.resolve()), cache_dir=Path(folder) / "images")
        built, readers = in_processes(Path(folder), config)
    record.add(built)
    for row in readers:
        record.add(row)


def report(rows: list[dict[str, Any]]) -> str:
    """The building in words, the readers in a table."""
    built, *readers = rows
    in_words = (
        f"Built: {built['images']:,} images of {'x'.join(map(str, built['shape']))} ({built['mib']:.1f} MiB) in "
        f"{built['seconds']:.1f} s, {built['images_per_second']:,.0f} images/s, with at most "
        f"{built['peak_mib_above_before']:.0f} MiB of memory."
    )
    return f"{in_words}\n\n{table(['open, s', 'Rss, MiB', 'Pss, MiB'], [list(row.values()) for row in readers])}"
