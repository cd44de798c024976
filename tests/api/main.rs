//! The HTTP contract, from outside: the router in process over a tiny random model, and whole servers
//! on a free port.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod access;
mod classify;
mod compatible;
mod contract;
mod helpers;
mod hostile;
mod idempotency;
mod info;
mod logs;
mod observed;
mod stress;
mod swap;
