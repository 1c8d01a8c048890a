"""What is known of prompts, images and their tokens whatever runtime a model runs in.

Nothing here knows a class of transformers, or a hook.
"""
