//! One test binary with a module per promise.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests prepare and inspect files as a user or an attacker would"
)]

#[cfg(strongroom_plaintext_baseline)]
mod baseline;
mod cli;
mod concurrency;
mod inspect;
mod layers;
mod permits;
mod smoke;
