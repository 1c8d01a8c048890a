"""The demo: methods on the embedded reference VLM, with a table and pictures."""
