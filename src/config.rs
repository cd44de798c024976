//! Settings: what the operator typed (flags, `TRIAGE_*` variables, one TOML file) made into a
//! checked, typed [`Config`]. The only reader of the environment.
//!
//! A flag wins over the environment, the environment over the file, the file over the default.
//! What belongs to a trained version (labels, chunk length, temperatures) is in its bundle, not here.

mod args;
mod error;
mod file;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use self::args::parse_host;
use self::file::{File, FileLog, FileServe};

pub use self::args::{CommonArgs, LogFormat, LogLevel, ServeSettings};
pub use self::error::ConfigError;

/// The settings file looked for in the current directory when none is named.
pub const DEFAULT_FILE: &str = "triage.toml";
/// The models directory used when none is named.
pub const DEFAULT_MODELS: &str = "models";
/// The bundle in it that is used when neither a flag nor a registry names one.
pub const SHIPPED_MODEL: &str = "triage-base";
/// What OpenTelemetry's own programs read.
const OTLP_ENV: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Every environment variable of ours starts so.
pub const ENV_PREFIX: &str = "TRIAGE_";

/// The checked settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Bundle directory; found, unless it exists nowhere.
    pub model: PathBuf,
    /// Whether somebody named the bundle; if nobody did, the registry's production goes before the
    /// shipped one.
    pub is_model_named: bool,
    /// Directory of the versions and of their registry.
    pub models: PathBuf,
    /// Extra jieba dictionary.
    pub user_dict: Option<PathBuf>,
    /// Threads that compute.
    pub threads: NonZeroUsize,
    /// Compute in floats as in training, instead of whole numbers.
    pub exact: bool,
    /// The service.
    pub serve: ServeConfig,
    /// The log.
    pub log: LogConfig,
}

/// Settings of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// Where to listen.
    pub address: SocketAddr,
    /// Listening beyond this machine is wanted.
    pub allow_remote: bool,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Most items in one request.
    pub max_items: usize,
    /// Most items waiting for the model.
    pub max_waiting_items: usize,
    /// Most tokens in one forward pass.
    pub max_batch_tokens: usize,
    /// Longest time a stopping server finishes what it took, in seconds.
    pub drain_seconds: u64,
    /// File of hashed keys; everybody may call when there is none.
    pub keys: Option<PathBuf>,
    /// Origins whose pages may call, such as `https://console.example.org`.
    pub cors_origins: Vec<String>,
    /// Certificate chain and private key, when the service speaks TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Memory for answers already given, in MiB; 0 for none.
    pub cache_mib: usize,
    /// Memory for answers to requests with an `Idempotency-Key`, in MiB; 0 to overlook the header.
    pub replay_mib: usize,
    /// Longest time such an answer is kept, in seconds.
    pub replay_seconds: u64,
    /// Longest time a caller takes to read an answer, in seconds.
    pub write_seconds: u64,
    /// Address of an OpenTelemetry collector that takes OTLP over HTTP; spans go nowhere when there is none.
    pub otlp_endpoint: Option<String>,
    /// Longest time for a request's head, and for an idle connection, in seconds.
    pub head_seconds: u64,
    /// Most connections at once.
    pub max_connections: usize,
}

/// Settings of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// Form.
    pub format: LogFormat,
    /// Least grave lines shown.
    pub level: LogLevel,
}

impl Config {
    /// The settings in force. `serve` is the default for commands that do not serve.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that cannot be read, an unknown key, or a value out of range.
    pub fn load(common: &CommonArgs, serve: &ServeSettings) -> Result<Self, ConfigError> {
        let named = common.config.as_deref();
        let default = Path::new(DEFAULT_FILE);
        let mut file = match named.or_else(|| default.is_file().then_some(default)) {
            Some(path) => file::read(path)?,
            None => File::default(),
        };
        if cfg!(feature = "otlp") && file.serve.otlp_endpoint.is_none() {
            file.serve.otlp_endpoint = std::env::var(OTLP_ENV).ok().filter(|it| !it.is_empty());
        }
        Self::merge(common, serve, file)
    }

    /// Settings for tests: the defaults, a free port.
    pub fn for_tests() -> Self {
        let serve = ServeSettings { port: Some(0), ..ServeSettings::default() };
        Self::merge(&CommonArgs::default(), &serve, File::default())
            .expect("the defaults are valid")
    }

