"""Running DVC stages from flows: processes, output, the DVC remote, git worktrees."""
