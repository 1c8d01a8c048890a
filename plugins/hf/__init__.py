"""Plug-in for Hugging Face transformers models: boundary compaction.

The images are encoded first, the method shrinks them, the surplus placeholders leave the prompt, and
transformers runs as if the prompt had always been short. See `patch.py` for what is put on a model,
`entry.py` for the two entry points, `encode.py` for the way from pixels to compressed tokens,
`compaction.py` for the way from a long prompt to a short one.
"""
