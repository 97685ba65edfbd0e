"""What a source gives of one episode, and the window that a sample shows of it.

A source is a module of `data.sources` with

    Config                         which episodes; a dataclass with `root`
    scan(config)                   usable episodes in a fixed order, and those set aside
    read_episode(episode, config)  its `Content`; cheap, pictures and texts are read when asked for
    NORMALIZATION, VLM_FRAME, UPSTREAM_DRAW, and `Window` where it is not that of `transforms`

and its episodes have key, task, id, num_frames, num_instructions, and `files`, those whose content
identifies them.

Letters: T frames, S state width, A action width, L text length, D text width, F target frames,
K actions of a window.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from motus_jax.data import transforms
from motus_jax.data.schema import BadEpisode

# Rising indices of frames -> their pictures one after the other, uint8 [h, w, 3], RGB.
Camera = Callable[[Sequence[int]], Iterator[np.ndarray]]
THREE = ("head", "left_wrist", "right_wrist")


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """An episode of T frames.

    Attributes:
      key: of the episode.
      state: float32 [T, S], or None.
      actions: float32 [T, A], or [T-1, A] between the frames.
      fps: frames per second.
      instructions: any of them describes the episode, unless `instruction_at` says when which holds.
      text: (instruction, frame) -> embedding [L, D] of the instruction, in the stored precision; some
        data has one for every frame. None if there are no embeddings.
      cameras: one 'composed', or the names of THREE.
      instruction_at: int32 [T], or None.
    """

    key: str
    num_frames: int
    state: np.ndarray | None
    actions: np.ndarray
    fps: float
    instructions: list[str]
    text: Callable[[int, int], np.ndarray] | None
    cameras: dict[str, Camera]
    instruction_at: np.ndarray | None = None

    @property
    def texts(self) -> list[np.ndarray] | None:
        """Embeddings of all instructions, at the first frame of each."""
        if self.text is None:
            return None
        at = self.instruction_at
        numbers = range(len(self.instructions))
        return [self.text(i, 0 if at is None else int(np.argmax(at == i))) for i in numbers]


def frames(content: Content, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Pictures uint8 [h, w, 3] of rising `indices`, three cameras put together by `transforms.three_views`.

    One of them is in memory at a time.

    Raises:
      BadEpisode: one cannot be read or is of another size than the first, or the cameras are others.
    """
    cameras = content.cameras
    if set(cameras) != {"composed"} and set(cameras) != set(THREE):
        raise BadEpisode(
            content.key,
            f"cameras {', '.join(cameras)} cannot be put together; name one composed camera, or "
            f"three in the order {', '.join(THREE)}",
        )
    if "composed" in cameras:
        found = cameras["composed"](indices)
    else:
        views = [cameras[name](indices) for name in THREE]
        found = (transforms.three_views(*x) for x in zip(*views, strict=True))
    shape = None
    for index, picture in zip(indices, found, strict=True):
        shape = shape or picture.shape
        if picture.shape != shape:
            raise BadEpisode(
                content.key,
                f"its pictures are of different sizes: frame {indices[0]} {shape}, frame {index} "
                f"{picture.shape}",
            )
        yield picture


def pictures(content: Content, indices: Sequence[int]) -> np.ndarray:
    """`frames` uint8 [n, h, w, 3] of indices in any order, repeats allowed."""
    return gather(functools.partial(frames, content), indices)


def gather(camera: Camera, indices: Sequence[int]) -> np.ndarray:
    """Its pictures uint8 [n, h, w, 3] of indices in any order, repeats allowed."""
    wanted = sorted(set(indices))
    found = dict(zip(wanted, camera(wanted), strict=True))
    return np.stack([found[i] for i in indices])


def cut(
    content: Content, condition: int, instruction: int, window: transforms.Window
) -> dict[str, np.ndarray | str | None]:
    """A raw sample but for its pictures.

    Args:
      condition: index of the condition frame, in [0, window.conditions(T)).
      instruction: number of the instruction.

    Returns:
      indices int [1+F] of the frames, state float32 [S] or None, actions float32 [K, A],
      action_valid bool [K], text [L, D] or None, instruction str.

    Raises:
      BadEpisode: the text cannot be read, or the files changed since the scan.
    """
    frames, actions, valid = window.indices(condition, content.num_frames)
    if content.instruction_at is not None:
        instruction = int(content.instruction_at[frames[0]])
    elif instruction >= len(content.instructions):
        raise BadEpisode(content.key, "its instructions changed since the scan; restart")
    return {
        "indices": frames,
        "state": None if content.state is None else content.state[frames[0]],
        "actions": content.actions[actions],
        "action_valid": valid,
        "text": None if content.text is None else content.text(instruction, int(frames[0])),
        "instruction": content.instructions[instruction],
    }


def read_window(
    source: ModuleType, episode: Any, condition: int, instruction: int, *, window, config
) -> dict[str, np.ndarray | str | None]:
    """`cut`, and frames uint8 [1+F, h, w, 3] at their own size."""
    content = source.read_episode(episode, config)
    raw = cut(content, condition, instruction, window)
    return {**raw, "frames": pictures(content, raw["indices"].tolist())}
