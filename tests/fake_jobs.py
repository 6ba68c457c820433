"""Stand-ins for training that other processes can import: a job is done in a moment, killed, refused, or killed
half-way through its training."""

import os
import signal
import time

from macular.core import resolve
from macular.exceptions import DataError, ParameterError
from macular.jobs.plan import plan
from macular.store import append, lock, read_lines, write_json
from macular.train.resolve import identity, place

TINY = {"task": "pawsx", "method": "finetune", "preset": "mini", "max_train": 64, "rounds": 1, "langs": ["de"]}


def many(out, n, **more):
    "Plan small jobs of n seeds"
    return plan(TINY | {"seed": range(n), "out": str(out)} | more)


def result(job):
    return resolve(job.out) / f"done-{identity(job)}"


def log(job, event):
    append(
        resolve(job.out) / "log.jsonl",
        {
            "event": event,
            "job": identity(job),
            "seed": job.seed,
            "pid": os.getpid(),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        },
    )


def logged(out, event):
    return [line for line in read_lines(resolve(out) / "log.jsonl") if line["event"] == event]


def wait(job, seconds=0.02):
    "As a real job does: held, found when it is there, else done; its result comes last"
    log(job, "asked")
    with lock(result(job), wait=-1):
        if not (result(job) / "result.json").exists():
            time.sleep(seconds)
            write_json(result(job) / "result.json", {"config": {}})
            log(job, "done")
    return result(job)


def wait_long(job):
    return wait(job, 0.5)


def killed_once(job):
    "The job of seed 2 dies at its first attempt, as if for memory"
    log(job, "asked")
    if job.seed == 2 and len([x for x in logged(job.out, "asked") if x["seed"] == 2]) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return wait(job, 0.3)  # long enough that several workers have something to do


def killed_always(job):
    log(job, "asked")
    if job.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return wait(job)


def refused(job):
    log(job, "asked")
    if job.seed == 1:
        raise DataError("there are no rows\nand a second line")
    if job.seed == 2:
        raise ParameterError("alpha is odd")
    if job.seed == 3:
        raise ZeroDivisionError("a bug \ud800")
    return wait(job)


def blocked(job):
    "The place of the job's state becomes one that cannot be written"
    path = place(job) / "state.json"
    path.unlink()
    path.mkdir()
    (path / "x").write_text("")
    return wait(job)


def train_killed_once(job):
    "A real job whose process dies in the middle of its training, once"
    from macular.train.run import run

    first = len(logged(job.out, "asked")) == 0
    log(job, "asked")

    def watch(event, facts):
        if first and event == "step" and facts["step"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    return run(job, watch).folder


def hang(job):
    "A job that never ends, and says nothing after its first line"
    log(job, "asked")
    time.sleep(600)
