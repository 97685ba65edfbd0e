"""The data path against what the original's dataset classes returned for the same files and draws.

Exact: frames and images as uint8, indices, instruction and embedding. Normalisation, actions and
normalised pixels within 1e-6, the rounding of a few float32 operations.
"""

import functools
import pathlib

import numpy as np
import pytest

from motus_jax.data import transforms, video, windows
from motus_jax.data.sources import robotwin
from tests.parity import goldens


@functools.cache
def samples():
    return goldens.read_json("data/samples.json")


def robotwin_cases():
    return [
        name
        for name, case in samples().items()
        if isinstance(case, dict) and case.get("dataset", {}).get("type") == "robotwin"
    ]


def robotwin_config(dataset: dict, text_dim: int) -> robotwin.Config:
    names = dataset["task_name"] if dataset["task_mode"] == "single" else None
    names = [names] if isinstance(names, str) else names
    return robotwin.Config(
        root=dataset["dataset_dir"].replace("<datasets>", str(goldens.root() / "data/datasets")),
        data_mode=dataset["data_mode"],
        tasks=tuple(names or ()),
        max_episodes=dataset["max_episodes"] if dataset["task_mode"] == "single" else None,
        randomized_limit_per_task=dataset.get("randomized_limit_per_task"),
        text_dim=text_dim,
    )


@pytest.mark.parametrize("name", robotwin_cases())
def test_robotwin(name):
    case, recorded = samples()[name], goldens.load(f"data/{name}.safetensors")
    common = case["common"]
    window = transforms.Window(
        frames=common["num_video_frames"],
        ratio=common["video_action_freq_ratio"],
        rate=common["global_downsample_rate"],
    )
    height, width = common["video_height"], common["video_width"]
    config = robotwin_config(case["dataset"], recorded["s0.language_embedding"].shape[-1])
    episodes, aside = robotwin.scan(config)
    assert not aside
    by_video = {e.path("videos").relative_to(pathlib.Path(config.root).parent): e for e in episodes}

    expected = case["episodes"]
    pools = [expected] if isinstance(expected, list) else expected.values()
    assert {e.path("qpos").relative_to(pathlib.Path(config.root).parent) for e in episodes} == {
        pathlib.Path(path) for pool in pools for path in pool
    }

    for i, sample in enumerate(case["samples"]):
        episode = by_video[pathlib.Path(sample["video"])]
        condition = sample["condition_frame_idx"]
        assert episode.num_frames == sample["total_frames"]
        assert 0 <= condition < window.conditions(episode.num_frames)
        frames, actions, valid = window.indices(condition, episode.num_frames)
        assert frames.tolist() == [condition, *sample["video_indices"]]
        assert actions.tolist() == sample["action_indices"]
        steps = condition + (np.arange(window.actions) + 1) * window.rate
        assert valid.tolist() == (steps < episode.num_frames).tolist()

        got = robotwin.read_window(
            episode, condition, sample["language"][1], window=window, config=config
        )
        assert got["instruction"] == sample["text"]
        if f"s{i}.raw_frames_u8" in recorded:
            np.testing.assert_array_equal(got["frames"], recorded[f"s{i}.raw_frames_u8"])
        resized = np.stack(
            [transforms.resize_with_padding(x, height, width) for x in got["frames"]]
        ).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(resized[0], recorded[f"s{i}.first_frame_u8"])
        np.testing.assert_array_equal(resized[1:], recorded[f"s{i}.video_frames_u8"])
        text = recorded[f"s{i}.language_embedding"]
        np.testing.assert_array_equal(
            got["text"].astype(np.float32), text.reshape(-1, text.shape[-1])
        )
        if "collate.language_embedding" in recorded:
            collated = recorded["collate.language_embedding"][i]  # only its first rows are recorded
            padded, _ = windows.pad_text(got["text"], windows.FULL_TEXT)
            np.testing.assert_array_equal(padded[: len(collated)], collated)
        close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
        close(got["state"], recorded[f"s{i}.initial_state"].reshape(-1))
        close(got["actions"], recorded[f"s{i}.action_sequence"])


