"""Whether compression is right on a model, by numbers: what `vtc doctor` and `selfcheck.py` run.

A check compares runs that have to agree, and knows nothing of versions or families. Logits are compared
by the root mean square of their difference as a share of their own spread. Before a difference counts,
the same runs are compared without compression: what differs there is not the plug-in's doing.
"""
