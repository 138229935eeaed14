"""A training's curve as a picture: `python docs/make_curve.py models/V/train/history.csv docs/images/NAME.svg`.

Validation AP and AP50 by epoch, and the parts of the loss below. matplotlib comes with DVC and MLflow.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("history", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    plt.switch_backend("svg")
    plt.rcParams.update({"svg.hashsalt": "curve", "svg.fonttype": "none", "font.size": 9})
    with args.history.open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [name for name in rows[0] if name.startswith("train/")]
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 4.4), sharex=True, layout="constrained")
    for axes, names in ((above, ("val/AP", "val/AP50")), (below, losses)):
        for name in names:
            points = [(int(row["epoch"]) + 1, float(row[name])) for row in rows if row.get(name)]
            axes.plot(*zip(*points, strict=True), marker="." if "val" in name else None, label=name)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    below.set_xlabel("epoch")
    figure.savefig(args.picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