@pytest.mark.parametrize("name", robotwin_cases())
def test_a_cached_episode_gives_the_same_frames(name):
    sample, common = samples()[name]["samples"][0], samples()[name]["common"]
    recorded = goldens.load(f"data/{name}.safetensors")
    resize = functools.partial(
        transforms.resize_with_padding, height=common["video_height"], width=common["video_width"]
    )
    reader = video.FrameReader(resize, cache_bytes=1 << 30)
    path = goldens.root() / "data/datasets" / sample["video"]
    for _ in range(2):
        frames = reader(path, sample["video_indices"], sample["total_frames"])
        np.testing.assert_array_equal(frames.transpose(0, 3, 1, 2), recorded["s0.video_frames_u8"])


def cases_of(recorded: dict) -> list[str]:
    return sorted({key.split(".")[0] for key in recorded})


def test_resize_with_padding():
    recorded = goldens.load("data/resize_with_padding.safetensors")
    for case in cases_of(recorded):
        expected = recorded[f"{case}.out"]
        actual = transforms.resize_with_padding(recorded[f"{case}.in"], *expected.shape[:2])
        np.testing.assert_array_equal(actual, expected)


def test_normalisation():
    recorded = goldens.load("data/normalisation.safetensors")
    statistics = goldens.read_json("data/stats_used.json")
    for case in cases_of(recorded):
        if f"{case}.min" in recorded:
            low, high = recorded[f"{case}.min"], recorded[f"{case}.max"]
        else:
            low, high = (np.float32(statistics[case][key]) for key in ("min", "max"))
        x, expected = recorded[f"{case}.x"], recorded[f"{case}.normalised"]
        normalised = transforms.normalize(x, low, high)
        np.testing.assert_allclose(normalised, expected, rtol=1e-6, atol=1e-6)
        if f"{case}.denormalised" in recorded:
            back = transforms.denormalize(expected, low, high)
            np.testing.assert_allclose(back, recorded[f"{case}.denormalised"], rtol=1e-6, atol=1e-6)
        moving = low != high
        np.testing.assert_allclose(
            transforms.denormalize(normalised, low, high)[:, moving], x[:, moving], atol=1e-5
        )


def test_vlm_image():
    recorded = goldens.load("data/vlm_image_processor.safetensors")
    for case in cases_of(recorded):
        image = recorded[f"{case}.image_u8"]
        for path, twice in (("train", True), ("infer", False)):
            resized = transforms.vlm_image(image, twice)
            _, rows, columns = recorded[f"{case}.{path}.grid"][0]
            assert resized.shape == (rows * 16, columns * 16, 3)
            assert resized.shape[:2] == transforms.vlm_size(*image.shape[:2], twice)
            patches = transforms.patchify(resized)[recorded[f"{case}.{path}.rows"]]
            expected = recorded[f"{case}.{path}.pixel_rows"]
            np.testing.assert_allclose(patches, expected, rtol=0, atol=1e-6)


def test_vlm_image_sizes_of_the_robots():
    assert transforms.vlm_size(384, 320, True) == transforms.vlm_size(384, 320, False) == (384, 320)
    assert transforms.vlm_size(720, 640, True) == (736, 640)
    assert transforms.vlm_size(720, 640, False) == (704, 640)
    with pytest.raises(ValueError, match="200"):
        transforms.vlm_size(1000, 4, False)


def test_three_views():
    head, left, right = (np.full((240, 320, 3), value, np.uint8) for value in (1, 2, 3))
    picture = transforms.three_views(head, left, right)
    assert picture.shape == (360, 320, 3)
    assert (picture[:240] == 1).all()
    assert (picture[240:, :160] == 2).all() and (picture[240:, 160:] == 3).all()
