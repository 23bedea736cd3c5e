"""`vid3d weights inflate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..suggest import check_known
from .console import log, plural


def inflate(
    image: Annotated[Path, typer.Argument(metavar="FILE", help="torchvision's googlenet-….pth or resnet…-….pth.")],
    backbone: Annotated[
        str, typer.Option("--to", metavar="BACKBONE", help="Backbone: i3d, s3d, r3d_18, mc3_18, p3d63, …")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "--output", "-o", metavar="FILE", help="Output, a .safetensors file.", show_default=False
        ),
    ],
    stream: Annotated[
        str, typer.Option(metavar="rgb|flow", help="flow averages the first kernels over the colours.")
    ] = "rgb",
    num_classes: Annotated[
        int | None,
        typer.Option(
            "--classes", min=1, metavar="N", help="Classes of a new classifier.", show_default="ImageNet's 1000"
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX", help="Inflate only tensors whose names begin with this; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the randomly initialised tensors.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Convert a 2-D ImageNet checkpoint into a 3-D initialisation for training; it recognises no actions yet.

    Example: vid3d weights inflate googlenet-1378be20.pth --to i3d --out i3d_start.safetensors
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: name a .safetensors file")
    from ..durable import refuse_existing

    refuse_existing([out], overwrite)
    from ..models.checkpoint import read_checkpoint
    from ..models.inflation import inflate, save_inflated
    from ..models.registry import BACKBONES

    check_known(backbone, [name for name, entry in BACKBONES.items() if entry.image_networks], f"--to {backbone}")
    inflated = inflate(
        read_checkpoint(image), backbone, stream=stream, num_classes=num_classes, only=only or (), seed=seed
    )
    save_inflated(inflated, out)
    random = inflated.random
    examples = f" ({', '.join(random[:3])}{', …' if len(random) > 3 else ''})" if random else ""
    log.info(
        "%s of %s → %s; %s initialised at random%s",
        plural(len(inflated.from_image), "tensor"),
        inflated.image_network,
        backbone,
        plural(len(random), "tensor"),
        examples,
    )
    typer.echo(str(out))
