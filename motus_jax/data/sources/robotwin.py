"""RoboTwin 2.0 episodes in the folder layout of the original.

    <root>/{clean,randomized}/<task>/videos/<episode>.mp4    three cameras in one picture
                                     qpos/<episode>.pt       float [T or more, 14], joint positions
                                     umt5_wan/<episode>.pt   list of [L, 4096], one per instruction
                                     metas/<episode>.txt     one instruction per line

`scan` opens every file once (no frame is decoded) and sets aside what cannot be used, with a
reason; `read_window` cuts one sample. States and actions stay raw: the released weights
expect radians.

Differs from the original: episodes come in a fixed natural order, a bad one is reported instead of
being retried away, and `max_episodes` counts in every mode.
"""

import concurrent.futures
import dataclasses
import difflib
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from motus_jax import torch_file
from motus_jax.data import video
from motus_jax.data.schema import BadEpisode
from motus_jax.data.transforms import Window

SPLITS = {"clean": ("clean",), "randomized": ("randomized",), "both": ("clean", "randomized")}
FOLDERS = {"videos": ".mp4", "qpos": ".pt", "umt5_wan": ".pt", "metas": ".txt"}
_ADVICE = "the layout is <root>/{clean,randomized}/<task>/{videos,qpos,umt5_wan,metas}"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which episodes. `tasks` () means all tasks, one name the original's single-task mode."""

    root: str
    data_mode: str = "both"  # clean, randomized or both
    tasks: tuple[str, ...] = ()
    max_episodes: int | None = None  # the first ones of the scan order
    randomized_limit_per_task: int | None = None
    qpos_dim: int = 14
    text_dim: int = 4096


@dataclasses.dataclass(frozen=True, order=True)
class Episode:
    """One usable episode: where it is and how much it holds."""

    split: str
    task: str
    id: str
    folder: str  # of the task
    num_frames: int
    num_instructions: int

    @property
    def key(self) -> str:
        return f"{self.split}/{self.task}/{self.id}"

    def path(self, kind: str) -> pathlib.Path:
        """Path of its file in `videos`, `qpos`, `umt5_wan` or `metas`."""
        return pathlib.Path(self.folder, kind, self.id + FOLDERS[kind])


def scan(config: Config, threads: int = 16) -> tuple[list[Episode], list[BadEpisode]]:
    """Usable episodes in a fixed order (split, task, episode, each natural) and those set aside.

    Raises:
      ValueError: the config is wrong.
      FileNotFoundError: the root does not have the layout, or holds no episode.
    """
    candidates = [
        (split, task, name)
        for split in _splits(config)
        for task in _tasks(config, split)
        for name in _episodes(config, split, task)
    ][: config.max_episodes]
    if not candidates:
        raise FileNotFoundError(f"{config.root} holds no videos/*.mp4 for {config}; {_ADVICE}")

    def open_one(candidate):
        try:
            return _open(config, *candidate)
        except BadEpisode as bad:
            return bad

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(open_one, candidates))
    return (
        [result for result in results if isinstance(result, Episode)],
        [result for result in results if isinstance(result, BadEpisode)],
    )


def natural(name: str) -> list:
    """Sort key under which '2' comes before '10'; the name itself decides between '1' and '01'."""
    parts = re.split(r"(\d+)", name)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
    return [*key, (1, 0, name)]


def _splits(config: Config) -> Sequence[str]:
    if config.data_mode not in SPLITS:
        raise ValueError(
            f"data_mode={config.data_mode!r} is unknown; use one of {', '.join(SPLITS)}"
        )
    if isinstance(config.tasks, str):
        raise ValueError(f"tasks={config.tasks!r} must be a list; write tasks=({config.tasks!r},)")
    for name in ("max_episodes", "randomized_limit_per_task"):
        if (limit := getattr(config, name)) is not None and limit < 1:
            raise ValueError(f"{name}={limit} leaves no episodes; use a positive number or None")
    root, splits = pathlib.Path(config.root), SPLITS[config.data_mode]
    if not root.is_dir():
        raise FileNotFoundError(f"root={config.root!r} is not a folder; give the dataset's folder")
    found = [split for split in splits if (root / split).is_dir()]
    if len(found) == len(splits):
        return found
    if found:
        missing = ", ".join(split for split in splits if split not in found)
        raise FileNotFoundError(
            f"root={config.root!r} has no folder {missing!r}; set data_mode={found[0]!r} or add it"
        )
    inner = _folders(root)
    if root.name in SPLITS["both"] or inner.keys() & FOLDERS.keys():
        up = root.parent if root.name in SPLITS["both"] else root.parent.parent
        raise FileNotFoundError(
            f"root={config.root!r} is too deep; use root={str(up)!r}; {_ADVICE}"
        )
    for folder in inner.values():
        if any((folder / split).is_dir() for split in splits):
            raise FileNotFoundError(
                f"root={config.root!r} is one level too high; use root={str(folder)!r}; {_ADVICE}"
            )
    raise FileNotFoundError(f"root={config.root!r} has no folder {' or '.join(splits)}; {_ADVICE}")


