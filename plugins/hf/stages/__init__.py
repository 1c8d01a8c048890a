"""Where tokens are cut: one file or folder a place."""