    fn merge(common: &CommonArgs, serve: &ServeSettings, file: File) -> Result<Self, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads =
            in_range("threads", common.threads.or(file.threads).unwrap_or(cores), 1..=1024)?;
        let host = match (serve.host, &file.serve.host) {
            (Some(host), _) => host,
            (None, Some(host)) => parse_host(host)
                .map_err(|reason| ConfigError::Value { key: "serve.host", reason })?,
            (None, None) => Ipv4Addr::LOCALHOST.into(),
        };
        let port = serve.port.or(file.serve.port).unwrap_or(8080);
        let allow_remote = serve.allow_remote.or(file.serve.allow_remote).unwrap_or(false);
        let keys = serve.keys.clone().or(file.serve.keys);
        if !host.is_loopback() && keys.is_none() && !allow_remote {
            return Err(ConfigError::Remote { host });
        }
        let tls = match (
            serve.tls_cert.clone().or(file.serve.tls_cert),
            serve.tls_key.clone().or(file.serve.tls_key),
        ) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(ConfigError::HalfTls),
        };
        let cors_origins =
            serve.cors_origins.clone().or(file.serve.cors_origins).unwrap_or_default();
        if let Some(origin) = cors_origins.iter().find(|it| !is_origin(it)) {
            let reason = format!(
                "`{origin}` is no origin; write scheme, host and port, such as https://console.example.org"
            );
            return Err(ConfigError::Value { key: "serve.cors_origins", reason });
        }
        let otlp_endpoint = serve.otlp_endpoint.clone().or(file.serve.otlp_endpoint);
        if let Some(endpoint) = &otlp_endpoint {
            if !cfg!(feature = "otlp") {
                return Err(ConfigError::NoOtlp);
            }
            if !is_origin(endpoint.trim_end_matches('/')) || endpoint.starts_with("https") {
                let reason = format!(
                    "`{endpoint}` cannot be used; write scheme, host and port of a collector beside the service, \
                     such as http://127.0.0.1:4318"
                );
                return Err(ConfigError::Value { key: "serve.otlp_endpoint", reason });
            }
        }
        let number = |key, flag: Option<usize>, file: Option<usize>, default, range| {
            in_range(key, flag.or(file).unwrap_or(default), range)
        };
        let max_items =
            number("serve.max_items", serve.max_items, file.serve.max_items, 256, 1..=65_536)?;
        let max_waiting_items = number(
            "serve.max_waiting_items",
            serve.max_waiting_items,
            file.serve.max_waiting_items,
            4096,
            1..=1 << 20,
        )?;
        if max_waiting_items < max_items {
            return Err(ConfigError::Waiting { max_items, max_waiting_items });
        }
        let model = common.model.clone().or(file.model);
        let is_model_named = model.is_some();
        let models =
            locate(common.models.clone().or(file.models).unwrap_or_else(|| DEFAULT_MODELS.into()));
        Ok(Self {
            model: model.map_or_else(|| shipped(&models), locate),
            is_model_named,
            models,
            user_dict: common.user_dict.clone().or(file.user_dict),
            threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
            exact: common.exact.or(file.exact).unwrap_or(false),
            serve: ServeConfig {
                address: SocketAddr::new(host, port),
                allow_remote,
                max_body_bytes: number(
                    "serve.max_body_bytes",
                    serve.max_body_bytes,
                    file.serve.max_body_bytes,
                    4 << 20,
                    1024..=256 << 20,
                )?,
                max_items,
                max_waiting_items,
                max_batch_tokens: number(
                    "serve.max_batch_tokens",
                    serve.max_batch_tokens,
                    file.serve.max_batch_tokens,
                    4096,
                    64..=1 << 20,
                )?,
                drain_seconds: in_range(
                    "serve.drain_seconds",
                    serve.drain_seconds.or(file.serve.drain_seconds).unwrap_or(30),
                    0..=3600,
                )?,
                keys,
                cors_origins,
                tls,
                cache_mib: number(
                    "serve.cache_mib",
                    serve.cache_mib,
                    file.serve.cache_mib,
                    16,
                    0..=65_536,
                )?,
                replay_mib: number(
                    "serve.replay_mib",
                    serve.replay_mib,
                    file.serve.replay_mib,
                    16,
                    0..=65_536,
                )?,
                replay_seconds: in_range(
                    "serve.replay_seconds",
                    serve.replay_seconds.or(file.serve.replay_seconds).unwrap_or(600),
                    1..=86_400,
                )?,
                write_seconds: in_range(
                    "serve.write_seconds",
                    serve.write_seconds.or(file.serve.write_seconds).unwrap_or(30),
                    1..=3600,
                )?,
                otlp_endpoint,
                head_seconds: in_range(
                    "serve.head_seconds",
                    serve.head_seconds.or(file.serve.head_seconds).unwrap_or(30),
                    1..=3600,
                )?,
                max_connections: number(
                    "serve.max_connections",
                    serve.max_connections,
                    file.serve.max_connections,
                    4096,
                    1..=1 << 20,
                )?,
            },
            log: LogConfig {
                format: common.log_format.or(file.log.format).unwrap_or_default(),
                level: common.log_level.or(file.log.level).unwrap_or_default(),
            },
        })
    }

    /// The model that is served before anything was promoted.
    pub fn shipped_model(&self) -> PathBuf {
        shipped(&self.models)
    }

    /// The settings in force, as a settings file.
    pub fn to_toml(&self) -> String {
        let serve = &self.serve;
        let file = File {
            // A default written down would pin the model, whatever is promoted later.
            model: self.is_model_named.then(|| self.model.clone()),
            models: Some(self.models.clone()),
            user_dict: self.user_dict.clone(),
            threads: Some(self.threads.get()),
            exact: Some(self.exact),
            serve: FileServe {
                host: Some(serve.address.ip().to_string()),
                port: Some(serve.address.port()),
                allow_remote: Some(serve.allow_remote),
                max_body_bytes: Some(serve.max_body_bytes),
                max_items: Some(serve.max_items),
                max_waiting_items: Some(serve.max_waiting_items),
                max_batch_tokens: Some(serve.max_batch_tokens),
                drain_seconds: Some(serve.drain_seconds),
                keys: serve.keys.clone(),
                cors_origins: Some(serve.cors_origins.clone()),
                tls_cert: serve.tls.as_ref().map(|it| it.0.clone()),
                tls_key: serve.tls.as_ref().map(|it| it.1.clone()),
                cache_mib: Some(serve.cache_mib),
                replay_mib: Some(serve.replay_mib),
                replay_seconds: Some(serve.replay_seconds),
                write_seconds: Some(serve.write_seconds),
                otlp_endpoint: serve.otlp_endpoint.clone(),
                head_seconds: Some(serve.head_seconds),
                max_connections: Some(serve.max_connections),
            },
            log: FileLog { format: Some(self.log.format), level: Some(self.log.level) },
        };
        toml::to_string(&file).expect("numbers, names and paths are TOML")
    }
}