def _folders(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Name -> path of the folders inside, naturally sorted, hidden ones left out."""
    inner = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return {p.name: p for p in sorted(inner, key=lambda p: natural(p.name))}


def _tasks(config: Config, split: str) -> list[str]:
    folders = _folders(pathlib.Path(config.root, split))
    if config.tasks:
        known = sorted(
            {n for s in SPLITS[config.data_mode] for n in _folders(pathlib.Path(config.root, s))}
        )
        for task in config.tasks:
            if task not in known:
                near = difflib.get_close_matches(task, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {known}"
                raise ValueError(f"tasks: no task {task!r} under {config.root}; {hint}")
        folders = {name: path for name, path in folders.items() if name in config.tasks}
    for path in folders.values():
        missing = [kind for kind in FOLDERS if not (path / kind).is_dir()]
        if missing:
            fix = "put one instruction per line into metas/<episode>.txt; " * ("metas" in missing)
            raise FileNotFoundError(f"{path} has no folder {missing[0]!r}; {fix}{_ADVICE}")
    return list(folders)


def _episodes(config: Config, split: str, task: str) -> list[str]:
    folder = pathlib.Path(config.root, split, task)
    stems = {
        path.stem for kind in ("videos", "qpos") for path in folder.glob(f"{kind}/*{FOLDERS[kind]}")
    }
    names = sorted(stems, key=natural)
    return names[: config.randomized_limit_per_task] if split == "randomized" else names


def _open(config: Config, split: str, task: str, name: str) -> Episode:
    folder = str(pathlib.Path(config.root, split, task))
    episode = Episode(split, task, name, folder, 0, 0)
    frames = video.count_frames(episode.path("videos"))
    _qpos(episode, config.qpos_dim, frames)
    instructions = _instructions(episode)
    embeddings = _embeddings(episode, config.text_dim)
    if len(embeddings) != len(instructions):
        raise BadEpisode(
            episode.path("umt5_wan"),
            f"{len(embeddings)} embeddings for the {len(instructions)} instructions in metas; "
            "encode them again",
        )
    return dataclasses.replace(episode, num_frames=frames, num_instructions=len(instructions))


def _qpos(episode: Episode, dim: int, num_frames: int) -> np.ndarray:
    """Joint positions float32 [T or more, dim]."""
    path = episode.path("qpos")
    qpos = _load(path)
    if not isinstance(qpos, np.ndarray) or qpos.dtype.kind not in "fiuV":
        raise BadEpisode(path, f"qpos is not a tensor of numbers but a {type(qpos).__name__}")
    if qpos.ndim != 2 or qpos.shape[1] != dim:
        raise BadEpisode(path, f"qpos has shape {list(qpos.shape)}, expected [T, qpos_dim={dim}]")
    if len(qpos) < num_frames:
        raise BadEpisode(path, f"qpos has {len(qpos)} rows but the video {num_frames} frames")
    with np.errstate(over="ignore"):
        qpos = qpos.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(qpos).all(axis=1))
    if bad.size:
        raise BadEpisode(
            path, f"qpos has NaN or infinity in {bad.size} rows, first in row {bad[0]}"
        )
    return qpos


def _instructions(episode: Episode) -> list[str]:
    path = episode.path("metas")
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except OSError as error:
        raise BadEpisode(path, f"instructions cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise BadEpisode(path, "instructions are not UTF-8 text") from None
    lines = [line for line in lines if line]
    if not lines:
        raise BadEpisode(path, "there is no instruction; write one per line")
    return lines


def _embeddings(episode: Episode, dim: int) -> list[np.ndarray]:
    """Text embeddings [L, dim], one per instruction, in the precision of the file."""
    path = episode.path("umt5_wan")
    stored = _load(path)
    stored = [stored] if isinstance(stored, np.ndarray) else stored
    if not isinstance(stored, list | tuple) or not all(isinstance(x, np.ndarray) for x in stored):
        raise BadEpisode(path, "umt5_wan is not a list of tensors; encode the instructions again")
    result = []
    for i, x in enumerate(stored):
        squeezed = x.reshape(x.shape[-2:]) if x.ndim > 2 and set(x.shape[:-2]) == {1} else x
        if squeezed.ndim != 2 or squeezed.shape[1] != dim or not len(squeezed):
            raise BadEpisode(
                path, f"embedding {i} has shape {list(x.shape)}, expected [L, text_dim={dim}]"
            )
        result.append(squeezed)
    return result


def _load(path: pathlib.Path):
    try:
        return torch_file.load(path)
    except torch_file.TorchFileError as error:
        raise BadEpisode(path, str(error).removeprefix(f"{path}: ")) from None


def read_window(
    episode: Episode,
    condition: int,
    instruction: int,
    *,
    window: Window,
    config: Config,
    read_frames: Callable[..., np.ndarray] | None = None,
) -> dict[str, np.ndarray | str]:
    """One raw sample.

    Args:
      condition: index of the condition frame, in [0, window.conditions(episode.num_frames)).
      instruction: index of the instruction, in [0, episode.num_instructions).
      read_frames: (path, indices, num_frames) -> frames; default: decoded, at their own size.

    Returns:
      frames uint8 [1+F, h, w, 3], state float32 [S], actions float32 [K, A], action_valid bool [K],
      text [L, D] in the file's precision, instruction str.

    Raises:
      BadEpisode: a file is missing or damaged, or changed since the scan.
    """
    frames, actions, valid = window.indices(condition, episode.num_frames)
    qpos = _qpos(episode, config.qpos_dim, episode.num_frames)
    instructions, embeddings = _instructions(episode), _embeddings(episode, config.text_dim)
    if not instruction < len(instructions) == len(embeddings):
        raise BadEpisode(episode.path("metas"), "the instructions changed since the scan; restart")
    text = np.asarray(embeddings[instruction])
    if not np.isfinite(text.astype(np.float32)).all():
        raise BadEpisode(episode.path("umt5_wan"), f"embedding {instruction} has NaN or infinity")
    path = episode.path("videos")
    if read_frames is None:
        pictures = video.read_frames(path, frames)
    else:
        pictures = read_frames(path, frames, episode.num_frames)
    return {
        "frames": pictures,
        "state": qpos[frames[0]],
        "actions": qpos[actions],
        "action_valid": valid,
        "text": text,
        "instruction": instructions[instruction],
    }
