"""`galip-edge batch` with the plain model: SECONDS-AN-IMAGE ARGUMENT..."""

import sys

from plain_model import PlainPipeline

from galip_edge.cli import main
from runtime.jobs import worker

if __name__ == "__main__":
    PlainPipeline.seconds = float(sys.argv[1])
    worker.Pipeline = PlainPipeline
    main(["batch", *sys.argv[2:]])
