//! Progress on stderr: bars on a terminal, lines in a log, JSON lines for programs.

use std::collections::HashMap;
use std::io::{IsTerminal as _, stderr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Bars when stderr is a terminal, else lines
    #[default]
    Auto,
    /// Bars
    Tty,
    /// One line for each finished item
    Plain,
    /// One JSON object per event
    Jsonl,
    /// Nothing
    None,
}

/// Shows items that are under way, each known by a key such as a digest.
#[derive(Debug)]
pub struct Progress(Shown);

#[derive(Debug)]
enum Shown {
    Bars {
        all: MultiProgress,
        bars: Mutex<HashMap<String, ProgressBar>>,
    },
    Plain,
    Jsonl,
    None,
}

impl Progress {
    /// A display of the given kind.
    pub fn new(mode: Mode) -> Self {
        let mode = match mode {
            Mode::Auto if stderr().is_terminal() => Mode::Tty,
            Mode::Auto => Mode::Plain,
            other => other,
        };
        Self(match mode {
            Mode::Tty => Shown::Bars {
                all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
                bars: Mutex::default(),
            },
            Mode::Plain | Mode::Auto => Shown::Plain,
            Mode::Jsonl => Shown::Jsonl,
            Mode::None => Shown::None,
        })
    }

    /// An item begins; `total` is its size in bytes.
    pub fn started(&self, key: &str, label: &str, total: u64) {
        match &self.0 {
            Shown::Bars { all, bars } => {
                let style = ProgressStyle::with_template(
                    "{prefix:.cyan} {msg:12} {bar:30} {bytes:>10}/{total_bytes:10} {bytes_per_sec}",
                )
                .unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = all.add(ProgressBar::new(total).with_style(style));
                bar.set_prefix(short(key).to_owned());
                bar.set_message(label.to_owned());
                bar.enable_steady_tick(Duration::from_millis(200));
                locked(bars).insert(key.to_owned(), bar);
            }
            Shown::Jsonl => {
                emit(
                    &serde_json::json!({"event": "started", "id": key, "what": label, "total": total}),
                );
            }
            Shown::Plain | Shown::None => {}
        }
    }

    /// `done` bytes of the item are through.
    pub fn advanced(&self, key: &str, done: u64) {
        match &self.0 {
            Shown::Bars { bars, .. } => {
                if let Some(bar) = locked(bars).get(key) {
                    bar.set_position(done);
                }
            }
            Shown::Jsonl => {
                emit(&serde_json::json!({"event": "progress", "id": key, "done": done}));
            }
            Shown::Plain | Shown::None => {}
        }
    }

    /// The item is done; `outcome` says how ("uploaded", "present").
    pub fn finished(&self, key: &str, outcome: &str) {
        match &self.0 {
            Shown::Bars { all, bars } => {
                if let Some(bar) = locked(bars).remove(key) {
                    bar.finish_and_clear();
                    all.remove(&bar);
                }
                let _ = all.println(format!("{} {outcome}", short(key)));
            }
            Shown::Plain => eprintln!("{} {outcome}", short(key)),
            Shown::Jsonl => {
                emit(&serde_json::json!({"event": "finished", "id": key, "outcome": outcome}));
            }
            Shown::None => {}
        }
    }

    /// A sentence for the user, kept clear of the bars.
    pub fn note(&self, text: &str) {
        match &self.0 {
            Shown::Bars { all, .. } => {
                let _ = all.println(text);
            }
            Shown::Plain => eprintln!("{text}"),
            Shown::Jsonl => emit(&serde_json::json!({"event": "note", "text": text})),
            Shown::None => {}
        }
    }
}

/// The bars, also after a panic elsewhere: they only show.
fn locked(
    bars: &Mutex<HashMap<String, ProgressBar>>,
) -> MutexGuard<'_, HashMap<String, ProgressBar>> {
    bars.lock().unwrap_or_else(PoisonError::into_inner)
}

fn emit(value: &serde_json::Value) {
    eprintln!("{value}");
}

/// The first 12 digits of a digest; other keys as they are.
fn short(key: &str) -> &str {
    key.split_once(':')
        .filter(|(_, hex)| hex.len() >= 64)
        .and_then(|(_, hex)| hex.get(..12))
        .unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_shortened_and_other_keys_are_not() {
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(short(&digest), "0123456789ab");
        assert_eq!(short("localhost:5000/x"), "localhost:5000/x");
    }

    #[test]
    fn bars_come_and_go() {
        let progress = Progress::new(Mode::Tty);
        progress.started("a", "layer", 10);
        progress.advanced("a", 5);
        progress.advanced("unknown", 5);
        progress.finished("a", "uploaded");
        let Shown::Bars { bars, .. } = &progress.0 else {
            panic!("bars were asked for")
        };
        assert!(bars.lock().unwrap().is_empty());
    }
}
