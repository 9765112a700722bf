"""EleutherAI's lm-evaluation-harness: its tasks with their rows (tasks.py), and what runs
score on them (scores.py)."""