/// # Errors
/// [`ConfigError::UnknownEnv`] for a variable that starts with [`ENV_PREFIX`] and that no flag of
/// `command` or of its subcommands reads.
pub fn check_environment(command: &clap::Command) -> Result<(), ConfigError> {
    check_names(command, std::env::vars_os().map(|(name, _)| name))
}

fn check_names(
    command: &clap::Command,
    names: impl Iterator<Item = OsString>,
) -> Result<(), ConfigError> {
    let known: Vec<String> = std::iter::once(command)
        .chain(command.get_subcommands())
        .flat_map(clap::Command::get_arguments)
        .filter_map(|it| Some(it.get_env()?.to_string_lossy().into_owned()))
        .collect();
    for name in names {
        let name = name.to_string_lossy();
        if name.starts_with(ENV_PREFIX) && !known.iter().any(|it| *it == name) {
            let hint = hint(&name, known.iter().map(String::as_str));
            return Err(ConfigError::UnknownEnv { name: name.into_owned(), hint });
        }
    }
    Ok(())
}

/// `; did you mean …?` with the known name nearest to `name`, or nothing when none is near.
fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    // Also without the section: `port = 1` at the top is a likely slip for `serve.port`.
    let score = |it: &str| {
        let last = it.rsplit('.').next().unwrap_or(it);
        strsim::jaro_winkler(name, it).max(strsim::jaro_winkler(name, last))
    };
    known
        .into_iter()
        .map(|it| (score(it), it))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|it| it.0 > 0.75)
        .map(|it| format!("; did you mean `{}`?", it.1))
        .unwrap_or_default()
}

/// Whether `origin` is what a browser sends in `Origin`: scheme, host, perhaps a port, and nothing after it.
fn is_origin(origin: &str) -> bool {
    let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || b".-:[]".contains(&it);
    rest.is_some_and(|it| !it.is_empty() && it.bytes().all(is_plain))
}

