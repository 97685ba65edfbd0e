"""Running a trained policy: from a checkpoint to actions, in process or behind a server."""
