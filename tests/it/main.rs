//! One test binary with a module per promise.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests prepare and inspect files as a user or an attacker would, with threads and clocks of their own"
)]

#[cfg(strongroom_plaintext_baseline)]
mod baseline;
mod bench_cli;
mod canary;
mod cli;
mod concurrency;
mod crash;
mod dynamodb;
mod errors;
mod examples;
mod faults;
mod golden;
mod history;
mod inaccessible;
mod inspect;
mod key_faults;
mod kill;
mod kms;
mod layers;
mod many;
mod memory;
mod metrics;
mod model;
mod permits;
mod pressure;
mod providers;
mod reads;
mod rekey_faults;
mod rotate;
mod sessions;
mod shutdown;
mod smoke;
mod tamper;
mod threads;
#[cfg(feature = "tracing")]
mod tracing;
#[cfg(feature = "trail")]
mod trail;
#[cfg(feature = "cli")]
mod trail_queries;
mod world;
