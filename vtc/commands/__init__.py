"""Sub-commands of `vtc`, one a file, each with `add(subparsers)`."""
