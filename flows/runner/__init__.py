"""How flows run DVC stages: processes, output, the DVC remote, git worktrees."""
