//! One function per role: build the parts, run them.

pub mod audit_labels;
pub mod check;
pub mod classify;
pub mod encode;
pub mod evaluate;
pub mod models;
pub mod score;
pub mod select;
pub mod serve;
pub mod train;
mod watch;

use indicatif::ProgressStyle;

/// Bar with rate and remaining time.
fn progress_style(verb: &str) -> anyhow::Result<ProgressStyle> {
    let template = format!("{verb} {{bar:30}} {{pos}}/{{len}} {{per_sec}} 剩余 {{eta}} {{msg}}");
    Ok(ProgressStyle::with_template(&template)?)
}
