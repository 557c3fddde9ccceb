"""Where trainings run: in this process, in new ones, or on a cluster."""

import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, TypeVar

import tensorflow as tf

from keras_mgda.comparison.problem import Problem

T = TypeVar("T")
Submit = Callable[..., "Future[Any]"]


class InProcess(Executor):
    """Runs each call at once, in this process: for debugging and notebooks.

    A process that trains many models grows; a long comparison is better off
    with processes.

    Example:

    >>> from keras_mgda.comparison import InProcess
    >>> InProcess().submit(max, 1, 2).result()
    2
    """

    def submit(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        # Models are cycles. What is left of one holds iterators over its data,
        # and the older these are, the longer TensorFlow takes to end them.
        gc.collect()
        return future


class FreshProcesses(Executor):
    """Runs each call in a new process, so many of them at a time.

    As `ProcessPoolExecutor(max_tasks_per_child=1)`, which Python 3.10 does not
    have, with a pool for each call: a process that is killed takes no other
    with it. The cores are shared out among the processes.

    Args:
        number: of processes at a time.

    Raises:
        ValueError: if it is no such number.

    Example:

    >>> from keras_mgda.comparison import FreshProcesses
    >>> with FreshProcesses(2) as executor:
    ...     executor.submit(max, 1, 2).result()
    2
    """

    def __init__(self, number: int = 1) -> None:
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                "The number of processes must be a whole number of at least "
                f"1. Received: {number!r}."
            )
        self._threads = concurrent.futures.ThreadPoolExecutor(number)
        self._cores = max(1, (os.cpu_count() or 1) // number)

    def submit(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        def in_new_process() -> Any:
            with ProcessPoolExecutor(
                1,
                multiprocessing.get_context("spawn"),
                initializer=_begin_process,
                initargs=(self._cores,),
            ) as pool:
                return pool.submit(function, *args, **kwargs).result()

        return self._threads.submit(in_new_process)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False
    ) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


def _begin_process(cores: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        # A pool's process does not notice that nobody reads its results.
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def running(
    executor: Executor | int | None, problem: Problem
) -> Iterator[Submit]:
    """The `submit` of the executor, or of processes that end afterwards.

    Raises:
        ValueError: if it is no executor, or the problem cannot be sent there.
    """
    if isinstance(executor, Executor):
        yield executor.submit
        return
    number = 1 if executor is None else executor
    if type(number) is not int:
        raise ValueError(
            "`executor` must be a `concurrent.futures.Executor`, a number of "
            f"processes, or `None`. Received: {executor!r}. A Dask client has "
            "`get_executor()`."
        )
    _check_picklable(problem)
    with FreshProcesses(number) as own:
        yield own.submit


def _check_picklable(problem: Problem) -> None:
    interactive = not hasattr(sys.modules["__main__"], "__file__")
    for name, value in vars(problem).items():
        reason = ""
        try:
            pickle.dumps(value)
        except Exception as error:
            reason = str(error)
        if interactive and getattr(value, "__module__", "") == "__main__":
            reason = "it was defined in an interactive session"
        if reason:
            raise ValueError(
                f"`{name}` must be picklable, because every training has a "
                "process of its own: a function at the top level of a module "
                "is, a lambda, a nested function or a `tf.data.Dataset` is "
                f"not. Received: {value!r} ({reason}). Move it to a module, or "
                "pass `executor=keras_mgda.comparison.InProcess()`."
            )


def run_all(
    submit: Callable[[T], "Future[Any]"],
    arguments: Iterable[T],
    note: Callable[[T, "Future[Any]"], None],
) -> None:
    """Submits all, and notes each as it ends.

    If `note` raises, nothing else begins; what runs ends and is noted before
    the error goes on.
    """
    waiting: dict[Future[Any], T] = {}
    try:
        for argument in arguments:
            waiting[submit(argument)] = argument
            # In this process it is over, and may be the last that is.
            for ended in [future for future in waiting if future.done()]:
                note(waiting.pop(ended), ended)
        for ended in concurrent.futures.as_completed(list(waiting)):
            note(waiting.pop(ended), ended)
    except BaseException:
        still = [future for future in waiting if not future.cancel()]
        for ended in concurrent.futures.as_completed(still):
            with contextlib.suppress(Exception):
                note(waiting[ended], ended)
        raise
