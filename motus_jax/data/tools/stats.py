"""`stats`: statistics of states and actions, pooled over datasets, with what to look at."""

from collections.abc import Callable, Iterator, Sequence

from motus_jax.data import statistics
from motus_jax.data.schema import BadEpisode
from motus_jax.data.tools.detect import Found

Member = tuple[Found, object]  # a dataset and one of its episodes
Runner = Callable[[list[Member]], tuple[statistics.Statistics, list[BadEpisode]]]


def compute(
    datasets: Sequence[Found], key: str | None, run: Runner
) -> tuple[dict[str, statistics.Statistics], list[BadEpisode]]:
    """Statistics by name, and the episodes that cannot be read and are not in them.

    The name is `key`, else the embodiment that the episode states, else the kind of the dataset:
    datasets of one name are pooled, weighted by their numbers of rows.

    Args:
      run: reads the episodes and pools them, see `local`.

    Raises:
      ValueError, FileNotFoundError: a dataset does not fit its config; nothing can be computed.
    """
    groups: dict[str, list[Member]] = {}
    aside: list[BadEpisode] = []
    for found in datasets:
        episodes, bad = found.source.scan(found.config)
        aside += bad
        for episode in episodes:
            name = key or getattr(episode, "embodiment", None) or found.kind
            groups.setdefault(name, []).append((found, episode))
    if not groups:
        raise ValueError("there is no episode to compute statistics of; run `check` on the dataset")
    entries = {}
    for name, members in groups.items():
        entries[name], bad = run(members)
        aside += bad
    return entries, aside


def local(members: list[Member]) -> tuple[statistics.Statistics, list[BadEpisode]]:
    """In this process, one episode in memory at a time."""
    aside: list[BadEpisode] = []

    def read() -> Iterator[tuple]:
        for found, episode in members:
            try:
                data = found.source.read_episode(episode, found.config)
                yield data.state, data.actions
            except BadEpisode as bad:
                aside.append(bad)

    return statistics.compute(read()), aside


def lines(entries: dict[str, statistics.Statistics]) -> Iterator[str]:
    """Tables for a terminal, then the warnings."""
    for name, entry in entries.items():
        for part in ("state", "actions"):
            summary = getattr(entry, part)
            if summary is None:
                yield f"{name}: no {part}"
                continue
            yield f"{name}, {part}: {summary.count} rows of {summary.dim} numbers"
            yield "  dim " + "".join(f"{column:>10}" for column in statistics.VECTORS)
            for d in range(summary.dim):
                row = (getattr(summary, column)[d] for column in statistics.VECTORS)
                yield f"  {d:>3} " + "".join(f"{x:>10.4f}" for x in row)
        found = statistics.warnings(entry)
        yield from (f"warning: {name}: {line}" for line in found)
        if not found:
            yield f"{name}: nothing unusual (no constant dimension, no outlier, no NaN)"
