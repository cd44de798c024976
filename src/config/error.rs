//! Why the settings are wrong.

use std::net::IpAddr;
use std::path::PathBuf;

use thiserror::Error;

/// Why the settings are wrong.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The settings file cannot be read.
    #[error("settings file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The settings file is not TOML of the right shape.
    #[error("settings file {}: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<toml::de::Error>,
    },
    /// A key that is no setting.
    #[error("unknown setting `{key}` in {}{hint}", path.display())]
    UnknownKey {
        /// The key.
        key: String,
        /// The file.
        path: PathBuf,
        /// The nearest right one.
        hint: String,
    },
    /// A variable that is no setting.
    #[error("unknown environment variable `{name}`{hint}")]
    UnknownEnv {
        /// The variable.
        name: String,
        /// The nearest right one.
        hint: String,
    },
    /// A number out of range.
    #[error("`{key}` is {actual}, it must lie between {low} and {high}")]
    Range {
        /// The setting.
        key: &'static str,
        /// Its value.
        actual: String,
        /// The least value allowed.
        low: String,
        /// The greatest value allowed.
        high: String,
    },
    /// A value that cannot be understood.
    #[error("`{key}`: {reason}")]
    Value {
        /// The setting.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A queue that one allowed request overfills.
    #[error(
        "`serve.max_waiting_items` is {max_waiting_items}, less than `serve.max_items` ({max_items}): \
         a request of allowed size could never be taken; raise the first or lower the second"
    )]
    Waiting {
        /// Most items in one request.
        max_items: usize,
        /// Most items waiting.
        max_waiting_items: usize,
    },
    /// One of certificate and key.
    #[error("`serve.tls_cert` and `serve.tls_key` go together; give both or neither")]
    HalfTls,
    /// A collector, and nothing that could send to it.
    #[error(
        "`serve.otlp_endpoint` is given, but this program was built without OpenTelemetry; build it with \
         `cargo build --release --features otlp`, or leave the setting out"
    )]
    NoOtlp,
    /// Listening beyond this machine without keys and without saying so.
    #[error(
        "`serve.host` {host} can be reached from other machines and nobody would need a key; \
         give --keys FILE (see `triage keys new`), or --allow-remote if that is wanted, or use 127.0.0.1"
    )]
    Remote {
        /// The address.
        host: IpAddr,
    },
}
