//! The settings file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::args::{LogFormat, LogLevel};
use super::error::ConfigError;
use super::hint;

/// The settings file; also what `--print-config` shows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) models: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_dict: Option<PathBuf>,
    pub(super) threads: Option<usize>,
    pub(super) exact: Option<bool>,
    pub(super) serve: FileServe,
    pub(super) log: FileLog,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileServe {
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) allow_remote: Option<bool>,
    pub(super) max_body_bytes: Option<usize>,
    pub(super) max_items: Option<usize>,
    pub(super) max_waiting_items: Option<usize>,
    pub(super) max_batch_tokens: Option<usize>,
    pub(super) drain_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keys: Option<PathBuf>,
    pub(super) cors_origins: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tls_key: Option<PathBuf>,
    pub(super) cache_mib: Option<usize>,
    pub(super) replay_mib: Option<usize>,
    pub(super) replay_seconds: Option<u64>,
    pub(super) write_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) otlp_endpoint: Option<String>,
    pub(super) head_seconds: Option<u64>,
    pub(super) max_connections: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileLog {
    pub(super) format: Option<LogFormat>,
    pub(super) level: Option<LogLevel>,
}

/// Settings that may be absent from [`Config::to_toml`].
#[cfg(test)]
pub(super) const OPTIONAL_KEYS: [&str; 6] =
    ["model", "user_dict", "serve.keys", "serve.tls_cert", "serve.tls_key", "serve.otlp_endpoint"];

/// Keys of the settings file, for naming the nearest one; a test keeps them equal to [`File`].
pub(super) const KEYS: [&str; 26] = [
    "model",
    "models",
    "user_dict",
    "threads",
    "exact",
    "serve.host",
    "serve.port",
    "serve.allow_remote",
    "serve.max_body_bytes",
    "serve.max_items",
    "serve.max_waiting_items",
    "serve.max_batch_tokens",
    "serve.drain_seconds",
    "serve.keys",
    "serve.cors_origins",
    "serve.tls_cert",
    "serve.tls_key",
    "serve.cache_mib",
    "serve.replay_mib",
    "serve.replay_seconds",
    "serve.write_seconds",
    "serve.otlp_endpoint",
    "serve.head_seconds",
    "serve.max_connections",
    "log.format",
    "log.level",
];

/// The file at `path`, its keys checked.
///
/// # Errors
/// [`ConfigError`] when it cannot be read or has a key that is no setting.
pub(super) fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.into(), source })?;
    let invalid = |source| ConfigError::Toml { path: path.into(), source: Box::new(source) };
    let table: toml::Table = text.parse().map_err(invalid)?;
    for (section, value) in &table {
        let keys: Vec<String> = match value {
            toml::Value::Table(inner) if !KEYS.contains(&section.as_str()) => {
                inner.keys().map(|it| format!("{section}.{it}")).collect()
            }
            _ => vec![section.clone()],
        };
        for key in keys {
            // `serve = 1` is left to serde, which names the type it wants.
            let is_section = KEYS.iter().any(|it| it.starts_with(&format!("{key}.")));
            if !is_section && !KEYS.contains(&key.as_str()) {
                let hint = hint(&key, KEYS);
                return Err(ConfigError::UnknownKey { key, path: path.into(), hint });
            }
        }
    }
    toml::from_str(&text).map_err(invalid)
}
