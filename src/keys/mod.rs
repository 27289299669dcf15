//! Key life: who may use which key of which table, until when, and what ends with it.

mod provider;

pub use provider::*;
