"""The MuJoCo ALOHA simulator with three cameras, and a scripted expert for its cube transfer task.

The right arm picks the red cube and carries it to the middle, the left arm takes it from there.
The plan is open loop: from the cube's position alone it lays Cartesian waypoints for both grippers,
joins them with minimum-jerk motion, and solves every step for joint targets by damped-least-squares
inverse kinematics (Wampler 1986, Nakamura and Hanafusa 1986) on the pose of
`vx300s_<side>/gripper_link`.

World x points from the left arm to the right arm, y away from the front of the table, z up; metres.
A gripper pose is a grasp point (between the finger tips) with pitch and roll in radians; positive
pitch looks down, and with roll 0 the fingers close horizontally. Yaw is not free: a gripper points
away from its own base, because the forearm cannot turn it sideways without passing the wrist's
singularity. Joint vectors are [left arm 6, left gripper, right arm 6, right gripper]: radians for
the arms, 0 (closed) to 1 (open) for the grippers.
"""

from dataclasses import dataclass, fields, replace

import cv2
import mujoco
import numpy as np
from dm_control.mujoco import Physics
from dm_control.rl import control
from gym_aloha.constants import (
    ASSETS_DIR,
    DT,
    START_ARM_POSE,
    normalize_puppet_gripper_position,
)
from gym_aloha.env import AlohaEnv
from gym_aloha.tasks.sim import TransferCubeTask

CONTROL_HZ = round(1 / DT)
STEP_LIMIT = 300  # the registered environment's episode limit
CAMERAS = ("top", "left_wrist", "right_wrist")
GRASP_OFFSET = 0.13  # metres from gripper_link to the grasp point, along the gripper's x axis
MEET = np.array([0.0, 0.5, 0.25])  # where the cube changes hands
CUBE_REST = 0.02  # height of the cube's centre on the table; it is dropped from a little above
START_GRIPPER = normalize_puppet_gripper_position(START_ARM_POSE[6])  # nearly closed
ARM_JOINTS = {"left": np.arange(0, 6), "right": np.arange(8, 14)}  # two fingers follow each arm


class QuietTask(TransferCubeTask):
    """The packaged task, but a step returns joints only instead of rendering three large images."""

    def get_observation(self, physics):
        return {"qpos": self.get_qpos(physics)}


class AlohaSim(AlohaEnv):
    """gym-aloha's cube transfer environment, rendered cheaply. `reset` and `step` are its own."""

    def __init__(self):
        super().__init__("transfer_cube")

    def _make_env_task(self, task_name):
        physics = Physics.from_xml_path(str(ASSETS_DIR / f"bimanual_viperx_{task_name}.xml"))
        # Read when the first image is rendered; the defaults cost ten times as much on a CPU.
        physics.model.vis.quality.shadowsize = 64
        physics.model.vis.quality.offsamples = 0
        return control.Environment(physics, QuietTask(), control_timestep=DT)

    def _format_raw_obs(self, raw_obs):
        return raw_obs

    @property
    def model(self) -> mujoco.MjModel:
        return self._env.physics.model.ptr

    @property
    def cube(self) -> np.ndarray:
        """Position of the cube's centre, float64 [3]."""
        return self._env.physics.named.data.xpos["box"].copy()

    def frame(self) -> np.ndarray:
        """RGB uint8 [360, 320, 3]: the top camera above the two half-size wrist cameras."""
        flags = {"shadow": False, "reflection": False}
        top, left, right = [
            self._env.physics.render(240, 320, camera_id=name, render_flag_overrides=flags)
            for name in CAMERAS
        ]
        halves = [cv2.resize(v, (160, 120), interpolation=cv2.INTER_LINEAR) for v in (left, right)]
        return np.concatenate([top, np.concatenate(halves, axis=1)])


@dataclass(frozen=True)
class Waypoint:
    """Where a gripper should be `time` seconds into the episode, and how far open (0 to 1)."""

    time: float
    point: np.ndarray  # [3] grasp point
    pitch: float
    roll: float
    gripper: float


@dataclass(frozen=True)
class Style:
    """What differs between two demonstrations of the same cube position."""

    tempo: float  # all times are multiplied by this
    hover: float  # metres above the cube before the descent
    pitch: float  # how steeply the right gripper looks down
    meet: np.ndarray  # [3] where the cube changes hands

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Style":
        jitter = rng.uniform([-0.02, -0.03, -0.02], [0.02, 0.03, 0.02])
        return cls(
            tempo=rng.uniform(0.92, 1.08),
            hover=rng.uniform(0.07, 0.12),
            pitch=rng.uniform(0.7, 0.85),  # from 1.0 the wrist camera passes the vertical and flips
            meet=MEET + jitter,
        )


def start_command() -> np.ndarray:
    """The command in force after a reset, float64 [14]."""
    pose = np.array(START_ARM_POSE)
    left, right = (np.append(pose[ARM_JOINTS[side]], START_GRIPPER) for side in ("left", "right"))
    return np.concatenate([left, right])


def plan(model: mujoco.MjModel, cube: np.ndarray, style: Style) -> np.ndarray:
    """Joint targets float64 [T, 14] at 50 Hz that hand the cube at `cube` [3] to the left arm."""
    arms = []
    for side, script in (("left", left_script), ("right", right_script)):
        solver = InverseKinematics(model, side)
        waypoints = script(solver.start(), cube, style)
        length = round(waypoints[-1].time * style.tempo * CONTROL_HZ)
        rows = []
        for step in range(1, length + 1):
            now = interpolate(waypoints, step / CONTROL_HZ / style.tempo)
            rows.append([*solver.solve(now.point, now.pitch, now.roll), now.gripper])
        arms.append(rows)
    return np.concatenate(arms, axis=1)


