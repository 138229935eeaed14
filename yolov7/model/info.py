"""Cost of a network, counted on the network itself: a row of `yolov7 info`.

`python -m yolov7.model.info` counts all that come with the library and writes yolov7/catalogue.json.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace

from yolov7.catalogue import FILE, VariantInfo
from yolov7.files import write_text
from yolov7.model.checkpoint import load_checkpoint
from yolov7.model.cost import conv_gflops, count_deploy_unfused, count_parameters
from yolov7.model.detector import create_model
from yolov7.model.pgi import part_of
from yolov7.model.spec import Network
from yolov7.model.variants import FAMILIES, VARIANTS, family_name, list_variants, recipe_of


def variant_info(variant: str | Network, *, num_classes: int = 80, image_size: int | None = None) -> VariantInfo:
    """Count one network at a square image of `image_size` pixels (None: its own)."""
    model = create_model(variant, num_classes, device="meta")
    deploy = model.reparameterize()
    side = model.spec.image_size if image_size is None else image_size
    name = model.variant
    return VariantInfo(
        variant=name,
        parameters_training=count_parameters(model),
        parameters_deploy_unfused=count_deploy_unfused(model, deploy),
        parameters_deploy=count_parameters(deploy),
        gflops_training=round(conv_gflops(model, side), 4),
        gflops_deploy=round(conv_gflops(deploy, side), 4),
        image_size=side,
        strides=model.strides,
        published=VARIANTS[name].published if name in VARIANTS else None,
        family=family_name(name),
        pgi=part_of(model.spec),
    )


def file_info(path: str | os.PathLike[str], *, network: str = "") -> VariantInfo:
    """The row of the network in a .safetensors file, for its classes and image side; nothing is published of it.

    `network`, MODULE:FUNCTION, supplies kinds of block of the user's own. Raises :class:`ModelError` as
    :func:`yolov7.model.checkpoint.load_checkpoint` does.
    """
    model, metadata = load_checkpoint(path, network=network)
    row = variant_info(model.spec, num_classes=metadata.num_classes, image_size=metadata.image_size)
    return replace(row, published=None)


def catalogue() -> str:
    """The content of yolov7/catalogue.json: titles of the families; recipe and row of every listed network."""
    titles = {family.name: family.title for family in FAMILIES}
    rows = [variant_info(name).as_json() for name in list_variants()]
    recipes = {name: recipe_of(name) for name in list_variants()}
    return json.dumps({"families": titles, "recipes": recipes, "variants": rows}, indent=2) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m yolov7.model.info", description=__doc__).parse_args()
    write_text(FILE, catalogue())
