"""An error on one process ends all of them, with its message."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from two_processes import run_twice

from galip_edge.data import DataError
from galip_edge.training import run
from galip_edge.training.config import TrainConfig
from galip_edge.training.run import train
from runtime.errors import GalipEdgeError

pytestmark = pytest.mark.slow


def test_broken_data_of_one_process_ends_all(make_config, tmp_path):
    config = make_config(steps=1000, batch_size=4)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    run_twice(__file__, tmp_path)
    assert (tmp_path / "1.txt").read_text() == "shard 7 is broken"
    assert (tmp_path / "0.txt").read_text() == "shard 7 is broken (process 1)"


if __name__ == "__main__":  # one of the two processes
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    settings = json.loads((folder / "config.json").read_text())
    endless = run._endless

    def broken(loader):
        for number, batch in enumerate(endless(loader)):
            if number == 2:
                raise DataError("shard 7 is broken")
            yield batch

    if rank == "1":
        run._endless = broken
    try:
        train(TrainConfig.from_dict(settings))
    except GalipEdgeError as error:
        (folder / f"{rank}.txt").write_text(str(error))
