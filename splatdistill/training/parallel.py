"""One scene over several processes, as torchrun starts them: exact, and in step.

Gaussians, teacher and densification are in every process. All draw the same cameras and backgrounds from the
run's generator; each takes a block of the views, in whole groups, and draws its own noise from (seed, step,
rank), so that a checkpoint holds nothing of the processes and any number of them continues it. Gradients,
losses and statistics of densification are summed in one message a step; the sums have the same bits
everywhere, so all take the same step. The first process writes the files and serves the viewer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from splatdistill.errors import Diverged, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from splatdistill.training.state import TrainState

LONGEST_WAIT = timedelta(days=7)  # for one process: a run may be paused in the viewer
LONGEST_START = timedelta(minutes=5)  # of the last process after the first


class Alone:
    """One process, whose views are all of them: each call does nothing. `Ranks` does it among several."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def device(self, name: str | None) -> str | None:
        """Return the device of this process, by the name that the user gave."""
        return name

    def check(self, views: int, group: int) -> None:
        """Raise UserError unless the views of a step can be shared in whole groups."""

    def mine(self, count: int) -> slice:
        """Return which of a step's views are this process's."""
        return slice(None)

    def noise(self, shared: torch.Generator, seed: int, step: int) -> torch.Generator:
        """Return where this process draws what belongs to its own views, in a step."""
        return shared

    def add_up_(self, means: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
        """Replace tensors by their mean, and others by their sum, over all processes."""

    def average_before_steps(self, optimizers: Sequence[Optimizer]) -> None:
        """From now on average the gradients of these optimizers over all processes before every step."""

    def keep_same(self, state: TrainState) -> None:
        """Give all processes the first one's state where theirs differ; on CPUs none ever does."""

    def any(self, word: bool) -> bool:
        """Return whether it is true in any process."""
        return word

    def wait(self) -> None:
        """Return when all processes have come here."""

    def told(self, value: Any) -> Any:
        """Return the first process's value; all wait for it."""
        return value


class Ranks(Alone):
    """This process among several; every method but `device`, `mine` and `noise` is called by all of them."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.rank, self.size, self._store = rank, size, store

    def device(self, name: str | None) -> str | None:
        """Return the GPU of this process's number on its machine, unless another device was named."""
        import torch

        if name in (None, "cuda") and torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"
        return name

    def check(self, views: int, group: int) -> None:
        """Raise UserError unless the views of a step can be shared evenly, in whole groups."""
        unit = self.size * group
        if views % unit:
            groups = f", and the teacher sees {group} at a time" if group > 1 else ""
            raise UserError(
                f"{self.size} processes share the views of a step evenly{groups}; "
                f"views.count is {views}, give a multiple of {unit}"
            )

    def mine(self, count: int) -> slice:
        """Return this process's block of a step's views."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def noise(self, shared: torch.Generator, seed: int, step: int) -> torch.Generator:
        """Return a new generator for this seed, step and process; a generator on the CPU reads 32 bits."""
        import torch

        mark = hashlib.blake2s(f"{seed} {step} {self.rank}".encode(), digest_size=4).digest()
        return torch.Generator().manual_seed(int.from_bytes(mark))

    def add_up_(self, means: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
        """Replace tensors by their mean, and others by their sum, over all processes, in one message."""
        import torch
        import torch.distributed as dist

        tensors = [*means, *sums]
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with together(self.size):
            dist.all_reduce(flat)
        flat[: sum(tensor.numel() for tensor in means)] /= self.size
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))

    def average_before_steps(self, optimizers: Sequence[Optimizer]) -> None:
        """From now on average the gradients of these optimizers over all processes before every step."""

        def average(optimizer: Optimizer, *_: Any) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.add_up_([p.grad for p in parameters if p.grad is not None], [])

        for optimizer in optimizers:
            optimizer.register_step_pre_hook(average)

    def keep_same(self, state: TrainState) -> None:
        """Give all processes the first one's state where theirs differ.

        On CPUs none ever does. On GPUs sums of some operations, such as the draws of MCMC, are in no fixed
        order; so this is called before every checkpoint.
        """
        import torch
        import torch.distributed as dist

        learned = [] if state.method is None else state.method.optimizers
        tensors = [p for o in learned for group in o.param_groups for p in group["params"]]
        bits = [t.detach().float().flatten().view(torch.int32) for t in [*state.gaussians.values(), *tensors]]
        digest = torch.stack([part.sum(dtype=torch.int64) for part in bits]).cpu()
        ends = torch.cat([digest, -digest, torch.tensor([len(bits[0]), -len(bits[0])])])
        with together(self.size):
            dist.all_reduce(ends, dist.ReduceOp.MAX)
            high, low = ends[: len(digest)], -ends[len(digest) : -2]
            if torch.equal(high, low) and ends[-2] == -ends[-1]:
                return
            whole = [state.state_dict() if self.first else None]
            dist.broadcast_object_list(whole, src=0)
        if whole[0] is not None and not self.first:
            state.load_state_dict(whole[0], state.device)

    def any(self, word: bool) -> bool:
        """Return whether it is true in any process."""
        import torch
        import torch.distributed as dist

        flag = torch.tensor(int(word))
        with together(self.size):
            dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.any(False)

    def told(self, value: Any) -> Any:
        """Return the first process's value; all wait for it."""
        import torch.distributed as dist

        values = [value]
        with together(self.size):
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def speaks_first(self) -> bool:
        """Return whether no other process has had an error before; it is told once."""
        try:
            return self._store.add(f"told-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
        except RuntimeError:  # the process that kept the store is the one that was lost
            return True


@contextmanager
def together(size: int) -> Iterator[None]:
    """Turn the failure of a message between processes into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"another of the {size} processes of this run has ended; its line, or the machine's log, says why"
        ) from error


def launched() -> bool:
    """Return whether torchrun, or what sets the same variables, started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and {"RANK", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def joined(note: Callable[[str], None] = lambda line: None) -> Iterator[Alone]:
    """Join the processes that torchrun started with this one; yield what this one is among them.

    An error ends all of them, and is told by the first that has one: the others exit with its status.
    """
    if not launched():
        yield Alone()
        return
    import torch
    import torch.distributed as dist

    size = int(os.environ["WORLD_SIZE"])
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:  # on one machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    with together(size):
        store, rank, size = next(dist.rendezvous("env://", timeout=LONGEST_START))
        store.set(f"here-{rank}", "")
        store.wait([f"here-{other}" for other in range(size)], LONGEST_START)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    ranks = Ranks(store, rank, size)
    if ranks.first:
        note(f"{size} processes share the views of each step")
    try:
        yield ranks
    except (UserError, Diverged, OSError, KeyboardInterrupt) as error:
        if ranks.speaks_first():
            raise
        status = 130 if isinstance(error, KeyboardInterrupt) else 1 if isinstance(error, Diverged) else 2
        raise SystemExit(status) from None
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()
