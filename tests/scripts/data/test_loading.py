"""Workers of the data loader: none of them outlives the process that it works for."""

import multiprocessing
import os
import signal
import time

import psutil
import pytest
from torch.utils.data import Dataset
from training_processes import SERVER

from scripts.data.loading import first_example, worker_loader


class Images(Dataset):
    """Pickled images larger than the 64 KB that a pipe takes: each worker waits until they are read."""

    def __getitem__(self, index):
        return bytes(1 << 20)


def hold_images(connection):
    """Reads one batch of two workers, tells their ids and reads no more."""
    multiprocessing.set_start_method("fork", force=True)  # as users' runs start the workers of the data loader
    batches = iter(worker_loader(Images(), [[index] for index in range(20)], first_example, 2))
    next(batches)
    time.sleep(0.5)
    connection.send([worker.pid for worker in multiprocessing.active_children()])
    time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_leave_with_their_process(number):
    """Images are in flight, which nobody will read; the workers hold what their process had open, too."""
    receiver, sender = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=hold_images, args=(sender,))
    process.start()
    sender.close()
    workers = [psutil.Process(pid) for pid in receiver.recv()]
    assert len(workers) == 2
    os.kill(process.pid, number)
    process.join()
    try:
        assert process.exitcode == -number
        assert not psutil.wait_procs(workers, timeout=10)[1]
        with pytest.raises(EOFError):
            receiver.recv()
    finally:
        for worker in workers:
            if worker.is_running():
                worker.kill()
