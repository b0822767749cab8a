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


def read_on_after_signals(connection):
    """Reads all batches of two workers, which the test sends signals to after the first of each; then ends one."""
    multiprocessing.set_start_method("fork", force=True)
    loader = worker_loader(Images(), [[index] for index in range(20)], first_example, 2)
    batches = iter(loader)
    first = [next(batches), next(batches)]  # of both: they have begun
    connection.send([worker.pid for worker in multiprocessing.active_children()])
    connection.recv()
    connection.send(sum(len(image) == 1 << 20 for image in [*first, *batches]))
    more = iter(loader)
    next(more), next(more)
    worker = multiprocessing.active_children()[0]
    worker.terminate()  # as torch does with a worker that does not answer
    worker.join(10)
    connection.send(worker.exitcode)
    del more


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="signals do not tell their sender here")
def test_a_signal_to_every_process_of_a_job_leaves_the_workers_to_theirs():
    """Job managers and `pkill` send SIGTERM to each; the run finishes its step with them, and ends them itself."""
    ours, theirs = SERVER.Pipe()
    process = SERVER.Process(target=read_on_after_signals, args=(theirs,))
    process.start()
    theirs.close()
    for worker in ours.recv():
        os.kill(worker, signal.SIGTERM)
    time.sleep(0.5)
    ours.send("go on")
    assert ours.recv() == 20
    assert ours.recv() == 0
    process.join()
    assert process.exitcode == 0
