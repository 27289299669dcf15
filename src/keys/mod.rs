//! Key life: who may use which key of which table, until when, and what ends with it.

mod local;
mod provider;

pub use local::{LocalKms, Unlock};
pub use provider::*;
