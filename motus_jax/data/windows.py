"""From a number to a sample: which window n stands for, and its arrays.

Everything random about n (the instruction; the replacement of a window that cannot be read; with
`sampling='upstream'` the window itself) is a hash of (seed, n, attempt), independent of the numpy
version, of the process and of what was read before.

Differs from the original: it draws with Python's unseeded generator and, on an error, either
retries eight times or shrinks the batch. `sampling='upstream'` keeps its distribution (a task, then
an episode, then a frame, all uniform); the default takes every window once per epoch.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
from typing import Any

import numpy as np

from motus_jax.data import schema, tokenizer, transforms, video
from motus_jax.data.schema import BadEpisode

MAX_ATTEMPTS = 100  # windows tried for one slot
FULL_TEXT = 512  # tokens of umT5 in the original, which cuts longer texts there


class TooManyBadEpisodes(RuntimeError):
    """More episodes than allowed cannot be used; lists them."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What the batches hold and how they are made."""

    source: Any  # Config of a module in `data.sources`
    tokenizer: str = "bytes"  # folder with tokenizer.json, or 'bytes'
    frames: int = 8  # F, target frames
    height: int = 384
    width: int = 320
    rate: int = 3  # frames between actions (global_downsample_rate)
    ratio: int = 2  # actions between target frames (video_action_freq_ratio)
    text_length: int = FULL_TEXT
    vlm_length: int = 256
    prompt_order: str = "image_first"  # or text_first, see `tokenizer`
    vlm_resize_twice: bool = True  # see `transforms.vlm_image`
    dataset_id: int = 0
    sampling: str = "shuffle"  # every window once per epoch, or upstream
    val_episodes: int = 0
    val_fraction: float = 0.0
    max_bad_fraction: float = 0.05
    seed: int = 0
    workers: int = 0  # processes; 0 reads in threads of this one
    threads: int = 8  # per process
    frame_cache_mb: int = 0  # per process, decoded episodes

    def __post_init__(self):
        low = dict(frames=1, height=1, width=1, rate=1, ratio=1, text_length=1, vlm_length=1)
        low |= dict(val_episodes=0, seed=0, workers=0, threads=1, frame_cache_mb=0, dataset_id=0)
        for name, least in low.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
        for name in ("val_fraction", "max_bad_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be in [0, 1)")
        if self.val_episodes and self.val_fraction:
            raise ValueError("val_episodes and val_fraction are both set; set one of them to 0")
        choices = dict(sampling=("shuffle", "upstream"), prompt_order=tokenizer.ORDERS)
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {known}")

    @property
    def window(self) -> transforms.Window:
        return transforms.Window(self.frames, self.ratio, self.rate)

    @property
    def sizes(self) -> schema.Sizes:
        """Shapes of the arrays of a sample."""
        vlm_size = transforms.vlm_size(self.height, self.width, self.vlm_resize_twice)
        return schema.Sizes(
            frames=self.frames,
            height=self.height,
            width=self.width,
            actions=self.window.actions,
            action_dim=self.source.qpos_dim,
            state_dim=self.source.qpos_dim,
            text_length=self.text_length,
            text_dim=self.source.text_dim,
            vlm_length=self.vlm_length,
            vlm_height=vlm_size[0],
            vlm_width=vlm_size[1],
        )


