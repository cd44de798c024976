//! Settings as typed: flags, and the variable of each.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// Settings of every command, as typed.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "设置")]
pub struct CommonArgs {
    /// 设置文件（TOML）；默认为当前目录的 triage.toml（若存在）
    #[arg(long, global = true, env = "TRIAGE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// 模型目录；先从当前目录找，再从程序所在目录找 [默认: 登记为 production 的模型，否则 models/triage-base]
    #[arg(long, global = true, env = "TRIAGE_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// 存放各模型版本及其登记文件 registry.toml 的目录 [默认: models]
    #[arg(long, global = true, env = "TRIAGE_MODELS", value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// 用户词典（jieba 格式，每行：词 [词频 [词性]]），用于本地地名等
    #[arg(long, global = true, env = "TRIAGE_USER_DICT", value_name = "FILE")]
    pub user_dict: Option<PathBuf>,
    /// 计算线程数 [默认: 与核数相同]
    #[arg(long, global = true, env = "TRIAGE_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// 不用整数、按训练时的精度计算：较慢，用于对照 [默认: false]
    #[arg(long, global = true, env = "TRIAGE_EXACT", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub exact: Option<bool>,
    /// 日志格式（写到标准错误）[默认: text]
    #[arg(long, global = true, env = "TRIAGE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// 日志级别 [默认: info]
    #[arg(long, global = true, env = "TRIAGE_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
}

/// Settings of `serve`, as typed.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeSettings {
    /// 监听地址 [默认: 127.0.0.1]
    #[arg(long, env = "TRIAGE_HOST", value_name = "ADDRESS", value_parser = parse_host)]
    pub host: Option<IpAddr>,
    /// 监听端口，0 表示任取一个空闲端口 [默认: 8080]
    #[arg(long, env = "TRIAGE_PORT", value_name = "PORT")]
    pub port: Option<u16>,
    /// 没有密钥文件也允许监听其他机器能访问的地址：任何人都能调用 [默认: false]
    #[arg(long, env = "TRIAGE_ALLOW_REMOTE", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub allow_remote: Option<bool>,
    /// 请求体上限（字节）[默认: 4194304]
    #[arg(long, env = "TRIAGE_MAX_BODY_BYTES", value_name = "BYTES")]
    pub max_body_bytes: Option<usize>,
    /// 一次请求的条目上限 [默认: 256]
    #[arg(long, env = "TRIAGE_MAX_ITEMS", value_name = "N")]
    pub max_items: Option<usize>,
    /// 同时在处理的条目上限，超出则答 503 [默认: 4096]
    #[arg(long, env = "TRIAGE_MAX_WAITING_ITEMS", value_name = "N")]
    pub max_waiting_items: Option<usize>,
    /// 一次前向计算的词元上限 [默认: 4096]
    #[arg(long, env = "TRIAGE_MAX_BATCH_TOKENS", value_name = "N")]
    pub max_batch_tokens: Option<usize>,
    /// 停止时完成已收请求的最长时间（秒）[默认: 30]
    #[arg(long, env = "TRIAGE_DRAIN_SECONDS", value_name = "SECONDS")]
    pub drain_seconds: Option<u64>,
    /// 密钥文件，每行一个密钥（见 triage keys new）；改动后自动重读。不给出则不验证
    #[arg(long, env = "TRIAGE_KEYS", value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// 允许其网页跨域调用的来源，可重复给出 [默认: 无]
    #[arg(
        long = "cors-origin",
        env = "TRIAGE_CORS_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    pub cors_origins: Option<Vec<String>>,
    /// TLS 证书链（PEM）；须与 --tls-key 一起给出
    #[arg(long, env = "TRIAGE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// TLS 私钥（PEM）
    #[arg(long, env = "TRIAGE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// 答案缓存的内存上限（MiB），0 表示不缓存 [默认: 16]
    #[arg(long, env = "TRIAGE_CACHE_MIB", value_name = "MIB")]
    pub cache_mib: Option<usize>,
    /// 为带 Idempotency-Key 的请求保留答复的内存上限（MiB），0 表示不理会该请求头 [默认: 16]
    #[arg(long, env = "TRIAGE_REPLAY_MIB", value_name = "MIB")]
    pub replay_mib: Option<usize>,
    /// 上述答复保留的最长时间（秒）；期间重发同一请求得到同样的字节，只计算一次 [默认: 600]
    #[arg(long, env = "TRIAGE_REPLAY_SECONDS", value_name = "SECONDS")]
    pub replay_seconds: Option<u64>,
    /// 客户端取走一次答复的最长时间（秒），超出则断开 [默认: 30]
    #[arg(long, env = "TRIAGE_WRITE_SECONDS", value_name = "SECONDS")]
    pub write_seconds: Option<u64>,
    /// OpenTelemetry 收集器地址（OTLP/HTTP，如 http://127.0.0.1:4318），也读 OTEL_EXPORTER_OTLP_ENDPOINT；
    /// 须以 --features otlp 编译 [默认: 不发送]
    #[arg(long, env = "TRIAGE_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// 请求头到齐的最长时间，也是空闲连接保留的最长时间（秒）[默认: 30]
    #[arg(long, env = "TRIAGE_HEAD_SECONDS", value_name = "SECONDS")]
    pub head_seconds: Option<u64>,
    /// 同时打开的连接上限 [默认: 4096]
    #[arg(long, env = "TRIAGE_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Least grave log lines shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// And what looks wrong.
    Warn,
    /// And what happens once in a while.
    #[default]
    Info,
    /// And every request.
    Debug,
    /// Everything.
    Trace,
}

pub(super) fn parse_host(host: &str) -> Result<IpAddr, String> {
    if host == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    host.parse().map_err(|_| format!("`{host}` is no IP address; write one, such as 127.0.0.1"))
}
