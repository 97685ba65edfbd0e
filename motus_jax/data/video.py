"""Frames of a video file by index, exactly, decoding as little as possible.

Frames are numbered in presentation order, as decord and OpenCV number them, and come out bit-equal
to theirs. The decoder runs forward through the wanted frames and jumps to a later key frame only
when that skips more than SEEK_GAP frames: a jump empties the decoder and reads the index again.
"""

import bisect
import collections
import threading
from collections.abc import Callable, Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from motus_jax.data.schema import BadEpisode

SEEK_GAP = 4  # frames; a jump costs about as much as decoding this many (H.264, 360x320)


def count_frames(path) -> int:
    """Number of frames by the file's index; nothing is decoded.

    Raises:
      BadEpisode: not a video, or the index names bytes that the file does not have.
    """
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            entries = _stream(container, path).index_entries
            if not len(entries):
                raise BadEpisode(path, "the video has no frames")
            size, count = container.size, sum(not entry.is_discard for entry in entries)
            end = max(entry.pos + entry.size for entry in entries)
    except av.FFmpegError as error:
        raise BadEpisode(path, f"the video cannot be opened ({error.strerror})") from None
    if end > size:
        raise BadEpisode(path, f"the video is truncated: {size} bytes, its index needs {end}")
    return count


def read_frames(path, indices: Sequence[int]) -> np.ndarray:
    """Frames uint8 [len(indices), h, w, 3], RGB; `indices` in any order, repeats allowed.

    Raises:
      BadEpisode: the file is damaged, truncated, or has no such frame.
    """
    wanted = sorted(set(map(int, indices)))
    found, current = {}, wanted[0]
    to_rgb = VideoReformatter()  # shared: a frame's own would be set up anew each time
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = _stream(container, path)
            stream.thread_type = "NONE"  # the loader runs many files at once
            times, jumps = _timeline(container, stream, path)
            if wanted[0] < 0 or wanted[-1] >= len(times):
                missing = wanted[0] if wanted[0] < 0 else wanted[-1]
                raise BadEpisode(path, f"frame {missing} does not exist, there are {len(times)}")
            container.seek(jumps[0][1], stream=stream)
            decoded, frames = -1, container.decode(stream)
            for current in wanted:
                key, seek_to = jumps[bisect.bisect_right(jumps, (current, float("inf"))) - 1]
                if key - decoded > SEEK_GAP:
                    container.seek(seek_to, stream=stream)
                    frames = container.decode(stream)
                frame = _advance(frames, times[current], path, current)
                found[current] = to_rgb.reformat(frame, format="rgb24").to_ndarray()
                decoded = current
    except av.FFmpegError as error:
        raise BadEpisode(path, f"frame {current} cannot be decoded ({error.strerror})") from None
    return np.stack([found[int(i)] for i in indices])


def _stream(container, path):
    if not container.streams.video:
        raise BadEpisode(path, "the file has no video stream")
    return container.streams.video[0]


def _timeline(container, stream, path) -> tuple[list[int], list[tuple[int, int]]]:
    """Time stamps in presentation order, and (frame, time stamp to seek to) of the key frames."""
    packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
    times = sorted(p.pts for p in packets if p.pts is not None)
    if len(times) != len(packets) or len(set(times)) != len(times):
        raise BadEpisode(path, "frames without distinct time stamps; re-encode the video")
    keys = sorted((bisect.bisect_left(times, p.pts), p.dts) for p in packets if p.is_keyframe)
    if not keys or keys[0][0] != 0:
        raise BadEpisode(path, "the first frame is not a key frame; re-encode the video")
    return times, keys


def _advance(frames, time: int, path, index: int) -> av.VideoFrame:
    for frame in frames:
        if frame.pts == time:
            if frame.is_corrupt:
                raise BadEpisode(path, f"frame {index} is damaged")
            return frame
        if frame.pts is None or frame.pts > time:
            break
    raise BadEpisode(path, f"frame {index} cannot be decoded: the video is truncated or damaged")


class FrameReader:
    """`read_frames` at a fixed size, with an optional cache of whole episodes.

    With `cache_bytes`, an episode that fits the budget is decoded and resized once, in one linear
    pass, and its further windows are slices; the least recently used episodes are dropped. Every
    loader process has its own cache.
    """

    def __init__(self, resize: Callable[[np.ndarray], np.ndarray], cache_bytes: int = 0):
        self.resize, self.cache_bytes = resize, cache_bytes
        self._episodes, self._used = collections.OrderedDict(), 0
        self._lock = threading.Lock()

    def __reduce__(self):
        return FrameReader, (self.resize, self.cache_bytes)

    def __call__(self, path, indices: Sequence[int], num_frames: int) -> np.ndarray:
        """Frames uint8 [len(indices), H, W, 3] of an episode of `num_frames` frames."""
        with self._lock:
            if path in self._episodes:
                self._episodes.move_to_end(path)
                return self._episodes[path][list(indices)]
        if not self.cache_bytes:
            return self._resized(read_frames(path, indices))
        first = self._resized(read_frames(path, indices[:1]))
        if first.nbytes * num_frames > self.cache_bytes:
            return self._resized(read_frames(path, indices))
        episode = self._resized(read_frames(path, range(num_frames)))
        self._keep(path, episode)
        return episode[list(indices)]

    def _resized(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([self.resize(frame) for frame in frames])

    def _keep(self, path, episode: np.ndarray) -> None:
        with self._lock:
            if path not in self._episodes:
                self._episodes[path] = episode
                self._used += episode.nbytes
            while self._used > self.cache_bytes:
                self._used -= self._episodes.popitem(last=False)[1].nbytes
