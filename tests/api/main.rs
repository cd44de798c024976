//! The HTTP contract, from outside: the router in process over a tiny random model, and whole servers
//! on a free port.

mod classify;
mod helpers;
mod info;
mod logs;
mod stress;
