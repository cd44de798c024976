//! What looks on while `triage train` runs: the bar, ctrl-C, and the checkpoint on disk.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use crate::model::ModelError;
use crate::training::state::{Epoch, State};
use crate::training::trainer::{Next, StepDone, Watcher};

/// Exit code of a second ctrl-C, as a shell gives it.
const INTERRUPTED: i32 = 130;

/// Set by the first ctrl-C or SIGTERM; the second ends the program at once.
///
/// # Errors
/// When the signals cannot be listened to.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        runtime.block_on(async {
            let mut signals = match Signals::new() {
                Ok(signals) => signals,
                Err(error) => return ready.send(Err(error)).unwrap_or_default(),
            };
            ready.send(Ok(())).unwrap_or_default();
            loop {
                signals.next().await;
                if raised.swap(true, Ordering::Relaxed) {
                    std::process::exit(INTERRUPTED);
                }
                eprintln!("这一步之后停止，写出目前最好的一轮；再按一次立即退出");
            }
        });
    });
    is_ready.recv().context("the signal thread ended")??;
    Ok(flag)
}

/// ctrl-C, and on Unix SIGTERM; one that comes while nobody waits is not lost.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        tokio::signal::ctrl_c().await.unwrap_or_default();
    }
}

/// What a checkpoint is of: it must not go on as another training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRecord {
    /// Digest of the cases.
    pub data: String,
    /// Digest of which of them are held out.
    pub split: String,
    /// Labels of all heads.
    pub labels: String,
    /// What the encoder started from.
    pub base: String,
    /// Digest of the user dictionary, if any: it changes the tokens.
    pub dictionary: String,
    /// Every setting of the trainer.
    pub settings: String,
    /// Version of this program.
    pub program: String,
}

impl TaskRecord {
    fn parts(&self) -> [(&'static str, &str, &str); 7] {
        [
            ("checkpoint_data", "the cases", &self.data),
            ("checkpoint_split", "the held-out cases", &self.split),
            ("checkpoint_labels", "the labels", &self.labels),
            ("checkpoint_base", "the base", &self.base),
            ("checkpoint_dictionary", "the user dictionary", &self.dictionary),
            ("checkpoint_settings", "the settings", &self.settings),
            ("checkpoint_program", "the version of triage", &self.program),
        ]
    }
}

/// The file that a training can go on from.
pub struct Checkpoint {
    path: PathBuf,
    task: TaskRecord,
    every: Duration,
    written: Instant,
}

impl Checkpoint {
    /// A checkpoint in `dir`, which is made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(dir: &Path, task: TaskRecord, every: Duration) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        Ok(Self { path: dir.join("training.safetensors"), task, every, written: Instant::now() })
    }

    /// The state in the file; none when there is no file.
    ///
    /// # Errors
    /// When it cannot be read or is of another training; what differs is named.
    pub fn read(&self) -> anyhow::Result<Option<State>> {
        let name = self.path.display();
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| name.to_string()),
        };
        let damaged =
            || format!("checkpoint_damaged: {name} is no checkpoint: delete it to start anew");
        let task = State::task(&bytes).with_context(damaged)?;
        let task: TaskRecord = serde_json::from_str(&task).with_context(damaged)?;
        for ((code, what, ours), (_, _, theirs)) in self.task.parts().iter().zip(task.parts()) {
            if *ours != theirs {
                bail!(
                    "{code}: {name} is of a training where {what} differ (`{theirs}`, now `{ours}`): \
                     run that one, or name another --checkpoint directory"
                );
            }
        }
        Ok(Some(State::from_bytes(&bytes).with_context(damaged)?))
    }

    /// Writes beside the file and renames: a kill leaves the old state or the new one.
    fn write(&mut self, state: &State) -> anyhow::Result<()> {
        let beside = self.path.with_extension("partial");
        let mut file = fs::File::create(&beside).with_context(|| beside.display().to_string())?;
        file.write_all(&state.to_bytes(&serde_json::to_string(&self.task)?)?)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path).with_context(|| self.path.display().to_string())?;
        self.written = Instant::now();
        Ok(())
    }

    /// Takes the file away: the training is done.
    ///
    /// # Errors
    /// When there is one and it cannot be removed.
    pub fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| self.path.display().to_string())
            }
            _ => Ok(()),
        }
    }
}

/// Shows how far training is, and ends it when asked to.
pub struct Console {
    /// The bar.
    pub bar: ProgressBar,
    /// Training cases of an epoch.
    pub n_cases: usize,
    /// Raised when training should end.
    pub stop: Arc<AtomicBool>,
    /// Where the state is kept, if anywhere.
    pub checkpoint: Option<Checkpoint>,
    /// Loss of the last steps, smoothed.
    pub loss: Option<f32>,
    /// Best score so far.
    pub best: Option<f32>,
}

impl Watcher for Console {
    fn step(&mut self, step: StepDone) -> Next {
        let loss = self.loss.map_or(step.loss, |it| 0.98 * it + 0.02 * step.loss);
        self.loss = Some(loss);
        self.bar.set_position(((step.epoch - 1) * self.n_cases + step.n_done) as u64);
        let best = self.best.map_or(String::new(), |it| format!(" 最好 F1 {it:.4}"));
        self.bar.set_message(format!("第 {} 轮 损失 {loss:.4}{best}", step.epoch));
        if self.stop.load(Ordering::Relaxed) {
            return Next::Stop;
        }
        let is_due = self.checkpoint.as_ref().is_some_and(|it| it.written.elapsed() >= it.every);
        if is_due { Next::Keep } else { Next::GoOn }
    }

    fn epoch(&mut self, epoch: &Epoch, is_best: bool) {
        if is_best {
            self.best = Some(epoch.validation_macro_f1);
        }
        let mark = if is_best { "（目前最好）" } else { "" };
        // `println` stays silent when stderr is no terminal; a log wants the line too.
        self.bar.suspend(|| {
            eprintln!(
                "第 {} 轮：损失 {:.4}，验证宏平均 F1 {:.4}{mark}",
                epoch.epoch, epoch.loss, epoch.validation_macro_f1
            );
        });
    }

    fn keep(&mut self, state: &dyn Fn() -> State) -> Result<(), ModelError> {
        let Some(checkpoint) = &mut self.checkpoint else { return Ok(()) };
        checkpoint.write(&state()).map_err(|it| ModelError::msg(format!("{it:#}")))
    }
}
