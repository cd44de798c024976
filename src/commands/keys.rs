//! `triage keys new`: a fresh key for a caller, shown once, and its line for the keys file.

use std::io::{IsTerminal, Write};
use std::num::NonZeroU32;

use clap::{Args, Subcommand, ValueEnum};

use crate::keys::{self, Role};

/// Arguments of `triage keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// 生成一个新密钥：密钥只显示这一次，另附写入密钥文件的一行
    New {
        /// 密钥的名字（字母、数字、- 和 _），会出现在日志里
        name: String,
        /// 可以做什么，可重复给出：classify 分类，review 复核，train 训练，operate 读指标
        #[arg(long = "role", value_enum, required = true, value_delimiter = ',')]
        roles: Vec<RoleName>,
        /// 每分钟请求数上限；不给出则不限
        #[arg(long, value_name = "N")]
        requests_per_minute: Option<NonZeroU32>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleName {
    Classify,
    Review,
    Train,
    Operate,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Classify => Self::Classify,
            RoleName::Review => Self::Review,
            RoleName::Train => Self::Train,
            RoleName::Operate => Self::Operate,
        }
    }
}

/// Runs the command. The line for the file goes to standard output, so that `>> keys.toml` takes it and not the
/// key; the key goes to standard error.
///
/// # Errors
/// When the name is none, or the system gives no random bytes.
pub fn run(args: KeysArgs) -> anyhow::Result<()> {
    let KeysCommand::New { name, roles, requests_per_minute } = args.command;
    let roles: Vec<Role> = roles.into_iter().map(Role::from).collect();
    let (key, line) = keys::fresh(&name, &roles, requests_per_minute)?;
    let mut stderr = std::io::stderr().lock();
    writeln!(stderr, "密钥（只显示这一次，请立即交给使用者）：\n{key}")?;
    if std::io::stdout().is_terminal() {
        writeln!(stderr, "写入密钥文件的一行：")?;
    }
    writeln!(std::io::stdout().lock(), "{line}")?;
    Ok(())
}
