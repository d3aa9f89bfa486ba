//! Progress on stderr: bars on a terminal, a line now and then in a log, JSON lines for programs.
//!
//! JSON lines carry `"v": 1`, which changes when a program that reads them could not read the new
//! ones, and `"ms"`, milliseconds since the beginning. Events: `planned` (`items`, `bytes`),
//! `started` (`id`, `what`, `total`), `progress` (`id`, `done`; at most two a second for each item),
//! `finished` (`id`, `outcome`), `total` (`items`, `items_done`, `bytes`, `bytes_done`, `rate`,
//! `eta_seconds`; every ten seconds), `stalled` (`seconds`), `note` (`text`).

mod tally;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use self::tally::{Bytes, Span, Tally, Word};

/// Version of the JSON lines.
const JSON_VERSION: u32 = 1;
/// Shortest time between two `progress` events of one item.
const JSON_PAUSE: Duration = Duration::from_millis(500);
/// How often bars are drawn again.
const TICK: Duration = Duration::from_millis(200);
/// How often the watcher looks.
const LOOK: Duration = Duration::from_millis(500);

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Bars when stderr is a terminal, else lines
    #[default]
    Auto,
    /// One bar for each item, with rate and remaining time
    Tty,
    /// One line for everything now and then, with rate and remaining time
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
    Bars(Arc<Bars>),
    Lines(Arc<Lines>),
    None,
}

/// A bar for each item.
#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    under_way: Mutex<HashMap<String, ProgressBar>>,
    /// Whether the thread is there that keeps rates and remaining times up to date.
    ticking: AtomicBool,
}

/// Lines for people or programs.
#[derive(Debug)]
struct Lines {
    json: bool,
    state: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    tally: Tally,
    watched: bool,
    /// How many items came to which end.
    outcomes: BTreeMap<String, usize>,
    /// When each item's progress was last written.
    written: HashMap<String, Instant>,
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
            Mode::Tty => Shown::Bars(Arc::new(Bars {
                all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
                under_way: Mutex::default(),
                ticking: AtomicBool::new(false),
            })),
            Mode::Plain | Mode::Auto => Shown::Lines(Lines::new(false)),
            Mode::Jsonl => Shown::Lines(Lines::new(true)),
            Mode::None => Shown::None,
        })
    }

    /// This many items of this many bytes together will be asked for.
    pub fn planned(&self, items: usize, bytes: u64) {
        if let Shown::Lines(lines) = &self.0 {
            let mut seen = locked(&lines.state);
            seen.tally.planned(bytes);
            lines.event(
                &seen,
                json!({"event": "planned", "items": items, "bytes": bytes}),
            );
        }
    }

    /// An item begins; `total` is its size in bytes.
    pub fn started(&self, key: &str, label: &str, total: u64) {
        match &self.0 {
            Shown::Bars(bars) => {
                let style = ProgressStyle::with_template(
                    "{prefix:.cyan} {msg:10} {bar:24} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4}",
                )
                .unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = bars.all.add(ProgressBar::new(total).with_style(style));
                bar.set_prefix(short(key).to_owned());
                bar.set_message(label.to_owned());
                locked(&bars.under_way).insert(key.to_owned(), bar);
                bars.tick();
            }
            Shown::Lines(lines) => {
                let mut seen = locked(&lines.state);
                seen.tally.started(key, total, Instant::now());
                lines.watch(&mut seen);
                let event = json!({"event": "started", "id": key, "what": label, "total": total});
                lines.event(&seen, event);
            }
            Shown::None => {}
        }
    }

    /// `done` bytes of the item are through.
    pub fn advanced(&self, key: &str, done: u64) {
        match &self.0 {
            Shown::Bars(bars) => {
                if let Some(bar) = locked(&bars.under_way).get(key) {
                    bar.set_position(done);
                }
            }
            Shown::Lines(lines) => {
                let now = Instant::now();
                let mut seen = locked(&lines.state);
                seen.tally.advanced(key, done, now);
                let last = seen.written.get(key);
                if lines.json && last.is_none_or(|last| now.duration_since(*last) >= JSON_PAUSE) {
                    seen.written.insert(key.to_owned(), now);
                    lines.event(&seen, json!({"event": "progress", "id": key, "done": done}));
                }
            }
            Shown::None => {}
        }
    }

    /// The item is done; `outcome` says how ("uploaded", "present").
    pub fn finished(&self, key: &str, outcome: &str) {
        match &self.0 {
            Shown::Bars(bars) => {
                let ended = locked(&bars.under_way).remove(key);
                if let Some(bar) = ended {
                    bar.finish_and_clear();
                    bars.all.remove(&bar);
                }
                let _ = bars.all.println(format!("{} {outcome}", short(key)));
            }
            Shown::Lines(lines) => {
                let mut seen = locked(&lines.state);
                seen.tally.finished(key, Instant::now());
                seen.written.remove(key);
                *seen.outcomes.entry(outcome.to_owned()).or_default() += 1;
                lines.event(
                    &seen,
                    json!({"event": "finished", "id": key, "outcome": outcome}),
                );
            }
            Shown::None => {}
        }
    }

    /// A sentence about what is under way, which whoever wants no progress need not hear.
    pub fn step(&self, text: &str) {
        if !matches!(self.0, Shown::None) {
            self.note(text);
        }
    }

    /// A sentence for the user, such as a warning or an error, kept clear of the bars. It is said
    /// whatever is shown of the progress.
    pub fn note(&self, text: &str) {
        match &self.0 {
            Shown::Bars(bars) => {
                // Bars that stderr cannot show do not swallow what must be read.
                if bars.all.is_hidden() || bars.all.println(text).is_err() {
                    say(text);
                }
            }
            Shown::Lines(lines) if lines.json => {
                lines.event(
                    &locked(&lines.state),
                    json!({"event": "note", "text": text}),
                );
            }
            Shown::Lines(_) | Shown::None => say(text),
        }
    }
}

