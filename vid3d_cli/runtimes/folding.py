"""Folds batch norm into the preceding convolution: in inference both are one affine map."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

Convolution = nn.Conv2d | nn.Conv3d


def fold_batch_norms(model: nn.Module, clips: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """Fold batch norms into the convolutions before them, in place. The network's outputs stay the same.

    A forward pass on a copy of the network on the meta device shows which convolution each norm follows, so the names
    and order of layers do not matter. A convolution whose output is also used elsewhere, such as by a layer's tap, is
    not folded; nor is a norm that is tapped, nor one whose folded weights `dtype` cannot hold.

    Args:
        model: in eval mode, on the CPU: not every device has the float64 that weights are folded in.
        clips: (N, T, H, W, C), any input that the model takes; its values are not used.
        dtype: what the weights will be converted to.

    Returns:
        The number of folded norms.
    """
    sketch = _copy_to_meta(model)
    convolutions = {name: m for name, m in sketch.named_modules() if isinstance(m, Convolution)}
    for convolution in convolutions.values():
        if convolution.bias is None:  # shows whether the forward pass uses a bias
            convolution.bias = nn.Parameter(torch.empty(convolution.out_channels, device="meta"), requires_grad=False)
    with torch.no_grad(), _Watch() as watch:
        sketch(clips[:1].to("meta"))

    by_weight = {id(m.weight): name for name, m in convolutions.items()}
    by_mean = {id(m.running_mean): name for name, m in sketch.named_modules() if isinstance(m, _BatchNorm)}
    num_folded = 0
    for weight, bias, mean in watch.pairs():
        name, norm_name = by_weight.get(id(weight)), by_mean.get(id(mean))
        if name is None or norm_name is None or bias is not convolutions[name].bias:
            continue
        norm = model.get_submodule(norm_name)
        if not norm._forward_hooks and _fold(model.get_submodule(name), norm, dtype):
            parent, _, child = norm_name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
            num_folded += 1
    return num_folded


def _fold(convolution: nn.Module, norm: nn.Module, dtype: torch.dtype) -> bool:
    """Fold a norm into a convolution, unless the numbers would overflow or underflow in `dtype`."""
    assert isinstance(convolution, Convolution) and isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight.double(),
        None if convolution.bias is None else convolution.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.double(),
        norm.bias.double(),
    )
    # A weight divided by a large deviation may be too small for float16, whose numbers lose digits below 6e-5.
    rows = weight.detach().flatten(1)
    lost = (rows.to(dtype).double() - rows).norm(dim=1)
    if not (lost <= torch.finfo(dtype).eps * rows.norm(dim=1)).all() or not bias.to(dtype).isfinite().all():
        return False
    own = convolution.weight.dtype
    convolution.weight = nn.Parameter(weight.detach().to(own), requires_grad=False)
    convolution.bias = nn.Parameter(bias.detach().to(own), requires_grad=False)
    return True


def _copy_to_meta(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device, without copying any tensor's memory."""
    memo: dict[int, Any] = {id(t): torch.empty_like(t, device="meta") for t in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    return copy.deepcopy(model, memo)


class _Watch(TorchFunctionMode):
    """Records every call that returns tensors, to see what uses the output of each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], Any]] = []  # results are kept alive, so that no id is reused

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, (Tensor, tuple, list)) and not isinstance(result, torch.Size):
            self._calls.append((func, (*args, *(kwargs or {}).values()), result))
        return result

    def pairs(self) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """Return (weight, bias, running mean) of each convolution that ran once and fed only a norm that ran once."""
        uses: Counter[int] = Counter()
        for _, args, _ in self._calls:
            uses.update(id(t) for arg in args for t in (arg if isinstance(arg, (tuple, list)) else (arg,)))
        made_by = {id(result): args for func, args, result in self._calls if func in (F.conv2d, F.conv3d)}
        found: list[tuple[Tensor, Tensor | None, Tensor]] = []
        for func, args, _ in self._calls:
            if func is F.batch_norm and id(args[0]) in made_by and uses[id(args[0])] == 1:
                _, weight, bias = made_by[id(args[0])][:3]
                if uses[id(weight)] == 1 and uses[id(args[1])] == 1:
                    found.append((weight, bias, args[1]))
        return found
