"""Another way to run a job: worker processes. Everything that goes to them is pickled."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

_worker = None


def _start(pickled):
    global _worker
    job, reader, writers = pickle.loads(pickled)
    _worker = job.worker(reader, writers)


def _do(pickled):
    return pickle.dumps(_worker(pickle.loads(pickled)))


def run(job, reader, *, workers, writers=(), skip=None, commit=None, progress=None):
    """Run every task of a job in processes of their own; see `threads.run`."""
    tasks = [task for task in job.tasks() if skip is None or not skip(task)]
    pickled = pickle.dumps((job, reader, list(writers)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, _start, (pickled,)) as pool:
        for task, receipt in zip(tasks, pool.map(_do, map(pickle.dumps, tasks)), strict=True):
            found = pickle.loads(receipt)
            job.collect(task, found)
            if commit is not None:
                commit([found])
