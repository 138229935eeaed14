"""Assignment of targets to predictions: candidate cells, plain and dynamic."""

from yolov7.assign.aligned import AlignedAssigner
from yolov7.assign.atss import AtssAssigner
from yolov7.assign.candidates import COARSE, FINE, Candidates, find_candidates
from yolov7.assign.cells import Cells, cells_of
from yolov7.assign.decoding import CONSTRAINED, UNCONSTRAINED, decode_boxes
from yolov7.assign.geometry import Geometry
from yolov7.assign.matches import Assigner, MapAssigner, Matches, Predicted, Targets
from yolov7.assign.ota import OtaAssigner
from yolov7.assign.plain import PlainAssigner

__all__ = [
    "COARSE",
    "CONSTRAINED",
    "FINE",
    "UNCONSTRAINED",
    "AlignedAssigner",
    "Assigner",
    "AtssAssigner",
    "Candidates",
    "Cells",
    "Geometry",
    "MapAssigner",
    "Matches",
    "OtaAssigner",
    "PlainAssigner",
    "Predicted",
    "Targets",
    "cells_of",
    "decode_boxes",
    "find_candidates",
]