def right_script(start: Waypoint, cube: np.ndarray, style: Style) -> list[Waypoint]:
    """Pick the cube, carry it to the meeting point, let go once the left gripper has closed."""
    cube = np.array([cube[0], cube[1], CUBE_REST])
    above = cube + np.array([0.0, 0.0, style.hover])
    away = style.meet + np.array([0.12, 0.0, 0.1])
    return [
        start,
        Waypoint(1.2, above, style.pitch, 0.0, gripper=1.0),
        Waypoint(1.8, cube, style.pitch, 0.0, gripper=1.0),
        Waypoint(2.0, cube, style.pitch, 0.0, gripper=1.0),
        Waypoint(2.3, cube, style.pitch, 0.0, gripper=0.0),
        Waypoint(3.4, style.meet, style.pitch, 0.0, gripper=0.0),
        Waypoint(4.4, style.meet, style.pitch, 0.0, gripper=0.0),
        Waypoint(4.6, style.meet, style.pitch, 0.0, gripper=1.0),
        Waypoint(5.1, away, style.pitch, 0.0, gripper=1.0),
        Waypoint(5.5, away, style.pitch, 0.0, gripper=1.0),
    ]


def left_script(start: Waypoint, cube: np.ndarray, style: Style) -> list[Waypoint]:
    """Wait beside the meeting point, close on the cube there, draw back with it."""
    roll = np.pi / 2  # the right fingers hold the other two faces
    beside = style.meet + np.array([-0.1, 0.0, 0.0])
    back = style.meet + np.array([-0.15, 0.0, 0.0])
    return [
        start,
        replace(start, time=0.6),
        Waypoint(2.6, back, 0.0, roll, gripper=1.0),
        Waypoint(3.3, beside, 0.0, roll, gripper=1.0),
        Waypoint(4.0, style.meet, 0.0, roll, gripper=1.0),
        Waypoint(4.1, style.meet, 0.0, roll, gripper=1.0),
        Waypoint(4.4, style.meet, 0.0, roll, gripper=0.0),
        Waypoint(4.7, style.meet, 0.0, roll, gripper=0.0),
        Waypoint(5.5, back, 0.0, roll, gripper=0.0),
    ]


def interpolate(waypoints: list[Waypoint], time: float) -> Waypoint:
    """Minimum-jerk motion between the two neighbours of `time`."""
    after = next((i for i, w in enumerate(waypoints) if w.time >= time), len(waypoints) - 1)
    a, b = waypoints[after - 1], waypoints[after]
    s = np.clip((time - a.time) / (b.time - a.time), 0.0, 1.0)
    s = s**3 * (10 - 15 * s + 6 * s**2)
    names = [field.name for field in fields(Waypoint)]
    return Waypoint(*((1 - s) * getattr(a, n) + s * getattr(b, n) for n in names))


class InverseKinematics:
    """Damped least squares for one arm. Every solution starts the next search.

    Raises RuntimeError when a pose is out of reach, so that a bad waypoint cannot pass unnoticed.
    """

    damping = 0.01
    iterations = 50
    tolerance = 1e-4  # metres and radians together

    def __init__(self, model: mujoco.MjModel, side: str):
        self.model, self.side, self.joints = model, side, ARM_JOINTS[side]
        self.body = model.body(f"vx300s_{side}/gripper_link").id
        self.base = model.body(f"vx300s_{side}").pos
        self.lower, self.upper = model.jnt_range[self.joints].T
        self.data = mujoco.MjData(model)
        self._place(np.array(START_ARM_POSE)[self.joints])

    def _place(self, angles: np.ndarray):
        self.data.qpos[self.joints] = np.clip(angles, self.lower, self.upper)
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)  # mj_jac needs it

    def _pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Grasp point [3] and orientation [3, 3] of the gripper."""
        orientation = self.data.xmat[self.body].reshape(3, 3).copy()
        return self.data.xpos[self.body] + GRASP_OFFSET * orientation[:, 0], orientation

    def start(self) -> Waypoint:
        """The simulator's start posture."""
        point, orientation = self._pose()
        return Waypoint(0.0, point, float(np.arcsin(-orientation[2, 0])), 0.0, START_GRIPPER)

    def solve(self, point: np.ndarray, pitch: float, roll: float) -> np.ndarray:
        """Six joint angles, float64 [6], for a grasp at `point` [3]."""
        y, x = (point - self.base)[[1, 0]]
        goal = rotation(np.arctan2(y, x), pitch, roll)
        move, turn = np.zeros((3, self.model.nv)), np.zeros((3, self.model.nv))
        for _ in range(self.iterations):
            at, now = self._pose()
            twist = 0.5 * np.cross(now.T, goal.T).sum(axis=0)  # small rotation as a vector
            error = np.concatenate([point - at, twist])
            if np.linalg.norm(error) < self.tolerance:
                return self.data.qpos[self.joints].copy()
            mujoco.mj_jac(self.model, self.data, move, turn, at, self.body)
            jacobian = np.concatenate([move, turn])[:, self.joints]
            gram = jacobian @ jacobian.T + self.damping**2 * np.eye(6)
            step = jacobian.T @ np.linalg.solve(gram, error)
            self._place(self.data.qpos[self.joints] + step)
        raise RuntimeError(
            f"The {self.side} arm cannot reach {np.round(point, 3).tolist()}: move the waypoint "
            f"(still {np.linalg.norm(error):.4f} off after {self.iterations} iterations)."
        )


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll), [3, 3]."""
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )
