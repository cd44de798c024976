//! One function per role: build the parts, run them.

pub mod audit_labels;
pub mod check;
pub mod classify;
pub mod encode;
pub mod evaluate;
pub mod keys;
pub mod models;
pub mod score;
pub mod select;
pub mod serve;
pub mod train;
mod watch;

use std::path::Path;

use indicatif::ProgressStyle;

use crate::config::Config;
use crate::model::runtime::Precision;
use crate::pipeline::{Pipeline, PipelineError};

/// Bar with rate and remaining time.
fn progress_style(verb: &str) -> anyhow::Result<ProgressStyle> {
    let template = format!("{verb} {{bar:30}} {{pos}}/{{len}} {{per_sec}} 剩余 {{eta}} {{msg}}");
    Ok(ProgressStyle::with_template(&template)?)
}

/// The model the settings name.
fn load_pipeline(config: &Config) -> Result<Pipeline, PipelineError> {
    load_version(&config.model, config)
}

/// The model in `dir`, computed as the settings say.
fn load_version(dir: &Path, config: &Config) -> Result<Pipeline, PipelineError> {
    Pipeline::load(dir, config.user_dict.as_deref(), precision(config))
}

fn precision(config: &Config) -> Precision {
    if config.exact { Precision::F32 } else { Precision::Int8 }
}
