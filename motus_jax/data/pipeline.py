"""Samples to batches with Grain: shuffled, sharded by process, resumable at any step.

The window that fills (step, slot) of the global batch is a pure function of the seed and of
n = step * batch_size + slot (see `windows`). Process p of P takes the slots from p * batch_size / P
to (p + 1) * batch_size / P. So the global batch depends neither on the number of processes, workers
or threads nor on where a run was interrupted, and the state of a loader is one number.

A file that turns out bad only when it is read (damaged after the scan, or inside a frame) puts its
episode into quarantine: one log line, an entry in the state and the report, and another window for
this n. Other windows of the episode are used as long as they can be read: what an n yields must not
depend on what was read before.
"""

import concurrent.futures
import dataclasses
import hashlib
import importlib
import logging
import math
import sys
from typing import Any

import grain
import numpy as np
from absl import flags

from motus_jax.data import schema
from motus_jax.data.schema import BadEpisode
from motus_jax.data.windows import Config, TooManyBadEpisodes, Windows

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Index:
    """The episodes of a config: for training, held out, and set aside with a reason."""

    train: tuple
    val: tuple
    aside: tuple[BadEpisode, ...]


def scan(config: Config) -> Index:
    """Opens every file of the source once and splits the usable episodes.

    The split is by a hash of the episode's name: it depends on no seed, and an episode that is
    added later moves few others.

    Raises:
      ValueError, FileNotFoundError: the config does not fit the data.
      TooManyBadEpisodes: more than `max_bad_fraction` are set aside.
    """
    source = importlib.import_module(type(config.source).__module__)
    episodes, aside = source.scan(config.source)
    for bad in aside:
        _LOG.warning("data: set aside %s", bad)
    _check_fraction(config, [str(bad) for bad in aside], len(episodes) + len(aside))
    count = config.val_episodes or math.ceil(config.val_fraction * len(episodes))
    if count >= len(episodes):
        raise ValueError(
            f"val_episodes={count} leaves nothing to train on: there are {len(episodes)} episodes"
        )
    by_hash = sorted(episodes, key=lambda e: hashlib.sha256(e.key.encode()).digest())
    val = {e.key for e in by_hash[:count]}
    return Index(
        train=tuple(e for e in episodes if e.key not in val),
        val=tuple(e for e in episodes if e.key in val),
        aside=tuple(aside),
    )


