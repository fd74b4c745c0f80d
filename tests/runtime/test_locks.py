"""Locks between processes."""

import os

import pytest

from runtime.locks import try_lock


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_hold_the_lock(tmp_path):
    """Data workers outlive a killed training for some seconds."""
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    (reader, writer), (started, start) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.write(start, b"x")
        os.read(reader, 1)  # until the parent is done
        os._exit(0)
    try:
        os.read(started, 1)
        assert try_lock(tmp_path / "lock") is None
        lock.release()
        again = try_lock(tmp_path / "lock")
        assert again is not None
        again.release()
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)
        for descriptor in (reader, writer, started, start):
            os.close(descriptor)
