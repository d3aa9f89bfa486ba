//! Shows what the agent reports while a request is under way.

use std::{collections::HashSet, fs::File, io::Write as _};

use vdkr_core::{
    channel::message::{Event, LogLevel, Phase, Request},
    digest::Digest,
};

use super::{granted::is_id, words::say};
use crate::{
    output::plain,
    progress::{Mode, Progress},
    vm::channel::Connection,
};

/// Layers that are shown at a time. No pull has as many under way; what a machine says beyond is not
/// followed.
const MAX_UNDER_WAY: usize = 128;

/// A display of one request's events on stderr.
#[derive(Debug)]
pub struct News {
    progress: Progress,
    under_way: HashSet<String>,
    verbose: bool,
    /// What is said of a layer that comes, and of one that came.
    words: (&'static str, &'static str),
    id_to: Option<File>,
    /// Hears of a new container's id.
    on_id: Option<Hook>,
    /// By which a container that has started takes over its ports.
    adoption: Option<Connection>,
}

struct Hook(Box<dyn FnOnce(&str) + Send>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

impl News {
    /// A display in the wanted form.
    pub fn new(mode: Mode, verbose: bool) -> Self {
        Self {
            progress: Progress::new(mode),
            under_way: HashSet::new(),
            verbose,
            words: ("pulling", "pulled"),
            id_to: None,
            on_id: None,
            adoption: None,
        }
    }

    /// Says of layers that they are loaded rather than pulled.
    #[must_use]
    pub fn of_load(mut self) -> Self {
        self.words = ("loading", "loaded");
        self
    }

    /// Writes a new container's id to a file as soon as it is known.
    #[must_use]
    pub fn with_id_to(mut self, file: Option<File>) -> Self {
        self.id_to = file;
        self
    }

    /// Has something done with a new container's id as soon as it is known.
    #[must_use]
    pub fn with_hook(mut self, hook: impl FnOnce(&str) + Send + 'static) -> Self {
        self.on_id = Some(Hook(Box::new(hook)));
        self
    }

    /// Has a container take over what this connection has published, once it runs, so that its ports
    /// stay open when the user lets go of it.
    #[must_use]
    pub fn with_ports(mut self, connection: Option<Connection>) -> Self {
        self.adoption = connection;
        self
    }

    fn adopt(&mut self, id: &str) {
        if let Some(connection) = self.adoption.take() {
            let id = id.to_owned();
            // A connection that is lost shows elsewhere.
            tokio::spawn(async move { connection.ask(&Request::AdoptPorts { id }).await });
        }
    }

    /// Writes a new container's id, once.
    pub fn write_id(&mut self, id: &str) {
        if let Some(Hook(hook)) = self.on_id.take() {
            hook(id);
        }
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
                self.progress.step(&format!("pulling {}", plain(reference)));
            }
            Event::Progress {
                layer,
                phase,
                done,
                total,
            } => {
                // Anything else names no layer.
                if let Ok(layer) = Digest::parse(layer) {
                    self.layer(layer.as_str(), *phase, *done, *total);
                }
            }
            Event::Log {
                level: LogLevel::Warn,
                message,
            } => say(&plain(message)),
            // Whoever reads the file takes it for an id.
            Event::Started { container, .. } if is_id(container) => {
                self.write_id(container);
                self.adopt(container);
            }
            Event::Log { message, .. } if self.verbose => say(&plain(message)),
            _ => {}
        }
    }

    fn layer(&mut self, layer: &str, phase: Phase, done: u64, total: Option<u64>) {
        match phase {
            Phase::Download => {
                if !self.under_way.contains(layer) {
                    if self.under_way.len() >= MAX_UNDER_WAY {
                        return;
                    }
                    self.under_way.insert(layer.to_owned());
                    let total = total.unwrap_or(0);
                    self.progress.started(layer, self.words.0, total);
                }
                self.progress.advanced(layer, done);
            }
            Phase::Present => {
                self.under_way.remove(layer);
                self.progress.finished(layer, "already present");
            }
            Phase::Complete => {
                self.under_way.remove(layer);
                self.progress.finished(layer, self.words.1);
            }
            // Unpacking goes along with the download.
            Phase::Waiting | Phase::Unpack | Phase::Unknown => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_id_is_written_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cid");
        let id = "0123456789abcdef".repeat(4);
        let mut news = News::new(Mode::None, false).with_id_to(Some(File::create(&path).unwrap()));
        for container in ["c", "$(reboot)", &"A".repeat(64), &format!("{id}\n"), &id] {
            let container = container.to_owned();
            news.show(&Event::Started { pid: 1, container });
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), id);
    }

    #[test]
    fn a_machine_has_no_more_shown_than_a_pull_has() {
        for mode in [Mode::Tty, Mode::Plain] {
            let mut news = News::new(mode, false);
            let mut told = |layer: String, phase| {
                news.show(&Event::Progress {
                    layer,
                    phase,
                    done: 1,
                    total: Some(2),
                });
                news.under_way.len()
            };
            assert_eq!(told("no digest".into(), Phase::Download), 0);
            let layer = |number: usize| format!("sha256:{number:064x}");
            for number in 0..1000 {
                let shown = told(layer(number), Phase::Download);
                assert_eq!(shown, MAX_UNDER_WAY.min(number + 1));
            }
            assert_eq!(told(layer(0), Phase::Complete), MAX_UNDER_WAY - 1);
            assert_eq!(told(layer(1000), Phase::Download), MAX_UNDER_WAY);
        }
    }
}
