"""The training loop of all tasks, its checkpoints and its run folder."""