impl Drop for Progress {
    /// In a log, one line says what came of it.
    fn drop(&mut self) {
        if let Shown::Lines(lines) = &self.0
            && !lines.json
        {
            let seen = locked(&lines.state);
            if let Some(line) = summary(&seen.outcomes, seen.tally.elapsed(Instant::now())) {
                say(&line);
            }
        }
    }
}

fn summary(outcomes: &BTreeMap<String, usize>, elapsed: Duration) -> Option<String> {
    if outcomes.is_empty() {
        return None;
    }
    let parts: Vec<_> = outcomes
        .iter()
        .map(|(outcome, count)| format!("{count} {outcome}"))
        .collect();
    Some(format!("{} in {}", parts.join(", "), Span(elapsed)))
}

impl Bars {
    /// Starts the one thread that draws bars again whose items stand still; it ends with the display.
    fn tick(self: &Arc<Self>) {
        if self.ticking.swap(true, Ordering::Relaxed) {
            return;
        }
        let shown: Weak<Self> = Arc::downgrade(self);
        let ticker = move || {
            while let Some(bars) = shown.upgrade() {
                locked(&bars.under_way).values().for_each(ProgressBar::tick);
                drop(bars);
                std::thread::sleep(TICK);
            }
        };
        // Without the thread a bar is drawn when its item moves.
        let _ = std::thread::Builder::new()
            .name("bars".to_owned())
            .spawn(ticker);
    }
}

impl Lines {
    fn new(json: bool) -> Arc<Self> {
        Arc::new(Self {
            json,
            state: Mutex::new(Seen {
                tally: Tally::new(Instant::now()),
                watched: false,
                outcomes: BTreeMap::new(),
                written: HashMap::new(),
            }),
        })
    }

    /// Starts the thread that says how far it is; it ends with the display.
    fn watch(self: &Arc<Self>, seen: &mut Seen) {
        if std::mem::replace(&mut seen.watched, true) {
            return;
        }
        let watched: Weak<Self> = Arc::downgrade(self);
        let watcher = move || {
            while let Some(lines) = watched.upgrade() {
                lines.look();
                drop(lines);
                std::thread::sleep(LOOK);
            }
        };
        // Without the thread the work goes on, only unseen.
        let _ = std::thread::Builder::new()
            .name("progress".to_owned())
            .spawn(watcher);
    }

    fn look(&self) {
        let mut seen = locked(&self.state);
        let Some(word) = seen.tally.word(Instant::now()) else {
            return;
        };
        if self.json {
            let event = match word {
                Word::State(state) => json!({
                    "event": "total",
                    "items": state.items,
                    "items_done": state.items_done,
                    "bytes": state.bytes,
                    "bytes_done": state.bytes_done,
                    "rate": state.rate,
                    "eta_seconds": state.left.map(|left| left.as_secs()),
                }),
                Word::Stalled(silent) => {
                    json!({"event": "stalled", "seconds": silent.as_secs()})
                }
            };
            self.event(&seen, event);
        } else {
            match word {
                Word::State(state) => say(&state.to_string()),
                Word::Stalled(silent) => {
                    say(&format!(
                        "warning: no data moved for {}; still waiting",
                        Span(silent)
                    ));
                }
            }
        }
    }

