"""Frames of windows at a fixed size, with an optional memory of whole episodes."""

import collections
import math
import mmap
import threading
from collections.abc import Callable, Sequence

import numpy as np

from motus_jax.data.content import Content, frames, pictures
from motus_jax.data.schema import BadEpisode


class FrameReader:
    """Pictures [n, h, w, 3] of an episode after `resize`.

    With `cache_bytes`, an episode that fits is decoded and resized once, from first to last. Its
    further windows are slices; the least recently used episodes are dropped. Every loader process has
    its own memory.
    """

    def __init__(self, resize: Callable[[np.ndarray], np.ndarray], cache_bytes: int = 0):
        self.resize, self.cache_bytes = resize, cache_bytes
        self._episodes, self._used = collections.OrderedDict(), 0
        self._refused, self._lock = set(), threading.Lock()

    def __reduce__(self):
        return FrameReader, (self.resize, self.cache_bytes)

    def __call__(self, content: Content, indices: Sequence[int]) -> np.ndarray:
        """Frames uint8 [len(indices), H, W, 3], RGB.

        Raises:
          BadEpisode: one of them cannot be read.
        """
        with self._lock:
            if content.key in self._episodes:
                self._episodes.move_to_end(content.key)
                return self._episodes[content.key][list(indices)]
        if self.cache_bytes and content.key not in self._refused:
            whole = self._decode(content)
            if whole is not None:
                self._keep(content.key, whole)
                return whole[list(indices)]
            self._refused.add(content.key)
        return self.resize(pictures(content, indices))

    def _decode(self, content: Content) -> np.ndarray | None:
        """All frames; None if they do not fit, or one is damaged, which need not be a wanted one.

        They lie outside the heap, which episodes of many sizes that come and go would fragment.
        """
        whole = None
        try:
            for i, picture in enumerate(frames(content, range(content.num_frames))):
                picture = self.resize(picture)
                if whole is None:
                    shape = (content.num_frames, *picture.shape)
                    if math.prod(shape) > self.cache_bytes:
                        return None
                    whole = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
                whole[i] = picture
        except BadEpisode:
            return None
        return whole

    def _keep(self, key: str, whole: np.ndarray) -> None:
        with self._lock:
            if key not in self._episodes:
                self._episodes[key] = whole
                self._used += whole.nbytes
            while self._used > self.cache_bytes:
                self._used -= self._episodes.popitem(last=False)[1].nbytes
