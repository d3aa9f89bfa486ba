//! How long the stages of a start take, for `--verbose` and for benchmarks.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use vdkr_core::channel::message::GuestHello;

/// Stages in the order in which they happened.
#[derive(Clone, Debug)]
pub struct Stages {
    begun: Instant,
    last: Instant,
    done: Vec<(String, Duration)>,
}

impl Default for Stages {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            last: now,
            done: Vec::new(),
        }
    }
}

impl Stages {
    /// Starts the clock.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends a stage that began where the last one ended.
    pub fn mark(&mut self, name: &str) {
        let now = Instant::now();
        self.done.push((name.to_owned(), now - self.last));
        self.last = now;
    }

    /// Divides a boot that just ended and took `whole`, by what the agent says about it: the
    /// emulator's own start, then the kernel to the agent's first instruction, then the agent's
    /// stages, then the way of its greeting to here.
    pub fn boot(&mut self, whole: Duration, hello: &GuestHello) {
        self.last = Instant::now();
        let inside = Duration::from_millis(hello.boot_ms).min(whole);
        let mut ends: Vec<_> = hello
            .stages
            .iter()
            .map(|(name, &end)| (end, name))
            .collect();
        ends.sort_unstable();
        let mut parts = vec![("emulator".to_owned(), whole.saturating_sub(inside))];
        let mut previous = Duration::ZERO;
        for (end, name) in ends {
            let end = Duration::from_millis(end).min(inside);
            parts.push((format!("guest {name}"), end.saturating_sub(previous)));
            previous = end.max(previous);
        }
        parts.push(("hello".to_owned(), inside.saturating_sub(previous)));
        self.done.extend(parts);
    }

    /// Divides the greeting of a restored machine that took `whole`: the way to its agent and back,
    /// then the agent's stages since it met this host.
    pub fn wake(&mut self, whole: Duration, hello: &GuestHello) {
        self.last = Instant::now();
        let inside = Duration::from_millis(hello.boot_ms.saturating_sub(hello.met_ms)).min(whole);
        let mut ends: Vec<_> = hello
            .stages
            .iter()
            .filter_map(|(name, end)| Some((end.checked_sub(hello.met_ms)?, name)))
            .collect();
        ends.sort_unstable();
        self.done
            .push(("wake".to_owned(), whole.saturating_sub(inside)));
        let mut previous = Duration::ZERO;
        for (end, name) in ends {
            let end = Duration::from_millis(end).min(inside);
            let part = end.saturating_sub(previous);
            self.done.push((format!("guest {name}"), part));
            previous = end.max(previous);
        }
        self.done
            .push(("hello".to_owned(), inside.saturating_sub(previous)));
    }

    /// A line a stage, in milliseconds.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let total = ("total".to_owned(), self.begun.elapsed());
        for (name, time) in self.done.iter().chain([&total]) {
            let _ = writeln!(text, "{name:>16} {:9.1} ms", time.as_secs_f64() * 1000.0);
        }
        text
    }

    /// One JSON object: stage to milliseconds, in order, and `total`.
    pub fn json(&self) -> String {
        let total = ("total".to_owned(), self.begun.elapsed());
        let fields: Vec<_> = self
            .done
            .iter()
            .chain([&total])
            .map(|(name, time)| {
                format!(
                    "{}:{:.1}",
                    serde_json::Value::from(name.as_str()),
                    time.as_secs_f64() * 1000.0
                )
            })
            .collect();
        format!("{{{}}}", fields.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_divided_without_rest() {
        let mut stages = Stages::new();
        let hello = GuestHello {
            boot_ms: 1500,
            stages: [("init", 900), ("modules", 1100), ("odd", 5000)]
                .map(|(name, ms)| (name.to_owned(), ms))
                .into(),
            ..GuestHello::default()
        };
        stages.boot(Duration::from_secs(2), &hello);
        let shown: Vec<_> = stages
            .done
            .iter()
            .map(|(name, time)| (name.as_str(), time.as_millis()))
            .collect();
        assert_eq!(
            shown,
            [
                ("emulator", 500),
                ("guest init", 900),
                ("guest modules", 200),
                ("guest odd", 400),
                ("hello", 0)
            ]
        );
    }

    #[test]
    fn a_restored_machine_shows_what_came_after_its_snapshot() {
        let mut stages = Stages::new();
        let hello = GuestHello {
            boot_ms: 2050,
            met_ms: 2000,
            stages: [("modules", 1100), ("state", 2030), ("store", 2040)]
                .map(|(name, ms)| (name.to_owned(), ms))
                .into(),
            ..GuestHello::default()
        };
        stages.wake(Duration::from_millis(90), &hello);
        let shown: Vec<_> = stages
            .done
            .iter()
            .map(|(name, time)| (name.as_str(), time.as_millis()))
            .collect();
        assert_eq!(
            shown,
            [
                ("wake", 40),
                ("guest state", 30),
                ("guest store", 10),
                ("hello", 10)
            ]
        );
    }

    #[test]
    fn both_forms_name_the_stages() {
        let mut stages = Stages::new();
        stages.mark("locate");
        assert!(stages.table().contains("locate"));
        let json: serde_json::Value = serde_json::from_str(&stages.json()).unwrap();
        assert!(json["locate"].is_number() && json["total"].is_number());
    }
}
