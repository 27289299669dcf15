//! The store's time, in which permits end: boot time, pushed forward when wall time runs ahead of it.
//!
//! Boot time counts suspend and is not set by anyone, so wall time should never gain on it by much. If it does (a virtual
//! machine that was frozen and thawed, a clock that was wrong), more time may have passed for the rest of the world than for this machine,
//! and a key may have been revoked in it: store time then jumps past every permit there is. No permit has to be found and ended one by
//! one, which with 100,000 tables matters. Wall time that falls behind means nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::io::{Clock, Tick};

/// How far wall time may gain on boot time within one window without meaning anything: more than a clock is corrected by in passing.
const GAIN_NS_MAX: i128 = 10_000_000_000;
/// How long a window is, and the least that store time jumps by: the longest permit there can be, 5 minutes.
const WINDOW_NS: u64 = 300_000_000_000;

/// Store time. See the module's text.
#[derive(Debug)]
pub(crate) struct StoreTime {
    clock: Arc<dyn Clock>,
    /// What store time is ahead of boot time, in nanoseconds. Only grows.
    ahead_ns: AtomicU64,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    began_ns: u64,
    /// Wall time less boot time when it began.
    lead_ns: i128,
}

impl StoreTime {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> StoreTime {
        let boot_ns = clock.tick().0;
        let window = Mutex::new(Window { began_ns: boot_ns, lead_ns: lead_ns(&*clock, boot_ns) });
        StoreTime { clock, ahead_ns: AtomicU64::new(0), window }
    }

    /// Now, by a call to the clock.
    pub(crate) fn now(&self) -> Tick {
        Tick(self.clock.tick().0.saturating_add(self.ahead_ns.load(Ordering::Acquire)))
    }

    /// Compare the clocks, and return what is now. To be called before each unwrap, and several times a second while the store is in use.
    pub(crate) fn advance(&self) -> Tick {
        let mut window = self.window.lock();
        let boot_ns = self.clock.tick().0;
        let lead_ns = lead_ns(&*self.clock, boot_ns);
        let gain_ns = lead_ns - window.lead_ns;
        if gain_ns > GAIN_NS_MAX {
            let jump_ns = u64::try_from(gain_ns).unwrap_or(u64::MAX).max(WINDOW_NS);
            let ahead_ns = self.ahead_ns.load(Ordering::Relaxed).saturating_add(jump_ns);
            self.ahead_ns.store(ahead_ns, Ordering::Release);
        }
        if !(0..=GAIN_NS_MAX).contains(&gain_ns) || boot_ns.saturating_sub(window.began_ns) >= WINDOW_NS {
            *window = Window { began_ns: boot_ns, lead_ns };
        }
        drop(window);
        self.now()
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
}

fn lead_ns(clock: &dyn Clock, boot_ns: u64) -> i128 {
    i128::from(clock.wall_ms()) * 1_000_000 - i128::from(boot_ns)
}
