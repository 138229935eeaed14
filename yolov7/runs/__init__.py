"""Training, evaluation and export without the pipeline: a data set and a folder for the run are all that is needed."""

from yolov7.runs.evaluation import evaluate_model
from yolov7.runs.exporting import export_weights
from yolov7.runs.trained import TrainedDetector
from yolov7.runs.training import train_detector

__all__ = ["TrainedDetector", "evaluate_model", "export_weights", "train_detector"]
