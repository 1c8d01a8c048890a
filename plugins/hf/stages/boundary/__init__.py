"""The boundary between encoder and language model: images shrink before a prompt is read."""
