"""Pure functions between files and samples: window indices, images, normalisation, VLM image.

Each reproduces what the original's data was trained with, bit for bit where a golden exists:
OpenCV's bilinear resize for frames, Pillow's bicubic one for the VLM.

Letters: T frames of the episode, F target frames, K = F * ratio actions, H W frame size.
"""

import dataclasses
import math

import cv2
import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Window:
    """Which frames and actions belong to a condition frame.

    `rate` (the original's global_downsample_rate): frames between actions. `ratio` (its
    video_action_freq_ratio): actions between target frames.
    """

    frames: int = 8
    ratio: int = 2
    rate: int = 3

    @property
    def actions(self) -> int:
        return self.frames * self.ratio

    def conditions(self, num_frames: int) -> int:
        """Number of condition frames in T frames; an episode too short for a window has 1."""
        return max(num_frames - self.actions * self.rate, 1)

    def indices(self, condition: int, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frames [1+F] (condition first), actions [K], and whether each action exists [K].

        Indices past the end repeat the last frame, as in the original.
        """
        wanted = condition + np.arange(1, self.actions + 1) * self.rate
        actions = np.minimum(wanted, num_frames - 1)
        first = [min(condition, num_frames - 1)]
        frames = np.concatenate([first, actions[self.ratio - 1 :: self.ratio]])
        return frames, actions, wanted < num_frames


def resize_with_padding(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [..., h, w, 3] -> [..., height, width, 3]: aspect kept, centred on black."""
    *some, h, w, channels = images.shape
    if (h, w) == (height, width):
        return images
    scale = min(height / h, width / w)
    new_h, new_w = int(h * scale), int(w * scale)
    top, left = (height - new_h) // 2, (width - new_w) // 2
    canvas = np.zeros((*some, height, width, channels), images.dtype)
    inner = canvas[..., top : top + new_h, left : left + new_w, :]
    if (new_h, new_w) == (h, w):
        inner[...] = images
    else:
        for i in np.ndindex(*some):
            inner[i] = cv2.resize(images[i], (new_w, new_h))
    return canvas


def three_views(head: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Camera images uint8 [h, w, 3] -> one T-shaped image [h + h//2, w, 3].

    The head camera keeps its size; the wrist cameras share the width below it at half its height.
    """
    h, w = head.shape[:2]
    wrists = [
        cv2.resize(left, (w // 2, h // 2)),
        cv2.resize(right, (w - w // 2, h // 2)),
    ]
    return np.concatenate([head, np.concatenate(wrists, axis=1)], axis=0)


def normalize(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Min-max to [0, 1] without clipping; a dimension of zero range is only shifted."""
    return ((x - low) / _range(low, high)).astype(np.float32)


def denormalize(y: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Inverse of `normalize`."""
    return (y * _range(low, high) + low).astype(np.float32)


def _range(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    span = high - low
    return np.where(span == 0, np.ones_like(span), span)


# Pixel limits of Qwen's two resizers: the VLM's own processor (multiples of 32) and, before it in
# training, the one of its helper library, which still counts in multiples of 28.
_PROCESSOR = dict(factor=32, min_pixels=65536, max_pixels=16777216)
_HELPER = dict(factor=28, min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28)


def smart_size(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The nearest (height, width) in multiples of `factor` within the pixel limits.

    Raises:
      ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"image {height}x{width} is longer than 200 times its width; crop it")
    new_h = max(factor, round(height / factor) * factor)
    new_w = max(factor, round(width / factor) * factor)
    if new_h * new_w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_h = max(factor, math.floor(height / shrink / factor) * factor)
        new_w = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_h * new_w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_h = math.ceil(height * grow / factor) * factor
        new_w = math.ceil(width * grow / factor) * factor
    return new_h, new_w


def vlm_size(height: int, width: int, resize_twice: bool) -> tuple[int, int]:
    """(h, w) of `vlm_image` for an image of this size; it has h/32 * w/32 tokens."""
    if resize_twice:
        height, width = smart_size(height, width, **_HELPER)
    return smart_size(height, width, **_PROCESSOR)


def vlm_image(image: np.ndarray, resize_twice: bool) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [h, w, 3] on the VLM's grid, bicubic.

    `resize_twice` goes through multiples of 28 first, as the original's training did (and its
    released weights expect); its inference scripts resized once.
    """
    picture = Image.fromarray(image)
    sizes = [smart_size(*image.shape[:2], **_HELPER)] if resize_twice else []
    for height, width in [*sizes, vlm_size(*image.shape[:2], resize_twice)]:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def patchify(
    image: np.ndarray, *, patch: int = 16, merge: int = 2, temporal: int = 2
) -> np.ndarray:
    """uint8 [h, w, 3] -> float32 [h/patch * w/patch, 3 * temporal * patch * patch] in [-1, 1].

    Patches in the order (block row, block column, row and column in the merge x merge block), each
    a vector (channel, time, y, x) with the image repeated in time: what the vision tower consumes.
    """
    h, w = image.shape[:2]
    x = ((image.astype(np.float32) / 255) - 0.5) / 0.5
    x = x.reshape(h // patch // merge, merge, patch, w // patch // merge, merge, patch, 3)
    x = x.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    x = np.broadcast_to(x, (*x.shape[:5], temporal, patch, patch))
    return np.ascontiguousarray(x).reshape(h * w // patch**2, -1)
