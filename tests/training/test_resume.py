"""Two kills in a small run of the real trainer, and the errors a user can meet at its start.

The long form, five kills in a quickstart run, is `scripts/kill_test.py`.
"""

import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from motus_jax import torch_file
from motus_jax.training import metrics
from scripts import kill_test

CONFIG = "--config=configs/quickstart.py:stage=vae"
SHORT = [CONFIG, "--config.steps=12", "--config.checkpoint.every=3", "--config.log_every=1",
         "--config.eval_every=0", "--config.pictures=0"]


def test_two_kills(tmp_path):
    """All losses and the final state equal those of an unbroken run, bit for bit."""
    arguments = [*SHORT, f"--config.compile_cache={tmp_path / 'cache'}"]
    assert kill_test.train(tmp_path / "unbroken", arguments).wait() == 0
    kills = kill_test.run_with_kills(tmp_path / "killed", arguments, 2, 12, random.Random(0))
    assert kills, "no kill happened before the run ended"
    assert "equal" in kill_test.compare(tmp_path / "unbroken", tmp_path / "killed")
    steps = [row["step"] for row in metrics.read(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 13))


def test_lines_past_the_restored_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 0.1}\n{"step": 2, "a": 0.2}\n{"step": 3, "a"')
    metrics.keep_until(path, 1)
    assert metrics.read(path) == [{"step": 1, "a": 0.1}]


def first_error_line(arguments: list[str], workdir: pathlib.Path) -> str:
    done = subprocess.run([sys.executable, "-m", "motus_jax.train", f"--workdir={workdir}",
                           *arguments], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    text = done.stderr + done.stdout
    return next(line for line in text.splitlines() if "rror" in line)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--config.optimizer.learning_rat=1"], ["learning_rat"]),
    (["--config.data.source.root=no/such/folder"], ["no/such/folder"]),
    (["--config.init.resume=no/such/run"], ["no/such/run", "workdir"]),
    (["--config.policy.name=motsu"], ["motsu", "motus"]),
])
def test_wrong_settings_are_named(tmp_path, arguments, words):
    line = first_error_line([CONFIG, *arguments], tmp_path)
    assert all(word in line for word in words), line


@pytest.fixture
def damaged(tmp_path) -> pathlib.Path:
    """The example with a truncated mp4, a NaN in qpos, and pictures of zeros, which only decoding shows."""
    data = shutil.copytree("examples/aloha_sim", tmp_path / "data")
    folder = data / "clean" / "transfer_cube"
    video = folder / "videos" / "3.mp4"
    video.write_bytes(video.read_bytes()[:5000])
    qpos = np.array(torch_file.load(folder / "qpos" / "5.pt"))
    qpos[10, 3] = np.nan
    torch_file.save(folder / "qpos" / "5.pt", qpos)
    inside = bytearray((folder / "videos" / "7.mp4").read_bytes())
    start = inside.index(b"mdat") + len(inside) // 3
    inside[start : start + 20_000] = bytes(20_000)
    (folder / "videos" / "7.mp4").write_bytes(inside)
    return data


def test_bad_episodes_are_listed(tmp_path, damaged):
    """Set aside, counted, listed, and the run goes on; too many are an error."""
    arguments = [*SHORT, "--config.steps=1", f"--config.data.source.root={damaged}",
                 f"--config.data.verified={tmp_path / 'whole.txt'}"]
    line = first_error_line(arguments, tmp_path / "strict")
    assert "max_bad_fraction" in line or "3 of 12" in line, line
    run = tmp_path / "run"
    code = kill_test.train(run, [*arguments, "--config.data.max_bad_fraction=0.5"]).wait()
    log = (tmp_path / "run.log").read_text()
    assert code == 0, log
    assert "3 set aside" in log
    for path in ("videos/3.mp4", "qpos/5.pt", "videos/7.mp4"):
        assert path in log and path in (run / "data.json").read_text()


@pytest.mark.slow
def test_bad_episodes_change_nothing(tmp_path, damaged):
    """With every episode verified the losses are those of a run on the clean ones, bit for bit."""
    clean = shutil.copytree(damaged, tmp_path / "clean")
    for number in (3, 5, 7):
        for path in clean.glob(f"clean/*/*/{number}.*"):
            path.unlink()
    losses = []
    for name, root in (("all", damaged), ("subset", clean)):
        arguments = [f"--config.compile_cache={tmp_path / 'cache'}", f"--config.data.source.root={root}",
                     f"--config.data.verified={tmp_path / 'whole.txt'}",
                     "--config.data.max_bad_fraction=0.5"]
        assert kill_test.train(tmp_path / name, [*SHORT, *arguments]).wait() == 0
        rows = metrics.read(tmp_path / name / "metrics.jsonl")
        losses.append([row["train/total_loss"] for row in rows])
    assert losses[0] == losses[1] and len(losses[0]) == 12
