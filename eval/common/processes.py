"""One process or several: `accelerate launch` and `torchrun` give each a rank and a device."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from vtc.errors import VTCError

#: where launchers (torchrun and accelerate, the MPIs) say how many processes there are
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank, count: its number and how many there are.
        device: the torch device that belongs to it, None for the default one.
        wait: returns when every process has called it.
    """

    rank: int = 0
    count: int = 1
    device: str | None = None
    wait: Callable[[], Any] = _nothing

    @property
    def main(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0


def processes(device: str | None = None) -> Processes:
    """Join the other processes of a launcher; alone when there are none.

    Args:
        device: a torch device that was asked for; a kind without a number ("cuda") leaves the number
            to the launcher.

    Raises:
        VTCError: accelerate is missing, or the device does not suit several processes.
    """
    if all(int(os.environ.get(name) or 1) == 1 for name in SIZES):
        return Processes(device=device)
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise VTCError(
            "accelerate: several processes need it: pip install 'vtc-vlm[accelerate]'"
        ) from error
    if device is not None and ":" in device:
        raise VTCError(f"device: got {device!r} for several processes, give none, 'cpu' or 'cuda'")
    import torch

    cpu = device == "cpu" or not torch.accelerator.is_available()
    # shards end at different times: the default of half an hour is too short to wait for the last
    state = PartialState(cpu=cpu, timeout=timedelta(weeks=1))
    return Processes(
        state.process_index, state.num_processes, str(state.device), state.wait_for_everyone
    )
