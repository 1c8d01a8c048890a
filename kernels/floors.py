"""`python -m vtc.kernels.floors`; the tool is `eval/kernels/floors.py`, above this room."""

import runpy

if __name__ == "__main__":
    runpy.run_module("vtc.eval.kernels.floors", run_name="__main__", alter_sys=True)