fn in_range<T>(key: &'static str, actual: T, range: RangeInclusive<T>) -> Result<T, ConfigError>
where
    T: PartialOrd + Copy + std::fmt::Display,
{
    if range.contains(&actual) {
        return Ok(actual);
    }
    Err(ConfigError::Range {
        key,
        actual: actual.to_string(),
        low: range.start().to_string(),
        high: range.end().to_string(),
    })
}

/// The shipped bundle: in the models directory, else where this program's own models are.
fn shipped(models: &Path) -> PathBuf {
    match models.join(SHIPPED_MODEL) {
        inside if inside.exists() => inside,
        _ => locate(Path::new(DEFAULT_MODELS).join(SHIPPED_MODEL)),
    }
}

/// `path` from the current directory, else from the executable's directory or one of the two above
/// (a binary of `cargo build` lies in `target/release`), else as it was given.
fn locate(path: PathBuf) -> PathBuf {
    if path.exists() {
        return path;
    }
    let executable = std::env::current_exe().unwrap_or_default();
    let mut found = executable.ancestors().skip(1).take(3).map(|it| it.join(&path));
    found.find(|it| it.exists()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::file::{KEYS, OPTIONAL_KEYS};
    use super::*;

    fn file(toml: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("triage.toml");
        std::fs::write(&path, toml).unwrap();
        let common = CommonArgs { config: Some(path), ..CommonArgs::default() };
        Config::load(&common, &ServeSettings::default())
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let toml = File { threads: Some(3), ..File::default() };
        let flag = CommonArgs { threads: Some(2), ..CommonArgs::default() };
        let serve = ServeSettings::default();
        let threads = |common: &CommonArgs| {
            Config::merge(common, &serve, toml.clone()).unwrap().threads.get()
        };
        assert_eq!((threads(&flag), threads(&CommonArgs::default())), (2, 3));
    }

    #[test]
    fn wrong_settings_name_the_right_one() {
        let cases = [
            ("[serve]\nprot = 1", "did you mean `serve.port`?"),
            ("port = 1", "did you mean `serve.port`?"),
            ("modle = 'x'", "did you mean `model`?"),
            ("[sevre]\nport = 1", "did you mean `serve.port`?"),
            ("[log]\nlevl = 'info'", "did you mean `log.level`?"),
            ("[serve]\nport = 99999", "port = 99999"),
            ("threads = 0", "`threads` is 0, it must lie between 1 and 1024"),
            ("[serve]\nmax_body_bytes = 10", "between 1024 and 268435456"),
            ("[serve]\nmax_items = 9000", "raise the first or lower the second"),
            ("[serve]\nhost = '0.0.0.0'", "--allow-remote"),
            ("[serve]\nhost = 'here'", "no IP address"),
            ("[serve]\ntls_cert = 'a.pem'", "give both or neither"),
            ("[serve]\ncors_origins = ['*']", "no origin"),
            ("[serve]\ncors_origins = ['https://a.example.org/']", "no origin"),
            ("[serve]\nhead_seconds = 0", "between 1 and 3600"),
            ("[log]\nformat = 'xml'", "unknown variant"),
            ("serve = 1", "serve"),
            ("zzzzqq = 1", "unknown setting `zzzzqq`"),
        ];
        for (toml, expected) in cases {
            let message = file(toml).unwrap_err().to_string();
            assert!(message.contains(expected), "{toml}: {message}");
        }
    }

    #[test]
    fn printed_settings_can_be_read_back() {
        let config = Config::for_tests();
        assert_eq!(file(&config.to_toml()).unwrap(), config);
        let all: toml::Table = config.to_toml().parse().unwrap();
        for key in KEYS.iter().filter(|it| !OPTIONAL_KEYS.contains(it)) {
            let root = toml::Value::Table(all.clone());
            let found = key.split('.').try_fold(root, |value, part| value.get(part).cloned());
            assert!(found.is_some(), "{key}");
        }
    }

    #[test]
    fn a_collector_takes_the_feature_and_an_address() {
        let otlp = |endpoint: &str| file(&format!("[serve]\notlp_endpoint = '{endpoint}'"));
        let good = otlp("http://127.0.0.1:4318");
        if cfg!(feature = "otlp") {
            let endpoint = good.unwrap().serve.otlp_endpoint;
            assert_eq!(endpoint.as_deref(), Some("http://127.0.0.1:4318"));
            for bad in ["127.0.0.1:4318", "https://collector:4318", "http://a/b c"] {
                let message = otlp(bad).unwrap_err().to_string();
                assert!(message.contains("serve.otlp_endpoint"), "{bad}: {message}");
            }
        } else {
            let message = good.unwrap_err().to_string();
            assert!(message.contains("--features otlp"), "{message}");
        }
    }

    #[test]
    fn beyond_loopback_takes_keys_or_a_flag() {
        for toml in ["keys = 'keys.toml'", "allow_remote = true"] {
            let config = file(&format!("[serve]\nhost = '0.0.0.0'\n{toml}")).unwrap();
            assert!(!config.serve.address.ip().is_loopback(), "{toml}");
        }
    }

    #[test]
    fn unknown_variables_are_named() {
        let command = <CommonArgs as Args>::augment_args(clap::Command::new("triage"));
        let check = |name: &str| check_names(&command, std::iter::once(OsString::from(name)));
        assert!(check("TRIAGE_MODEL").is_ok() && check("PATH").is_ok());
        let message = check("TRIAGE_MODLE").unwrap_err().to_string();
        assert!(message.contains("did you mean `TRIAGE_MODEL`?"), "{message}");
    }
}