class Windows:
    """All (episode, condition frame) pairs of a split; reads the one that belongs to n."""

    def __init__(self, config: Config, episodes: tuple, split: str):
        self.config, self.episodes, self.split = config, episodes, split
        self.source = type(config.source).__module__
        counts = [config.window.conditions(e.num_frames) for e in episodes]
        self.ends = np.cumsum(counts)
        self.upstream = config.sampling == "upstream" and split == "train"
        self.tasks: dict[str, list[int]] = {}
        for i, episode in enumerate(episodes):
            self.tasks.setdefault(episode.task, []).append(i)
        resize = functools.partial(
            transforms.resize_with_padding, height=config.height, width=config.width
        )
        self.frames = video.FrameReader(resize, config.frame_cache_mb << 20)
        # Fail now, not in a worker, if no prompt fits: an image and an empty instruction.
        tokenizer.padded(self.prompt(""), config.vlm_length)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def fingerprint(self) -> str:
        """Identity of the sequence of windows, for a given seed and batch size."""
        config = self.config
        facts = [[e.key, e.num_frames, e.num_instructions] for e in self.episodes]
        settings = [self.split, self.upstream, config.frames, config.rate, config.ratio]
        digest = hashlib.sha256(json.dumps([settings, facts]).encode()).hexdigest()[:16]
        return f"{len(facts)} episodes, {len(self)} windows, {digest}"

    def read(self, n: int, window: int) -> tuple[dict[str, np.ndarray], list[tuple]]:
        """The sample of slot n, whose place in the epoch's order is `window`.

        Also returns (episode key, path, reason) of every window that was tried before it in vain.

        Raises:
          TooManyBadEpisodes: MAX_ATTEMPTS windows in a row cannot be read.
        """
        bad = []
        for attempt in range(MAX_ATTEMPTS):
            episode, condition, instruction = self.draw(n, window, attempt)
            try:
                return self.sample(episode, condition, instruction), bad
            except BadEpisode as error:
                bad.append((episode.key, error.path, error.reason))
        tried = "\n".join(f"  {path}: {reason}" for _, path, reason in bad)
        raise TooManyBadEpisodes(f"{MAX_ATTEMPTS} windows in a row cannot be read:\n{tried}")

    def draw(self, n: int, window: int, attempt: int) -> tuple[Any, int, int]:
        """Episode, condition frame, instruction. Uniform, except `window` at the first attempt."""

        def uniform(what: str, size: int) -> int:
            text = f"{self.config.seed} {n} {attempt} {what}"
            return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % size

        if self.upstream:
            names = list(self.tasks)
            pool = self.tasks[names[uniform("task", len(names))]]
            i = pool[uniform("episode", len(pool))]
            condition = uniform("condition", self.conditions(i))
        else:
            window = uniform("window", len(self)) if attempt else window
            i = int(np.searchsorted(self.ends, window, side="right"))
            condition = window - (int(self.ends[i]) - self.conditions(i))
        episode = self.episodes[i]
        return episode, condition, uniform("instruction", episode.num_instructions)

    def conditions(self, i: int) -> int:
        return int(self.ends[i] - (self.ends[i - 1] if i else 0))

    def sample(self, episode, condition: int, instruction: int) -> dict[str, np.ndarray]:
        config = self.config
        raw = importlib.import_module(self.source).read_window(
            episode,
            condition,
            instruction,
            window=config.window,
            config=config.source,
            read_frames=self.frames,
        )
        try:
            tokens, valid = tokenizer.padded(self.prompt(raw["instruction"]), config.vlm_length)
            text, text_len = pad_text(raw["text"], config.text_length)
        except ValueError as error:
            raise BadEpisode(episode.key, str(error)) from None
        return {
            "frames": raw["frames"],
            "state": raw["state"],
            "actions": raw["actions"],
            "action_valid": raw["action_valid"],
            "text": text,
            "text_len": text_len,
            "vlm_tokens": tokens,
            "vlm_valid": valid,
            "vlm_image": transforms.vlm_image(raw["frames"][0], config.vlm_resize_twice),
            "dataset_id": np.int32(config.dataset_id),
        }

    def prompt(self, instruction: str) -> list[int]:
        sizes = self.config.sizes
        image_tokens = sizes.vlm_height * sizes.vlm_width // 32**2
        loaded = tokenizer.load(self.config.tokenizer)
        return loaded.prompt(instruction, image_tokens, self.config.prompt_order)


def pad_text(text: np.ndarray, length: int) -> tuple[np.ndarray, np.int32]:
    """[L, D] -> float32 [length, D] zero-padded, and L. At FULL_TEXT longer texts are cut.

    Raises:
      ValueError: L is greater than `length`.
    """
    if len(text) > length != FULL_TEXT:
        raise ValueError(
            f"the text embedding has {len(text)} tokens but text_length={length}; raise text_length"
        )
    text = text[:length].astype(np.float32)
    padded = np.zeros((length, text.shape[1]), np.float32)
    padded[: len(text)] = text
    return padded, np.int32(len(text))
