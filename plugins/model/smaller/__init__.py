"""Pictures made smaller after their processor has run: what it could have made of them, and how.

Nothing is run for it but a resampling, so that every runtime can use it.
"""
