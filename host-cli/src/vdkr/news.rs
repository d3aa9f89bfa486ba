//! Shows what the agent reports while a request is under way.

use std::collections::HashSet;

use vdkr_core::channel::message::{Event, LogLevel, Phase};

use super::session::say;
use crate::progress::{Mode, Progress};

/// A display of one request's events on stderr.
#[derive(Debug)]
pub struct News {
    progress: Progress,
    under_way: HashSet<String>,
    verbose: bool,
}

impl News {
    /// A display in the wanted form.
    pub fn new(mode: Mode, verbose: bool) -> Self {
        Self {
            progress: Progress::new(mode),
            under_way: HashSet::new(),
            verbose,
        }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Trying { reference } => self.progress.note(&format!("pulling {reference}")),
            Event::Progress {
                layer,
                phase,
                done,
                total,
            } => {
                self.layer(layer, *phase, *done, *total);
            }
            Event::Log {
                level: LogLevel::Warn,
                message,
            } => say(&printable(message)),
            Event::Log { message, .. } if self.verbose => say(&printable(message)),
            _ => {}
        }
    }

    fn layer(&mut self, layer: &str, phase: Phase, done: u64, total: Option<u64>) {
        match phase {
            Phase::Download => {
                if self.under_way.insert(layer.to_owned()) {
                    self.progress.started(layer, "pulling", total.unwrap_or(0));
                }
                self.progress.advanced(layer, done);
            }
            Phase::Present => {
                self.under_way.remove(layer);
                self.progress.finished(layer, "already present");
            }
            Phase::Complete => {
                self.under_way.remove(layer);
                self.progress.finished(layer, "pulled");
            }
            // Unpacking goes along with the download.
            Phase::Waiting | Phase::Unpack | Phase::Unknown => {}
        }
    }
}

/// A guest's line without anything that could drive a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
