//! One function per role: build the parts, run them.

pub mod encode;
