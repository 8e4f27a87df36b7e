"""Merges the rows of several requests into one run of the device, and hands every request its own answer.

A batch takes what is there: it waits for nobody unless told to, and while it runs the next one gathers. Requests are
checked before they come here, so that one of them cannot fail the others; when the device fails on several together,
each is run again by itself.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakKeyDictionary

from softkin.batch_times import BatchTimes
from softkin.errors import CancelledError, ExpiredError, UnavailableError
from softkin.logs import log, log_line
from softkin.scores import RowScores, Scores, Share
from softkin.scoring_detector import ScoringDetector
from softkin.tickets import Batch, Ticket, share_verdicts, shares_of

GATHER_SECONDS = 1e-3
"""The wait for further requests goes on while another one arrives within this time."""
LONGEST_GATHER_SECONDS = 5e-3
"""How long that wait may be in all."""
AFTER_FAULT_SECONDS = 0.1
"""How long a worker that could not take a batch waits until it tries again."""


class Batcher:
    """A queue of tickets and the threads that run them.

    A request larger than a batch goes through in slices, between which others get their turn; a smaller one is never
    split. Safe to use from any thread.

    Args:
        workers: batches that may run at the same time.
        max_batch_rows: rows of one batch.
        delay_seconds: how long a batch that is not full may wait for company.
        scored: told about all rows that got their answers together, from a worker thread; must not raise.
        ran: told the rows and seconds of every batch.
        answered: given every ticket with scores, once its caller has them, from a worker thread; must not raise.

    Attributes:
        callers: tells how many calls are under way, each of which may bring a request.
    """

    def __init__(
        self,
        *,
        workers: int,
        max_batch_rows: int,
        delay_seconds: float = 0.0,
        scored: Callable[[Scores], None] = lambda scores: None,
        ran: Callable[[int, float], None] = lambda rows, seconds: None,
        answered: Callable[[Ticket], None] = lambda ticket: None,
    ) -> None:
        self._workers = workers
        self._max_rows = max_batch_rows
        self._delay = delay_seconds
        self._scored = scored
        self._ran = ran
        self.callers: Callable[[], int] = lambda: 0
        self._answered = answered
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._queue: OrderedDict[Ticket, None] = OrderedDict()
        self._queued_rows = 0
        self._running_rows = self._running = 0
        self._last_tickets = 0
        self._closed = False
        # By detector, with which they are forgotten, and by number of neighbours, each of which has a pace of its own.
        self._times: WeakKeyDictionary[ScoringDetector, dict[int, BatchTimes]] = WeakKeyDictionary()
        self._threads = [threading.Thread(target=self._work, name=f"batch-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def queued_rows(self) -> int:
        """Rows that no batch has taken yet."""
        return self._queued_rows

    def expected_seconds(self, ticket: Ticket) -> float:
        """How long the ticket would take if it were submitted now: 0 while nothing is known or nothing is pending."""
        with self._lock:
            times = self._times.get(ticket.detector, {}).get(ticket.num_neighbors)
            ahead = self._queued_rows + self._running_rows
            if times is None or not ahead:  # with nothing pending, try: a wrong guess must not refuse for ever
                return 0.0
            full, rest = divmod(ahead + len(ticket.x), self._max_rows)
            return (full * times.predict(self._max_rows) + (times.predict(rest) if rest else 0.0)) / self._workers

    def submit(self, ticket: Ticket) -> None:
        """Queue a ticket; its `wait` gives the answer. One that is cancelled already is not queued.

        Raises:
            UnavailableError: the batcher is closed.
        """
        with self._lock:
            if self._closed:
                raise UnavailableError("the server is stopping; retry elsewhere")
            if not ticket.done:
                self._enqueue(ticket)
                self._changed.notify()

    def _enqueue(self, ticket: Ticket) -> None:
        ticket.submitted = time.monotonic()
        self._queue[ticket] = None
        self._queued_rows += len(ticket.x)

    def score(self, ticket: Ticket) -> Share:
        """Submit a ticket and wait for its answer, as `Ticket.wait`.

        One caller alone runs the batch itself: to change threads and back takes longer than a small batch.
        """
        with self._lock:
            quiet = self.callers() <= 1 and not (self._queue or self._closed or self._delay or self._last_tickets > 1)
            mine = None
            if quiet and self._running < self._workers and len(ticket.x) <= self._max_rows and not ticket.done:
                self._enqueue(ticket)
                mine = self._take()
        if mine is None:
            self.submit(ticket)
        else:
            self._run(mine)
        return ticket.wait()

    def cancel(self, ticket: Ticket) -> None:
        """Drop a ticket wherever it is; a batch in which nobody is left stops within one chunk of the bank."""
        with self._lock:
            self._end(ticket, CancelledError())
            ticket.error = None  # an earlier one that nobody will take: it holds the ticket, and both would stay

    def close(self) -> None:
        """Run what is queued, take nothing more, and end the threads."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            try:
                batch = self._next()
            except Exception as error:  # memory may be short; what is queued is there still, and a caller for it
                _report(error)
                time.sleep(AFTER_FAULT_SECONDS)
                continue
            if batch is None:
                return
            self._run(batch)
            del batch  # an idle worker must not hold a detector that is served no longer

    def _run(self, batch: Batch) -> None:
        """Run a batch and survive any fault in it: with its worker or its place lost, the queue would wait for ever."""
        try:
            try:
                seconds = self._compute(batch)
            finally:
                self._leave(batch)
            self._note(batch, seconds)
        except Exception as error:
            with self._lock:
                for ticket, _ in batch.tickets:
                    self._end(ticket, error)
            _report(error)

    def _compute(self, batch: Batch) -> float:
        """Give every ticket in it a result, or its next part of one; returns the seconds that it took."""
        started = time.monotonic()
        try:
            for ticket, _ in batch.tickets:
                ticket.started = ticket.started or started
            found = batch.detector.score_rows(
                batch.inputs(), num_neighbors=batch.num_neighbors, cancellation=batch.cancellation
            )
            self._answer(batch, found)
        except CancelledError:
            pass  # every ticket in it has been told
        except Exception as error:
            self._recover(batch, error)
        return time.monotonic() - started

    def _leave(self, batch: Batch) -> None:
        with self._lock:
            self._running_rows -= batch.rows
            self._running -= 1
            if self._closed:
                self._changed.notify_all()  # workers that waited to run what has been cancelled meanwhile end too
            elif self._queue:
                self._changed.notify()
            for ticket, _ in batch.tickets:
                ticket.batches.remove(batch)

    def _note(self, batch: Batch, seconds: float) -> None:
        if not batch.cancellation.cancelled:
            with self._lock:
                times = self._times.setdefault(batch.detector, {})
                times.setdefault(batch.num_neighbors, BatchTimes()).add(batch.rows, seconds)
        self._ran(batch.rows, seconds)

    def _next(self) -> Batch | None:
        while self._await_tickets():
            self._gather()
            with self._lock:
                self._drop_expired(time.monotonic())
                if self._queue and self._running < self._workers:
                    return self._take()
        return None

    def _await_tickets(self) -> bool:
        """Wait until a batch is due; False when there will be none."""
        with self._lock:
            while True:
                now = time.monotonic()
                self._drop_expired(now)
                if self._queue and self._running < self._workers:
                    wait = self._wait_for_company(now)
                    if wait <= 0:
                        return True
                    self._changed.wait(wait)
                elif self._closed and not self._queue:
                    return False
                else:
                    self._changed.wait()

    def _gather(self) -> None:
        """Wait a moment for requests that are on their way, as long as more of them arrive; if none are, do not wait.

        Calls under way that are not in the queue are still being read, or have been answered and are about to be
        followed by others. Streams are no such calls: that they are there shows only in batches of several requests.
        """
        end, waiting = time.monotonic() + LONGEST_GATHER_SECONDS, 0
        while waiting < len(self._queue) and self._queued_rows < self._max_rows and not self._closed:
            if not (self.callers() > len(self._queue) or self._last_tickets > 1) or time.monotonic() >= end:
                break
            waiting = len(self._queue)
            time.sleep(GATHER_SECONDS)

    def _wait_for_company(self, now: float) -> float:
        if not self._delay or self._closed or self._queued_rows >= self._max_rows:
            return 0.0
        return next(iter(self._queue)).submitted + self._delay - now

    def _drop_expired(self, now: float) -> None:
        for ticket in [t for t in self._queue if t.deadline <= now]:
            self._end(ticket, ExpiredError())

    def _take(self) -> Batch:
        first = next(iter(self._queue))
        batch = Batch(first.detector, first.num_neighbors)
        for ticket in self._queue:
            if ticket.detector is not batch.detector or ticket.num_neighbors != batch.num_neighbors:
                continue
            room, left = self._max_rows - batch.rows, len(ticket.x) - ticket.taken
            if left > room and (room < self._max_rows):
                break
            batch.add(ticket, min(left, room))
        for ticket, _ in batch.tickets:
            ticket.batches.append(batch)
        # Only now do they leave the queue: from here on nothing is built, for which memory could be short.
        for ticket, rows in batch.tickets:
            ticket.taken = rows.stop
            if ticket.taken == len(ticket.x):
                del self._queue[ticket]
            else:
                self._queue.move_to_end(ticket)  # the rest of a large request lets the others go first
        self._last_tickets = len(batch.tickets)
        self._queued_rows -= batch.rows
        self._running_rows += batch.rows
        self._running += 1
        if self._queue:
            self._changed.notify()
        return batch

    def _answer(self, batch: Batch, found: RowScores) -> None:
        """Give every ticket its answer; neighbours in the batch that may share verdicts are judged together."""
        position = 0
        runs: list[list[tuple[Ticket, slice]]] = []
        for ticket, rows in batch.tickets:
            here = slice(position, position := position + (rows.stop - rows.start))
            if rows.stop - rows.start < len(ticket.x):
                self._answer_part(ticket, rows.start, found.take(here))
            elif runs and share_verdicts(runs[-1][-1][0], ticket) and runs[-1][-1][1].stop == here.start:
                runs[-1].append((ticket, here))
            else:
                runs.append([(ticket, here)])
        for run in runs:
            rows = slice(run[0][1].start, run[-1][1].stop)
            self._judge(run, found if rows == slice(0, len(found)) else found.take(rows))

    def _answer_part(self, ticket: Ticket, start: int, found: RowScores) -> None:
        with self._lock:
            ticket.parts[start] = found
            complete = sum(map(len, ticket.parts.values())) == len(ticket.x)
        if complete:
            joined = RowScores.concatenate([ticket.parts[at] for at in sorted(ticket.parts)])
            self._judge([(ticket, slice(0, len(ticket.x)))], joined)

    def _judge(self, tickets: list[tuple[Ticket, slice]], found: RowScores) -> None:
        """One set of p-values and verdicts for tickets with the same rule; `found` begins at the first one's rows."""
        started = time.monotonic()
        first = tickets[0][0]
        scores = first.detector.judge(found, first.rule, first.x, smoothing_seed=first.smoothing_seed)
        shares = shares_of(tickets, scores)
        stages = {"infer": found.infer_seconds, "calibrate": time.monotonic() - started}
        for (ticket, _), share in zip(tickets, shares, strict=True):
            share.stage_seconds.update(stages, queue=ticket.started - ticket.submitted)
        live: list[Ticket] = []
        try:
            with self._lock:
                answers = [(t, share) for (t, _), share in zip(tickets, shares, strict=True) if not t.done]
                live = [ticket for ticket, _ in answers]
                for ticket, share in answers:
                    self._settle(ticket, None, share)
        finally:
            for ticket in live:
                if ticket.done:
                    ticket.latch.release()
        if live:
            self._scored(scores)
        for ticket in live:
            self._answered(ticket)
            if ticket.reader is not None:
                ticket.forget_request()

    def _recover(self, batch: Batch, error: Exception) -> None:
        """The device failed on a batch: run every request's rows by themselves, so that only the guilty one fails."""
        for ticket, rows in batch.tickets:
            if ticket.done:
                continue
            failure: BaseException | None = error
            if len(batch.tickets) > 1:
                failure = self._run_alone(batch, ticket, rows)
            if failure is not None:
                with self._lock:
                    self._end(ticket, failure)

    def _run_alone(self, batch: Batch, ticket: Ticket, rows: slice) -> Exception | None:
        alone = Batch(batch.detector, batch.num_neighbors)
        alone.tickets = [(ticket, rows)]
        try:
            found = batch.detector.score_rows(
                alone.inputs(), num_neighbors=batch.num_neighbors, cancellation=batch.cancellation
            )
            self._answer(alone, found)
        except Exception as error:
            return error
        return None

    def _end(self, ticket: Ticket, error: BaseException) -> None:
        """End a ticket without an answer, and stop the running batches in which nobody is left. Holds the lock."""
        if ticket.done:
            return
        try:
            self._settle(ticket, error, None)
        finally:
            ticket.latch.release()
        for batch in ticket.batches:
            if all(t.done for t, _ in batch.tickets):
                batch.cancellation.cancel()

    def _settle(self, ticket: Ticket, error: BaseException | None, share: Share | None) -> None:
        """Give a ticket that has none its result, and leave waking to the caller, whatever happens. Holds the lock."""
        ticket.done, ticket.error, ticket.share = True, error, share
        ticket.parts.clear()
        if ticket in self._queue:
            del self._queue[ticket]
            self._queued_rows -= len(ticket.x) - ticket.taken
        ticket.ended()


def _report(error: Exception) -> None:
    with suppress(MemoryError):
        log.error(log_line("batch_failed"), exc_info=error)
