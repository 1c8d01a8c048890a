"""How right an answer is, by each benchmark's own rule: pure functions, one rule a file."""
