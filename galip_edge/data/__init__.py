"""Captioned images for training: CUB, COCO, WebDataset shards, folders and tables."""

from galip_edge.data.check import Report, check
from galip_edge.data.config import DataConfig
from galip_edge.data.dataset import CaptionedImages
from galip_edge.data.errors import DataError, Problem, ProblemLog
from galip_edge.data.loader import Loader, build_loader
from galip_edge.data.samples import Batch, Sample
from galip_edge.data.schedule import Position, Schedule
from galip_edge.data.sources import build_dataset
from galip_edge.data.stream import WebShards

__all__ = [
    "Batch",
    "CaptionedImages",
    "DataConfig",
    "DataError",
    "Loader",
    "Position",
    "Problem",
    "ProblemLog",
    "Report",
    "Sample",
    "Schedule",
    "WebShards",
    "build_dataset",
    "build_loader",
    "check",
]
