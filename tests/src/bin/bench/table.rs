//! Medians, ratios and the rows they stand in.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

/// Samples of one measurement, in seconds or any other unit.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds a duration in seconds.
    pub(crate) fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64());
    }

    /// The middle value.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// `median (min–max)`.
    pub(crate) fn show(&self, decimals: usize) -> String {
        let min = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let max = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!(
            "{:.decimals$} ({min:.decimals$}–{max:.decimals$})",
            self.median()
        )
    }
}

/// Prints a row that compares ours with a peer's; for times, a ratio above 1 means ours is faster.
pub(crate) fn compare(
    what: &str,
    ours: &Samples,
    theirs: &Samples,
    decimals: usize,
    less_is_better: bool,
) {
    let (a, b) = (ours.median(), theirs.median());
    let ratio = if less_is_better { b / a } else { a / b };
    println!(
        "| {what} | {} | {} | {ratio:.2} |",
        ours.show(decimals),
        theirs.show(decimals)
    );
}

/// The head of a table whose rows [`compare_three`] prints.
pub(crate) const HEAD: &str =
    "| what | ours | skopeo | crane | skopeo ÷ ours | crane ÷ ours |\n|---|---|---|---|---|---|";

/// Prints a row of times: ours, skopeo's, crane's, and how many times ours theirs are.
pub(crate) fn compare_three(what: &str, [ours, skopeo, crane]: &[Samples; 3]) {
    println!(
        "| {what} | {} | {} | {} | {:.2} | {:.2} |",
        ours.show(3),
        skopeo.show(3),
        crane.show(3),
        skopeo.median() / ours.median(),
        crane.median() / ours.median(),
    );
}

/// What this was measured on.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let version = |program: &str, arg: &str| {
        Command::new(program).arg(arg).output().ok().map_or_else(
            || "not installed".to_owned(),
            |output| {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                text.lines().next().unwrap_or_default().to_owned()
            },
        )
    };
    let cpuinfo = read("/proc/cpuinfo");
    let cores = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "Machine: {} × {}, {} of memory, Linux {}; load average at the start {}.",
        cores,
        field(&cpuinfo, "model name"),
        field(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
    );
    let _ = writeln!(
        text,
        "Peers: {}; crane {}; {}; {}.",
        version("skopeo", "--version"),
        version("crane", "version"),
        version("docker-registry", "--version"),
        version("qemu-system-x86_64", "--version"),
    );
    text
}
