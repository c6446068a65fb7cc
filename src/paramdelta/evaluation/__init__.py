"""How much of direct post-training came across: suites of tasks, their scores and statistics."""
