//! Shows what the agent reports while a request is under way.

use std::{collections::HashSet, fs::File, io::Write as _};

use vdkr_core::channel::message::{Event, LogLevel, Phase};

use super::session::say;
use crate::progress::{Mode, Progress};

/// A display of one request's events on stderr.
#[derive(Debug)]
pub struct News {
    progress: Progress,
    under_way: HashSet<String>,
    verbose: bool,
    id_to: Option<File>,
}

impl News {
    /// A display in the wanted form.
    pub fn new(mode: Mode, verbose: bool) -> Self {
        Self {
            progress: Progress::new(mode),
            under_way: HashSet::new(),
            verbose,
            id_to: None,
        }
    }

    /// Writes a new container's id to a file as soon as it is known.
    #[must_use]
    pub fn with_id_to(mut self, file: Option<File>) -> Self {
        self.id_to = file;
        self
    }

    /// Writes a new container's id, once.
    pub fn write_id(&mut self, id: &str) {
        if let Some(mut file) = self.id_to.take()
            && let Err(error) = file.write_all(id.as_bytes())
        {
            say(&format!(
                "cannot write the container's id {id} to its file: {error}"
            ));
        }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Trying { reference } => {
                self.progress
                    .note(&format!("pulling {}", printable(reference)));
            }
            Event::Progress {
                layer,
                phase,
                done,
                total,
            } => {
                self.layer(&printable(layer), *phase, *done, *total);
            }
            Event::Log {
                level: LogLevel::Warn,
                message,
            } => say(&printable(message)),
            Event::Started { container, .. } => self.write_id(container),
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
