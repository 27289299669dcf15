//! The thread on which the SDK's asynchronous calls run, and the waiting side of it.
//!
//! ```text
//! caller's thread           driver's thread: one async runtime
//!   call ── job ───────────────►  job ── attempt ─► KMS
//!     │ waits on a signal           │  ◄─ transient? a random wait, and again, while there is time
//!     ◄──────── answer ─────────────┘
//! ```
//! Blocking on a future inside the caller's own runtime would panic, or stall it for ever; a thread of our own does neither. The caller
//! waits a little longer than the job may take, so that it gets an answer even if something on the thread does not yield.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::super::provider::ProviderResult;
use crate::error::{ProviderClass, ProviderError, ProviderReason};
use crate::io::{Entropy, Environment, Join, Signal, Step, Task};

/// The longest first wait before another attempt. Doubled each time.
const WAIT: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(2);
/// How much longer than the job the caller waits.
const GRACE: Duration = Duration::from_secs(1);

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Owns the thread, and ends it when dropped.
pub(super) struct Driver {
    /// `None` while it is dropped.
    jobs: Option<UnboundedSender<Job>>,
    thread: Box<dyn Join>,
    environment: Environment,
}

impl Driver {
    pub(super) fn start() -> ProviderResult<Driver> {
        let environment = Environment::os();
        let (jobs, queue) = unbounded_channel();
        let thread = environment.scheduler.spawn("aws-kms", Box::new(Loop(queue))).map_err(|error| {
            ProviderError::new(ProviderReason::Unreachable, format!("no thread for requests to KMS: {error}"))
        })?;
        Ok(Driver { jobs: Some(jobs), thread, environment })
    }

    /// Make attempts on the driver's thread until one succeeds or fails for good, one attempt only unless `retry`, and wait for the
    /// outcome, which comes within about `limit`.
    pub(super) fn call<T, F>(
        &self,
        limit: Duration,
        retry: bool,
        attempt: impl Fn() -> F + Send + 'static,
    ) -> ProviderResult<T>
    where
        T: Send + 'static,
        F: Future<Output = ProviderResult<T>> + Send + 'static,
    {
        let outcome = Arc::new(Outcome { answer: Mutex::new(None), answered: Signal::new() });
        let answerer = Answerer(outcome.clone());
        let entropy = self.environment.entropy.clone();
        let job = Box::pin(async move { answerer.answer(attempts(limit, retry, &*entropy, attempt).await) });
        if self.jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err()) {
            let message = "the thread for requests to KMS could not make an async runtime";
            return Err(ProviderError::new(ProviderReason::Unreachable, message));
        }
        let Environment { clock, scheduler, .. } = &self.environment;
        let deadline = clock.tick().after(limit.saturating_add(GRACE));
        scheduler.wait_until(&outcome.answered, &**clock, Some(deadline), &mut || outcome.answer.lock().is_some());
        outcome.answer.lock().take().unwrap_or_else(|| Err(timed_out(limit)))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // A panic on the thread has been answered for where it happened.
        let _ = self.thread.join();
    }
}

/// Runs jobs, as many at a time as there are, until nobody can send any more.
struct Loop(UnboundedReceiver<Job>);

impl Task for Loop {
    fn step(&mut self) -> Step {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            // Dropping the queue tells those who send.
            return Step::Done;
        };
        runtime.block_on(async {
            while let Some(job) = self.0.recv().await {
                tokio::spawn(job);
            }
        });
        // Does not wait for what some HTTP client may still be doing, such as looking up a name.
        runtime.shutdown_background();
        Step::Done
    }
}

struct Outcome<T> {
    answer: Mutex<Option<ProviderResult<T>>>,
    answered: Signal,
}

/// Answers in any case: also when the job panics, or is dropped with the runtime.
struct Answerer<T>(Arc<Outcome<T>>);

impl<T> Answerer<T> {
    fn answer(self, answer: ProviderResult<T>) {
        *self.0.answer.lock() = Some(answer);
    }
}

impl<T> Drop for Answerer<T> {
    fn drop(&mut self) {
        self.0.answer.lock().get_or_insert_with(|| {
            Err(ProviderError::new(ProviderReason::UnexpectedAnswer, "the request to KMS was not finished"))
        });
        self.0.answered.raise();
    }
}

async fn attempts<T, F>(
    limit: Duration,
    retry: bool,
    entropy: &dyn Entropy,
    attempt: impl Fn() -> F,
) -> ProviderResult<T>
where
    F: Future<Output = ProviderResult<T>>,
{
    let deadline = Instant::now() + limit;
    let mut wait = WAIT;
    loop {
        let error = match tokio::time::timeout_at(deadline, attempt()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => return Err(timed_out(limit)),
        };
        let next = Instant::now() + random_part(wait, entropy);
        if !retry || error.class() != ProviderClass::Transient || next >= deadline {
            return Err(error);
        }
        tokio::time::sleep_until(next).await;
        wait = WAIT_MAX.min(2 * wait);
    }
}

/// Between nothing and all of it, so that many who failed together do not come back together.
fn random_part(longest: Duration, entropy: &dyn Entropy) -> Duration {
    let mut bytes = [0; 4];
    // Without randomness it is the longest.
    let part = entropy.fill(&mut bytes).map_or(u32::MAX, |()| u32::from_le_bytes(bytes));
    longest.mul_f64(f64::from(part) / f64::from(u32::MAX))
}

fn timed_out(limit: Duration) -> ProviderError {
    ProviderError::new(ProviderReason::TimedOut, format!("KMS gave no answer within {limit:?}"))
}
