//! How fast writers may go while background work is behind: a token bucket that is filled at the measured rate at which that work gets done.
//!
//! ```text
//! how full        slow ─────────────────── half ─────────────────── stop
//! writers' rate   twice the drain's        the drain's              next to nothing
//! ```
//! *How full* is the place of memory, or of a table's level 0, between the mark where writers are slowed and the mark where they are stopped. At half
//! way writers go just as fast as the work behind them, so that is where a sustained load comes to rest, wherever the
//! true rate lies between half of the measured one and many times it. The hard stop remains for work that does not get done at all.
//!
//! A write is let in and pays afterwards: what it costs is added to a date, and whoever finds the date too far ahead waits until it. So a wait is
//! short (about [`PATIENCE`], or what one write costs if that is more), and nobody asks again and again.
//!
//! Pure but for the atomics: time comes in as ticks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::io::Tick;

/// Nobody waits while less than this is owed: the system's own timers are no finer than a quarter of it.
const PATIENCE: Duration = Duration::from_micros(200);
/// Time that was not used is not saved up beyond this: it makes good for waits that lasted longer than they should.
const CREDIT: Duration = Duration::from_millis(1);
/// No more than this is ever owed, whatever a single write cost.
const DEBT_MAX: Duration = Duration::from_millis(100);
/// The least that writers may do, however slow the work behind them seems to be.
const RATE_MIN: u64 = 1 << 20;
/// A measurement of no time at all, as in a simulation, says no more than that it was fast.
const RATE_MAX: u64 = 1 << 40;

/// How far something is between the mark where writers are slowed and the mark where they are stopped, in thousandths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Fill(u32);

impl Fill {
    /// From here on writers are stopped.
    pub(crate) const STOP: Fill = Fill(1000);

    /// Where `level` lies between `slow` and `stop`; none below `slow`.
    pub(crate) fn of(level: u64, slow: u64, stop: u64) -> Option<Fill> {
        if level >= stop {
            return Some(Fill::STOP);
        }
        let above = level.checked_sub(slow)?;
        // At most 999: `above` is less than what it is divided by.
        Some(Fill((u128::from(above) * 1000 / u128::from(stop - slow)) as u32))
    }

    /// Bytes per second that writers may do while the work behind them does `drain`.
    fn rate(self, drain: u64) -> u64 {
        (u128::from(drain) * 2 * u128::from(1000 - self.0.min(999)) / 1000).min(u128::from(RATE_MAX)) as u64
    }
}

/// The date until which writers have used up what they may do.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    paid_until: AtomicU64,
}

impl Bucket {
    /// Let in a write of so many bytes; the date to wait for first, if any.
    pub(crate) fn take(&self, now: Tick, bytes: u64, fill: Fill, drain: u64) -> Option<Tick> {
        let rate = fill.rate(drain).max(RATE_MIN);
        let cost_ns = (u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64;
        let earliest = now.0.saturating_sub(CREDIT.as_nanos() as u64);
        let latest = now.after(DEBT_MAX).0;
        let paid = |before: u64| Some(before.max(earliest).saturating_add(cost_ns).min(latest));
        let before = self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid);
        // The date never lies further ahead than what was owed at most when it was set.
        let date = Tick(before.unwrap_or_else(|before| before).min(latest));
        (date > now.after(PATIENCE)).then_some(date)
    }
}

/// How fast a kind of background work has lately been, in bytes that writers wrote per second.
#[derive(Debug)]
pub(crate) struct Drain {
    rate: AtomicU64,
}

impl Drain {
    /// What is assumed until it is measured.
    pub(crate) fn new(rate: u64) -> Drain {
        Drain { rate: AtomicU64::new(rate) }
    }

