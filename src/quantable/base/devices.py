"""One run on several devices: a process (a rank) for each, which together compute what one would.

Every rank takes its share of each global batch. What is a statistic of the batch (gradients, batch
norms, ranges, first steps, counts) is taken over all ranks, so that their networks stay equal and
only rounding depends on their number. torch's own DistributedDataParallel is not used: methods
here change the size of parameters and which of them need a gradient while training.

Without a process group all functions return their argument.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore
from torch.overrides import TorchFunctionMode

from quantable.base.errors import UserError
from quantable.base.signals import Preempted, heed, listen

HOST = "127.0.0.1"
ARRIVED = "arrived"  # key of the number of ranks that wait for the first one
PATIENCE = timedelta(minutes=10)  # with a rank that does not answer


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(x: Tensor) -> Tensor:
    """Sum over the ranks; no gradient."""
    return _reduced(x, dist.ReduceOp.SUM)


def mean(x: Tensor) -> Tensor:
    """Mean over the ranks, whose gradient is the mean over the ranks too."""
    if count() == 1:
        return x
    result: Tensor = _Mean.apply(x)  # type: ignore[no-untyped-call]
    return result


def mean_gradient(x: Tensor) -> Tensor:
    """``x``, whose gradient becomes the mean over the ranks at this place already.

    For what comes before it and is not linear in the gradient, such as its absolute value.
    """
    if count() == 1:
        return x
    result: Tensor = _MeanGradient.apply(x)  # type: ignore[no-untyped-call]
    return result


def least(x: Tensor) -> Tensor:
    """Minimum over the ranks; no gradient."""
    return _reduced(x, dist.ReduceOp.MIN)


def greatest(x: Tensor) -> Tensor:
    """Maximum over the ranks; no gradient."""
    return _reduced(x, dist.ReduceOp.MAX)


def gathered(x: Tensor) -> Tensor:
    """The shares of all ranks behind each other: (n, ...) to (n * count, ...); no gradient."""
    if count() == 1:
        return x
    shares = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count())]
    dist.all_gather(shares, x.detach().contiguous())
    return torch.cat(shares)


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether a rank has set it; a decision that all must take together."""
    return [bool(flag) for flag in greatest(torch.tensor(flags, dtype=torch.uint8)).tolist()]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the mean over the ranks into every gradient, in one message."""
    if count() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    parts = torch.split(mean(together), [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def check_equal(net: nn.Module) -> None:
    """Raise RuntimeError where the ranks' networks are not the same to the last bit."""
    if count() > 1:
        tensors = (*net.parameters(), *net.buffers())
        sums = torch.stack([tensor.detach().double().sum() for tensor in tensors])
        if not torch.equal(least(sums), greatest(sums)):
            raise RuntimeError("the networks of the devices have gone apart")


class JointNorms(TorchFunctionMode):
    """Within the block, batch norms in training normalize by the batches of all ranks.

    ``nn.SyncBatchNorm`` does so on GPUs only, and not in networks that subclass the norm.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Replace ``batch_norm``, and pass everything else on."""
        if func is F.batch_norm:
            return _joint_batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _joint_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` over the batches of all ranks, each as large."""
    if not training or count() == 1:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    dims = [dim for dim in range(x.dim()) if dim != 1]
    spread = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    wide = x if x.dtype == torch.float64 else x.float()
    center = mean(wide.mean(dims))  # (c,)
    centered = wide - center.view(spread)
    var = mean(centered.square().mean(dims))
    if running_mean is not None and running_var is not None:
        n = count() * x.numel() / x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(center.to(running_mean.dtype), momentum)
            running_var.lerp_((var * n / (n - 1)).to(running_var.dtype), momentum)
    out = centered * (var + eps).rsqrt().view(spread)
    if weight is not None:
        out = out * weight.view(spread)
    if bias is not None:
        out = out + bias.view(spread)
    return out.to(x.dtype)


@contextmanager
def together(
    number: int, follow: Callable[..., None], arguments: Sequence[Any], *, gpus: bool
) -> Iterator[None]:
    """Make this process rank 0 of ``number``; the others run ``follow(*arguments)`` meanwhile.

    They are processes of this machine and end with this one. Their mistakes are those of rank 0,
    which tells them.
    """
    if number == 1:
        yield
        return
    if gpus and torch.cuda.device_count() < number:
        visible = torch.cuda.device_count()
        raise UserError(f"trainer.devices={number}: GPUs that this process may use: {visible}")
    store = TCPStore(HOST, 0, number, is_master=True, wait_for_workers=False)
    start = get_context("spawn").Process
    others = [
        start(target=_follow, args=(i, number, store.port, gpus, follow, arguments))
        for i in range(1, number)
    ]
    for other in others:
        other.start()
    threads = torch.get_num_threads()
    try:
        _await(others, store)
        _join(0, number, store, gpus=gpus)
        yield
        for other in others:
            other.join()
    finally:
        for other in others:
            other.join(timeout=10)
            other.kill()
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)


def _await(others: Sequence[BaseProcess], store: TCPStore) -> None:
    """Wait until all other ranks are there; raise RuntimeError when one of them ends before."""
    while store.add(ARRIVED, 0) < len(others):
        heed()  # a signal for the group ends those that do not listen yet
        if lost := [other.exitcode for other in others if other.exitcode]:
            raise RuntimeError(f"trainer.devices: a process ended with status {lost[0]}")
        time.sleep(0.1)


def _join(number: int, of: int, store: TCPStore, *, gpus: bool) -> None:
    """Become rank ``number``; CPU tensors travel through gloo, those on GPUs through nccl."""
    if gpus:
        torch.cuda.set_device(number)
    else:  # more threads than cores slow each other down manifold
        torch.set_num_threads(max(1, torch.get_num_threads() // of))
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=of, timeout=PATIENCE)


def _follow(
    number: int,
    of: int,
    port: int,
    gpus: bool,
    follow: Callable[..., None],
    arguments: Sequence[Any],
) -> None:
    """What a rank but the first does in its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0
    listen()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    store = TCPStore(HOST, port, of, is_master=False)
    store.add(ARRIVED, 1)
    _join(number, of, store, gpus=gpus)
    try:
        follow(*arguments)
    except (Preempted, UserError):  # rank 0 says it
        pass
    finally:
        dist.destroy_process_group()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _reduced(x: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
    if count() == 1:
        return x
    result = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, how)
    return result


class _MeanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        return total(grad) / count()


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        return total(x) / count()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        return total(grad) / count()
