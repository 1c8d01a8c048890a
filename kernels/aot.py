"""`python -m vtc.kernels.aot`; the tool is `eval/kernels/aot.py`, above this room."""

import runpy

if __name__ == "__main__":
    runpy.run_module("vtc.eval.kernels.aot", run_name="__main__", alter_sys=True)
