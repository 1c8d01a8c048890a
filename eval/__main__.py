"""`python -m vtc.eval COMMAND`; the commands are in `vtc/commands/eval/`, above this room."""

import runpy

if __name__ == "__main__":
    runpy.run_module("vtc.commands.eval", run_name="__main__", alter_sys=True)
