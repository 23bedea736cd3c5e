"""Networks whose answers depend on their input: those of a fresh network hardly do."""

import torch
from torch import nn


def lively(net, seed=1):
    """Draw all tensors of a network as the seeded cases are drawn, in place; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
            else:
                for parameter in module.parameters(recurse=False):
                    scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
                    parameter.normal_(0, scale, generator=generator)
    return net.eval()


def noise(*shape, seed=0):
    """Uniform in [-1, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
