"""The trainer of a variant on indexed data: its first weights, the description of its classes, and its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from stages.training.processes import loader_workers
from stages.training.teacher import teacher_file
from yolov7.config import Train
from yolov7.data.index import Index
from yolov7.model import ModelMetadata
from yolov7.train.distributed import Processes
from yolov7.train.initial import initial_model
from yolov7.train.loop import Trainer
from yolov7.train.records import Listener
from yolov7.train.state import StateFolder
from yolov7.train.teacher import load_teacher
from yolov7.weights.fetch import origin_of


def trainer_of(
    variant: str,
    train: Train,
    indices: tuple[Index, Index],
    states: StateFolder,
    *,
    data_sha256: str,
    listeners: Sequence[Listener],
    device: torch.device,
    stop: Callable[[], bool],
    processes: Processes,
) -> Trainer:
    """A trainer that begins, or resumes from `states`; `indices` are those of the training and validation split."""
    train_index, val_index = indices
    model = initial_model(variant, train, train_index)
    metadata = ModelMetadata.of(
        model,
        class_names=tuple(train_index.class_names),
        category_ids=tuple(train_index.category_ids),
        image_size=train.image_size,
        extra={"data_sha256": data_sha256, **origin_of(train.weights, network=train.network)},
    )
    return Trainer(
        model,
        train_index=train_index,
        val_index=val_index,
        params=train,
        states=states,
        metadata=metadata,
        listeners=listeners,
        device=device,
        workers=loader_workers(device),
        stop=stop,
        processes=processes,
        teacher=load_teacher(train, model.spec, metadata.class_names, teacher_file(train)),
    )
