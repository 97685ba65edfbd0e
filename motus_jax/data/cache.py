"""Feature caches on disk: what a frozen encoder makes of a window or a text, computed once.

    <folder>/cache.json            what filled it: encoder, preprocessing, shape, datasets
    <folder>/<hash>.array_record   entries of at most SHARD_BYTES, then one record with their keys

An entry is found by the hash of (encoder, preprocessing, what it was made from). The last contains the
names, sizes and the first and last bytes of the episode's files, not their place: a dataset may be
moved. So an entry of another encoder, other settings or other data cannot be found by mistake, and
`cache.json` serves to say what differs.

Why ArrayRecord: one `pread` with a check sum reads an entry at random, as fast as a bare file (0.05
ms for the 138 KB of a 9x384x320 clip, from the page cache) and in few files; files for each episode
would be a million for large data. A shard gets its name when it is complete, so an interrupted
write leaves nothing half. The keys take 32 bytes of memory for an entry in each process.

A window that could not be read when the cache was filled is stored as such, with the reason:
training sets it aside as it would have done itself.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from motus_jax.data import records
from motus_jax.data.schema import BadEpisode

FORMAT = "motus_jax feature cache 1"
COMMANDS = {"latents": "vae", "vlm_features": "vlm", "text": "t5"}
EDGE = 1 << 16  # bytes at both ends of a file that identify it
SUFFIX = ".array_record"


class CacheError(ValueError):
    """A cache that is missing, stale, incomplete or damaged; says what differs and what to run."""


def key(*facts) -> bytes:
    """16 bytes that stand for JSON values."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def episode_facts(kind: str, episode) -> list:
    """What identifies an episode wherever its files are: key, length, and its files' content."""
    files = [_file_facts(path) for path in episode.files]
    return [kind, episode.key, episode.num_frames, getattr(episode, "first", 0), *files]


@functools.cache
def _file_facts(path: str) -> list:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(file.read(EDGE), digest_size=8)
            file.seek(max(size - EDGE, 0))
            digest.update(file.read(EDGE))
    except OSError as error:
        raise BadEpisode(path, f"the file cannot be opened ({error.strerror})") from None
    return [pathlib.PurePath(path).name, size, digest.hexdigest()]


def differences(stored: Mapping, wanted: Mapping, prefix: str = "") -> list[str]:
    """'name: a, but this run has b' for every leaf in which two nested mappings differ."""
    out = []
    for name in sorted({*stored, *wanted}):
        a, b = stored.get(name), wanted.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            out.append(f"{prefix}{name} is {a!r} in the cache, but {b!r} in this run")
    return out