def build(
    config: Config,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    split: str = "train",
    start_step: int = 0,
    index: Index | None = None,
) -> "Loader":
    """An endless iterator of this process's part of the batches, from `start_step` on.

    Args:
      batch_size: of the global batch; every process gets batch_size / process_count of it.
      split: 'train' or 'val'.
      index: result of `scan`, to share it between the splits; default: scanned now.

    Raises:
      ValueError: the config, the split or the sizes do not fit.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} is not in [0, {process_count})")
    if split not in ("train", "val"):
        raise ValueError(f"split={split!r} is unknown; use 'train' or 'val'")
    index = scan(config) if index is None else index
    if not getattr(index, split):
        raise ValueError("split='val' is empty; set val_episodes or val_fraction")
    return Loader(config, index, batch_size, process_index, process_count, split, start_step)


class Loader:
    """Iterator of batches (dicts of arrays by `schema.FIELDS`, leading axis batch/processes)."""

    def __init__(self, config, index, batch_size, process_index, process_count, split, start_step):
        self.config, self.index, self.batch_size, self.split = config, index, batch_size, split
        self._process = (process_index, process_count)
        self._windows = Windows(config, getattr(index, split), split)
        self._quarantined: dict[str, BadEpisode] = {}
        self._next_step, self._iterator = start_step, None

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold every window of the split once, rounded up."""
        return math.ceil(len(self._windows) / self.batch_size)

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name -> (shape, dtype) of this process's part of a batch."""
        return schema.batch_spec(self.config.sizes, self.batch_size // self._process[1])

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = iter(self._dataset())
        arrays, bad = next(self._iterator)
        for key, path, reason in bad:
            self._quarantine(key, BadEpisode(path, reason))
        self._next_step += 1
        return arrays

    def _dataset(self) -> grain.IterDataset:
        config, (process, count) = self.config, self._process
        local = self.batch_size // count
        batches = _Batches(self._windows, self.batch_size, local, process * local)
        dataset = grain.MapDataset.source(batches)[self._next_step :]
        # One thread prepares the next batch; the threads of `_Batches` read its samples.
        dataset = dataset.to_iter_dataset(grain.ReadOptions(1, 1))
        if config.workers:
            if not flags.FLAGS.is_parsed():  # Grain reads its flags; outside absl.app nobody parsed
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=1)
            dataset = dataset.mp_prefetch(options)
        return dataset

    def _quarantine(self, key: str, bad: BadEpisode) -> None:
        if key in self._quarantined:
            return
        self._quarantined[key] = bad
        total = len(self.index.train) + len(self.index.val) + len(self.index.aside)
        _LOG.warning("data: quarantined %s after %d steps: %s", key, self._next_step, bad)
        _check_fraction(self.config, [*self.index.aside, *self._quarantined.values()], total)

    def get_state(self) -> dict[str, Any]:
        """Where the iterator is, as a small JSON object.

        Only `quarantined` differs between processes; any of their states restores all of them.
        """
        return {
            "next_step": self._next_step,
            "seed": self.config.seed,
            "batch_size": self.batch_size,
            "fingerprint": self._windows.fingerprint,
            "quarantined": [[key, b.path, b.reason] for key, b in self._quarantined.items()],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken, with any number of processes, workers and threads.

        Raises:
          ValueError: it belongs to other data, another seed, batch size or kind of sampling.
        """
        for key, value in self.get_state().items():
            if key in ("seed", "batch_size", "fingerprint") and state[key] != value:
                raise ValueError(
                    f"the saved data position belongs to {key}={state[key]!r} but this run has "
                    f"{value!r}; restore the former data and settings, or start a new run"
                )
        self.close()
        self._next_step = state["next_step"]
        self._quarantined = {
            k: BadEpisode(path, reason) for k, path, reason in state["quarantined"]
        }

    def report(self) -> dict[str, Any]:
        """Episodes found, and those set aside or quarantined with their reasons."""
        return {
            "episodes": {"train": len(self.index.train), "val": len(self.index.val)},
            "windows": len(self._windows),
            "set_aside": [[bad.path, bad.reason] for bad in self.index.aside],
            "quarantined": [[bad.path, bad.reason] for bad in self._quarantined.values()],
        }

    def close(self) -> None:
        """Stops the worker processes and drops what they have buffered."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


class _Batches:
    """Step -> (this process's arrays of the batch, bad episodes met), read by a pool of threads."""

    def __init__(self, windows: Windows, batch_size: int, local: int, first: int):
        self.arguments = (windows, batch_size, local, first)
        config = windows.config
        # n -> window: a new permutation in every epoch.
        self.order = grain.MapDataset.range(len(windows)).shuffle(seed=config.seed).repeat()
        self.pool = concurrent.futures.ThreadPoolExecutor(config.threads)

    def __reduce__(self):
        return _Batches, self.arguments

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> tuple[dict[str, np.ndarray], list[tuple[str, str, str]]]:
        windows, batch_size, local, first = self.arguments
        slots = range(step * batch_size + first, step * batch_size + first + local)
        items = self.pool.map(lambda n: windows.read(n, self.order[n]), slots)
        samples, bad = zip(*items, strict=True)
        arrays = {name: np.stack([sample[name] for sample in samples]) for name in schema.FIELDS}
        return arrays, [entry for entries in bad for entry in entries]


def _check_fraction(config: Config, bad: list, total: int) -> None:
    if len(bad) > config.max_bad_fraction * total:
        listed = "\n".join(f"  {entry}" for entry in bad)
        raise TooManyBadEpisodes(
            f"{len(bad)} of {total} episodes cannot be used, more than "
            f"max_bad_fraction={config.max_bad_fraction}; repair them or raise it:\n{listed}"
        )