    /// Writes a JSON line, where lines are JSON.
    fn event(&self, seen: &Seen, mut event: Value) {
        if !self.json {
            return;
        }
        if let Value::Object(fields) = &mut event {
            let elapsed = seen.tally.elapsed(Instant::now()).as_millis();
            fields.insert("v".to_owned(), JSON_VERSION.into());
            fields.insert(
                "ms".to_owned(),
                u64::try_from(elapsed).unwrap_or(u64::MAX).into(),
            );
        }
        say(&event.to_string());
    }
}

/// Since when all of stderr is JSON lines.
static JSON_SINCE: OnceLock<Instant> = OnceLock::new();

/// From now on everything that is [spoken](speak) is JSON lines.
pub fn speak_json() {
    let _ = JSON_SINCE.set(Instant::now());
}

/// Says a line to the user: as a `note` event where stderr is for programs.
pub fn speak(text: fmt::Arguments<'_>) {
    let Some(since) = JSON_SINCE.get() else {
        return say(&text.to_string());
    };
    let text = text.to_string();
    if !text.is_empty() {
        let elapsed = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        say(&json!({"event": "note", "text": text, "v": JSON_VERSION, "ms": elapsed}).to_string());
    }
}

/// Asks on the line that the answer will be on; in JSON lines a question is a note like others.
pub fn ask(question: &str) {
    if JSON_SINCE.get().is_some() {
        return speak(format_args!("{question}"));
    }
    let mut stderr = stderr().lock();
    let _ = write!(stderr, "{question} ");
    let _ = stderr.flush();
}

/// Where the log goes that developers switch on: each piece written is one line.
#[derive(Debug)]
pub struct Spoken;

impl std::io::Write for Spoken {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        speak(format_args!("{}", String::from_utf8_lossy(line).trim_end()));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes a line to stderr. A reader that is gone does not end the work.
fn say(line: &str) {
    let _ = writeln!(stderr().lock(), "{line}");
}

/// The state, also after a panic elsewhere: it is only shown.
fn locked<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first 12 digits of a digest; other keys as they are.
fn short(key: &str) -> &str {
    key.split_once(':')
        .filter(|(_, hex)| hex.len() >= 64)
        .and_then(|(_, hex)| hex.get(..12))
        .unwrap_or(key)
}

/// A size in bytes for people.
pub fn bytes(count: u64) -> String {
    Bytes(count).to_string()
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
        progress.planned(1, 10);
        progress.started("a", "layer", 10);
        progress.advanced("a", 5);
        progress.advanced("unknown", 5);
        progress.finished("a", "uploaded");
        let Shown::Bars(bars) = &progress.0 else {
            panic!("bars were asked for")
        };
        assert!(bars.under_way.lock().unwrap().is_empty());
    }

    #[test]
    fn many_bars_take_one_thread() {
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let progress = Progress::new(Mode::Tty);
        let before = threads();
        for number in 0..200 {
            progress.started(&format!("item {number}"), "layer", 10);
        }
        // Other tests have threads of their own.
        let after = threads();
        assert!(after < before + 100, "{before} threads became {after}");
    }

    #[test]
    fn the_end_is_summed_up() {
        let outcomes = BTreeMap::from([("present".to_owned(), 2), ("uploaded".to_owned(), 1)]);
        let line = summary(&outcomes, Duration::from_secs(3));
        assert_eq!(line.as_deref(), Some("2 present, 1 uploaded in 3s"));
        assert_eq!(summary(&BTreeMap::new(), Duration::ZERO), None);
    }

    #[test]
    fn json_progress_of_one_item_is_rate_limited() {
        let progress = Progress::new(Mode::Jsonl);
        progress.started("a", "layer", 1000);
        let Shown::Lines(lines) = &progress.0 else {
            panic!("lines were asked for")
        };
        progress.advanced("a", 1);
        let first = locked(&lines.state).written["a"];
        for done in 2..100 {
            progress.advanced("a", done);
        }
        let passed = first.elapsed() >= JSON_PAUSE;
        assert!(passed || locked(&lines.state).written["a"] == first);
        progress.finished("a", "uploaded");
        assert!(locked(&lines.state).written.is_empty());
    }
}
