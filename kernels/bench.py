"""`python -m vtc.kernels.bench`; the tool is `eval/kernels/bench/`, above this room."""

import runpy

if __name__ == "__main__":
    runpy.run_module("vtc.eval.kernels.bench", run_name="__main__", alter_sys=True)
