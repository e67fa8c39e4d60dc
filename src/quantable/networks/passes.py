"""Forward passes of one random image in evaluation mode, which leave a network as it was."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quantable.base.errors import UserError

PROBE_SEED = 0


def named(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by name; a network that is a single layer goes by its class name."""
    for name, module in network.named_modules():
        yield name or type(network).__name__, module


def probe(network: nn.Module, input_size: tuple[int, int, int], batch: int) -> Tensor:
    """Standard normal images (batch, c, h, w), the same ones every time."""
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(PROBE_SEED)
    return torch.randn(batch, *input_size, generator=generator).to(parameter)


def evaluate(network: nn.Module, x: Tensor) -> Tensor:
    """One forward pass in evaluation mode; every module's training flag is put back.

    Raises UserError where the network does not take images of this size.
    """
    flags = {module: module.training for module in network.modules()}
    network.eval()
    try:
        output: Tensor = network(x)
        return output
    except (NotImplementedError, UserError):
        raise
    except Exception as error:
        size = "x".join(str(n) for n in x.shape[1:])
        raise UserError(
            f"{type(network).__name__}: it does not take images of {size} "
            f"({type(error).__name__}: {error}): choose data or a data.input_size that it is made "
            "for, or another network"
        ) from error
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module], note: Callable[[str, tuple[Any, ...], Tensor], None]
) -> Iterator[None]:
    """Within the block, ``note(name, args, output)`` after each call of a module."""

    def hook_of(name: str) -> Callable[..., None]:
        return lambda _, args, out: note(name, args, out)

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