def describe(folder, name: str) -> dict[str, Any]:
    """Content of `cache.json`: `kind`, `encoder`, `preprocessing`, `shape`, `dtype`, `datasets`.

    Raises:
      CacheError: there is none, or it is of another kind.
    """
    path = pathlib.Path(folder, "cache.json")
    run = f"python -m motus_jax.precompute {COMMANDS[name]} --config=..."
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CacheError(
            f"config.data.cache.{name}={str(folder)!r} is no filled cache ({error.strerror}); fill it: {run}"
        ) from None
    except ValueError as error:
        raise CacheError(f"{path} is damaged ({error}); remove {folder} and run: {run}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("kind") != name:
        kind = found.get("kind") if isinstance(found, dict) else None
        raise CacheError(
            f"config.data.cache.{name}={str(folder)!r} is a cache of {kind!r} in format "
            f"{found.get('format') if kind else None!r}; give another folder and run: {run}"
        )
    return found


class Reader:
    """The entries of a cache by key; shared by threads, opened anew by each process.

    Args:
      folder: of the cache.
      name: what it holds, a key of COMMANDS.
      preprocessing: that of this run; None is not compared.

    Raises:
      CacheError: it is missing, damaged, or was filled with another preprocessing.
    """

    def __init__(self, folder, name: str, preprocessing: Mapping | None = None):
        self.folder, self.name, self.preprocessing = pathlib.Path(folder), name, preprocessing
        self.facts = describe(folder, name)
        if preprocessing is not None:
            self.check("preprocessing", preprocessing)
        self.identity = identity(self.facts)
        self.shape, self.dtype = tuple(self.facts["shape"]), dtype_of(self.facts["dtype"])
        self.paths, self._bad = sorted(self.folder.glob(f"*{SUFFIX}")), {}
        keys, places = [np.zeros(0, "S16")], [np.zeros((0, 2), np.int64)]
        for i, path in enumerate(self.paths):
            own, bad = self._load(path)
            keys.append(own)
            places.append(np.stack([np.full(len(own), i), np.arange(len(own))], axis=1))
            self._bad |= bad
        keys, places = np.concatenate(keys), np.concatenate(places)
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], places[order]

    def __reduce__(self):
        return Reader, (self.folder, self.name, self.preprocessing)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, wanted: bytes) -> bool:
        return wanted in self._bad or self._find(wanted) is not None

    def bad(self, wanted: bytes) -> BadEpisode | None:
        """Why a window could not be read when the cache was filled."""
        return BadEpisode(*self._bad[wanted]) if wanted in self._bad else None

    def check(self, section: str, wanted: Mapping) -> None:
        """Raises CacheError unless `section` of the cache is `wanted`; names what differs."""
        found = differences(self.facts[section], wanted, f"{section}.")
        if found:
            listed = "\n".join(f"  {line}" for line in found)
            raise CacheError(
                f"the cache {self.folder} of {self.name} is stale: it was filled with another "
                f"{section}; {self.refill()}, or restore the setting\n{listed}"
            )

    def refill(self) -> str:
        return (
            f"set config.data.cache.{self.name} to a new folder and run: "
            f"python -m motus_jax.precompute {COMMANDS[self.name]} --config=..."
        )

    def read(self, wanted: bytes, what: str, dataset: str, facts: Mapping) -> np.ndarray:
        """The entry of a key, in the dtype of the cache; a view of its bytes.

        Args:
          what: the window or text, for messages.
          dataset, facts: its dataset and what decides its keys, for messages.

        Raises:
          BadEpisode: it could not be read when the cache was filled.
          CacheError: there is no such entry, or it is damaged.
        """
        if wanted in self._bad:
            raise BadEpisode(*self._bad[wanted])
        place = self._find(wanted)
        if place is None:
            raise CacheError(self._missing(what, dataset, facts))
        shard, record = place
        try:
            (raw,) = records.read(self.paths[shard], [record])
            return np.frombuffer(raw, self.dtype).reshape(self.shape)
        except (BadEpisode, ValueError) as error:
            raise CacheError(
                f"{self.paths[shard]} is damaged ({error}); remove it and run again: "
                f"python -m motus_jax.precompute {COMMANDS[self.name]} --config=..."
            ) from None

    def _find(self, wanted: bytes) -> tuple[int, int] | None:
        wanted = wanted.rstrip(b"\0")  # numpy's strings end before zeros
        i = int(np.searchsorted(self._keys, np.bytes_(wanted)))
        if i == len(self._keys) or self._keys[i] != wanted:
            return None
        return int(self._places[i, 0]), int(self._places[i, 1])

    def _missing(self, what: str, dataset: str, facts: Mapping) -> str:
        filled = self.facts["datasets"].get(dataset)
        if filled is None:
            known = ", ".join(self.facts["datasets"]) or "nothing"
            reason = f"it was filled for {known}, not for {dataset}"
        else:
            reason = "; ".join(differences(filled, facts)) or (
                "it is not completely filled, or the files of the episode have changed since"
            )
        return (
            f"the cache {self.folder} has no {self.name} of {what}: {reason}; complete it: "
            f"python -m motus_jax.precompute {COMMANDS[self.name]} --config=..."
        )

    def _load(self, path: pathlib.Path) -> tuple[np.ndarray, dict[bytes, tuple[str, str]]]:
        """Keys of a shard's entries, and the windows it says are bad."""
        try:
            index = json.loads(records.read(path, [records.count(path) - 1])[0])
            text = bytes.fromhex(index["keys"])
            keys = np.frombuffer(text, "S16") if text else np.zeros(0, "S16")
            bad = {bytes.fromhex(k): (where, reason) for k, where, reason in index["bad"]}
        except (BadEpisode, ValueError, KeyError, TypeError) as error:
            raise CacheError(
                f"{path} is damaged ({error}); remove it and run again: "
                f"python -m motus_jax.precompute {COMMANDS[self.name]} --config=..."
            ) from None
        return keys, bad


def identity(facts: Mapping) -> str:
    """Hash of the encoder and the preprocessing, a part of every key."""
    return key(facts["kind"], facts["encoder"], facts["preprocessing"]).hex()


def dtype_of(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
