"""Every Triton kernel against its twin in float64, under Triton's interpreter.

The interpreter is for a whole process, so pytest does not collect these files by itself:
`tests/kernels/test_interpreter.py` runs each in a process of its own. By hand:

    VTC_KERNELS=interpret python -m pytest tests/kernels/interpreted/check_merge.py
"""