    /// Bytes per second.
    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// A piece of work took from `began` to `ended`.
    pub(crate) fn note(&self, bytes: u64, began: Tick, ended: Tick) {
        if bytes == 0 {
            return;
        }
        let nanos = ended.0.saturating_sub(began.0).max(1);
        let rate = (u128::from(bytes) * 1_000_000_000 / u128::from(nanos)).min(u128::from(RATE_MAX)) as u64;
        // A quarter of what is new: one slow job among fast ones does not decide.
        self.rate.store((self.rate() / 4 * 3).saturating_add(rate / 4), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn fullness_runs_from_the_slow_mark_to_the_stop_mark() {
        // Marks mixed up would stop writers that have room, or let memory grow without end.
        let fill = |level| Fill::of(level, 100, 300);
        assert_eq!((fill(0), fill(99), fill(100)), (None, None, Some(Fill(0))));
        assert_eq!((fill(200), fill(299)), (Some(Fill(500)), Some(Fill(995))));
        assert_eq!((fill(300), fill(u64::MAX)), (Some(Fill::STOP), Some(Fill::STOP)));
        assert_eq!(Fill::of(5, 7, 7), None, "marks may coincide");
        assert_eq!(Fill::of(7, 7, 7), Some(Fill::STOP));
    }

    #[test]
    fn writers_may_do_twice_what_is_drained_at_the_slow_mark_and_as_much_at_half_way() {
        // A rate that does not meet the drain's in between has no place to come to rest: it would run into the stop.
        assert_eq!(Fill(0).rate(100 << 20), 200 << 20);
        assert_eq!(Fill(500).rate(100 << 20), 100 << 20);
        assert_eq!(Fill(999).rate(100_000), 200);
        assert_eq!(Fill::STOP.rate(100_000), 200, "whoever is let in all the same pays as if it were almost full");
        assert_eq!(Fill(0).rate(u64::MAX), RATE_MAX);
    }

    #[test]
    fn small_writes_are_let_through_until_a_wait_is_worth_its_while() {
        // A system call per commit would cost more than the delay that is meant.
        let (bucket, now) = (Bucket::default(), Tick(1_000 * MS));
        let drain = 50 << 20;
        let mut let_in = 0;
        let date = loop {
            match bucket.take(now, 100, Fill(500), drain) {
                None => let_in += 1,
                Some(date) => break date,
            }
        };
        // A millisecond of credit and 0.2 ms of patience at 1.9 us each.
        assert!((600..660).contains(&let_in), "{let_in}");
        assert!(date.0 - now.0 <= 210_000, "{} ns", date.0 - now.0);
    }

    #[test]
    fn a_huge_write_or_a_clock_that_leaps_never_makes_anybody_wait_longer_than_the_most() {
        // A batch of a gigabyte at a megabyte a second would put every other writer to sleep for a quarter of an hour.
        let (bucket, now) = (Bucket::default(), Tick(1_000 * MS));
        assert_eq!(bucket.take(now, 1 << 30, Fill(990), 1), None, "it pays afterwards");
        assert_eq!(bucket.take(now, 1, Fill(990), 1), Some(now.after(DEBT_MAX)));
        assert_eq!(bucket.take(now.after(DEBT_MAX), 1, Fill(990), 1), None);
        let back = Tick(10 * MS);
        assert!(bucket.take(back, 1, Fill(0), 1 << 30).is_none_or(|date| date <= back.after(DEBT_MAX)));
    }

    /// Writers of `writers` threads against work that gets `drain` bytes done per second while `measured` is what was measured: the longest wait,
    /// the bytes written in the second half of the time, and how full it ever was.
    fn run(writers: usize, write_bytes: u64, drain: u64, measured: u64, seconds: u64) -> (u64, u64, Fill) {
        let (slow, stop) = (8 << 20, 12 << 20);
        let (bucket, end) = (Bucket::default(), Tick((1 + seconds) * 1_000 * MS));
        let half = (end.0 - 1_000 * MS) / 2 + 1_000 * MS;
        // Each writer is somewhere in time; who is earliest acts next. Ten microseconds is what a commit costs.
        let mut threads = vec![Tick(1_000 * MS); writers];
        let (mut written, mut late, mut longest, mut fullest) = (0u64, 0u64, 0u64, Fill(0));
        while let Some(at) = (0..writers).min_by_key(|thread| threads[*thread]).filter(|at| threads[*at] < end) {
            let now = threads[at];
            let drained = ((now.0 - 1_000 * MS) as u128 * drain as u128 / 1_000_000_000) as u64;
            written = written.max(drained);
            let fill = Fill::of(written - drained, slow, stop);
            fullest = fullest.max(fill.unwrap_or(Fill(0)));
            let date = fill.and_then(|fill| bucket.take(now, write_bytes, fill, measured));
            let wait = date.map_or(0, |date| date.0 - now.0);
            // A wait lasts some 60 us longer than it should.
            let overslept = if wait > 0 { 60_000 } else { 0 };
            longest = longest.max(wait + overslept);
            written += write_bytes;
            late += if now.0 >= half { write_bytes } else { 0 };
            threads[at] = Tick(now.0 + wait + overslept + 10_000);
        }
        (longest, late, fullest)
    }

    #[test]
    fn under_full_load_writers_keep_pace_with_the_drain_in_small_delays_and_are_never_stopped() {
        // Otherwise a store under load stands still for seconds again and again, which is what users of engines of this kind know.
        for (writers, drain, measured) in [
            (1, 40 << 20, 40 << 20),
            (1, 20 << 20, 40 << 20),
            (1, 40 << 20, 10 << 20),
            (4, 25 << 20, 25 << 20),
            (8, 40 << 20, 160 << 20),
        ] {
            let seconds = 4;
            let (longest, late, fullest) = run(writers, 580, drain, measured, seconds);
            let what = format!("{writers} writers, {drain} drained, {measured} measured");
            assert!(longest < MS, "{what}: a wait of {longest} ns");
            assert!(fullest < Fill::STOP, "{what}: stopped");
            let expected = drain * seconds / 2;
            let slowest = if measured < drain / 2 { expected / 2 } else { expected * 9 / 10 };
            assert!((slowest..expected * 11 / 10).contains(&late), "{what}: {late} bytes instead of {expected}");
        }
    }

    #[test]
    fn what_is_measured_follows_the_work_and_not_one_slow_job() {
        // A single fsync that took a second would otherwise hold writers to its rate.
        let drain = Drain::new(64 << 20);
        drain.note(32 << 20, Tick(0), Tick(32_000 * MS));
        assert_eq!(drain.rate(), (48 << 20) + (1 << 18));
        for _ in 0..30 {
            drain.note(32 << 20, Tick(0), Tick(250 * MS));
        }
        assert!(((127 << 20)..(129 << 20)).contains(&drain.rate()), "{}", drain.rate());
        drain.note(0, Tick(0), Tick(1));
        drain.note(1 << 30, Tick(5), Tick(5));
        assert!(drain.rate() <= RATE_MAX, "no time at all is no infinite rate");
    }
}
