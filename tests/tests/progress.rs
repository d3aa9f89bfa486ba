//! What a push over a narrow way shows of itself: on a terminal, in a log, to a program.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::layout::{digest, noise, write_image};
use vdkr_tests::process::{Ran, run};
use vdkr_tests::pty::Terminal;
use vdkr_tests::registry::{Registry, container_registry};
use vdkr_tests::scripted::narrow;

/// Bytes of the layer, and of the way in a second: a log gets its first line after ten seconds.
const LAYER: u32 = 48 << 20;
const WIDTH: u32 = 2_500_000;

/// A registry behind a narrow way, and an image for it.
struct Place {
    dir: TempDir,
    port: u16,
    /// Hex digits by which the layer is shown.
    layer: String,
    _registry: Registry,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let bytes = noise(11, LAYER as usize);
        let layer = digest(&bytes)["sha256:".len()..][..12].to_owned();
        write_image(&dir.path().join("app-latest-oci"), "amd64", &[bytes]);
        let registry = Registry::start();
        Self {
            dir,
            port: narrow(registry.port(), WIDTH as usize),
            layer,
            _registry: registry,
        }
    }

    fn push(&self, options: &[&str]) -> Command {
        let mut command = container_registry();
        command
            .env("CONTAINER_REGISTRY_URL", format!("localhost:{}", self.port))
            .env("CONTAINER_REGISTRY_STORAGE", self.dir.path().join("none"))
            .env("HOME", self.dir.path())
            .env("TERM", "xterm")
            .args(options)
            .arg("push")
            .arg(self.dir.path().join("app-latest-oci"))
            .args(["--tag", "v1"]);
        command
    }

    fn piped(&self, options: &[&str]) -> Ran {
        let ran = run(&mut self.push(options)).expect(0);
        assert!(ran.text().starts_with("localhost:"), "{}", ran.text());
        ran
    }
}

/// What a terminal was given to draw, without colours and the cursor's ways (ECMA-48, "CSI"), one item for
/// each time that something was drawn.
fn drawn(shown: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut rest = shown.chars();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => {
                let sequence: String = rest
                    .by_ref()
                    .skip(1)
                    .take_while(|c| !c.is_ascii_alphabetic())
                    .collect();
                // All but the end of a colour begins something new, or leads to another place.
                if sequence != "0" {
                    plain.push('\n');
                }
            }
            '\r' => plain.push('\n'),
            c => plain.push(c),
        }
    }
    plain.lines().map(str::to_owned).collect()
}

/// Bytes of a size as it is shown, such as `1.50 MiB`.
fn size(number: &str, unit: &str) -> Option<f64> {
    let units = ["B", "KiB", "MiB", "GiB"];
    let power = units.iter().position(|known| *known == unit)?;
    Some(number.parse::<f64>().ok()? * 1024_f64.powi(i32::try_from(power).ok()?))
}

/// The layer's bar: bytes that are through, rate in bytes a second, remaining time.
fn bar(line: &str, layer: &str) -> Option<(f64, f64, String)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [
        digest,
        label,
        _,
        done,
        unit_of,
        total_unit,
        rate,
        rate_unit,
        left,
    ] = words[..]
    else {
        return None;
    };
    let (unit, total) = unit_of.split_once('/')?;
    let whole = size(total, total_unit)?;
    let rate = size(rate, rate_unit.strip_suffix("/s")?)?;
    let is_ours = digest == layer && label == "blob" && (whole - f64::from(LAYER)).abs() < 1.0;
    is_ours.then_some((size(done, unit)?, rate, left.to_owned()))
}

#[test]
fn a_terminal_has_a_bar_with_digest_rate_and_remaining_time() {
    let place = Place::new();
    let mut terminal = Terminal::start(&place.push(&[]), 40, 120);
    terminal.until("localhost:");
    terminal.until("/yocto/app:v1");
    let shown = terminal.shown();
    assert!(terminal.ended().success(), "{shown}");

    let lines = drawn(&shown);
    let bars: Vec<_> = lines
        .iter()
        .filter_map(|line| bar(line, &place.layer))
        .collect();
    let moving: Vec<_> = bars
        .iter()
        .filter(|(done, rate, _)| *done > 0.0 && *done < f64::from(LAYER) && *rate > 0.0)
        .collect();
    assert!(moving.len() > 3, "{lines:?}");
    assert!(moving.first().unwrap().0 < moving.last().unwrap().0);
    // Nothing is quicker than the way is wide; at first a queue swallows some.
    let (_, rate, left) = moving.last().unwrap();
    assert!(*rate < 4.0 * f64::from(WIDTH), "{rate} bytes a second");
    let is_time = |left: &str| {
        let digits = left.trim_end_matches(['s', 'm', 'h']);
        digits.len() + 1 == left.len() && digits.parse::<u32>().is_ok()
    };
    assert!(moving.iter().all(|(.., left)| is_time(left)), "{left}");
    // The bar goes, and its end stays.
    let end = format!("{} uploaded", place.layer);
    let ends = lines.iter().filter(|line| line.trim_end() == end);
    assert_eq!(ends.count(), 1, "{lines:?}");
}

#[test]
fn a_log_has_plain_lines() {
    let place = Place::new();
    let ran = place.piped(&[]);
    for control in ['\x1b', '\r'] {
        assert!(!ran.stderr.contains(control), "{:?}", ran.stderr);
    }
    let states: Vec<_> = ran
        .stderr
        .lines()
        .filter(|line| line.contains(", ETA "))
        .collect();
    let first = states.first().expect("a line after ten seconds");
    for words in [" of 2 blobs, ", " MiB of 48.0 MiB (", "%), ", "/s, ETA "] {
        assert!(first.contains(words), "{first}");
    }
    assert!(!first.ends_with("unknown"), "{first}");
    let last = ran.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("3 uploaded in "), "{}", ran.stderr);
}

#[test]
fn a_program_has_one_object_a_line() {
    let place = Place::new();
    let ran = place.piped(&["--progress", "jsonl"]);
    let events: Vec<Value> = ran
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect();
    let mut last = 0;
    for event in &events {
        assert_eq!(event["v"], 1, "{event}");
        let ms = event["ms"].as_u64().unwrap();
        assert!(ms >= last, "{event}");
        last = ms;
    }
    let id = |event: &Value| event["id"].as_str().unwrap_or_default().to_owned();
    let of = |name: &str| -> Vec<&Value> {
        let ours = |event: &&Value| event["event"] == name && id(event).contains(&place.layer);
        events.iter().filter(ours).collect()
    };
    let [started] = of("started")[..] else {
        panic!("{}", ran.stderr)
    };
    assert_eq!(
        (&started["what"], &started["total"]),
        (&"blob".into(), &LAYER.into())
    );
    let done: Vec<_> = of("progress")
        .iter()
        .map(|event| event["done"].as_u64().unwrap())
        .collect();
    assert!(done.len() > 3 && done.is_sorted(), "{done:?}");
    let [finished] = of("finished")[..] else {
        panic!("{}", ran.stderr)
    };
    assert_eq!(finished["outcome"], "uploaded");
    let total = events.iter().find(|event| event["event"] == "total");
    let total = total.expect("the sum after ten seconds");
    assert_eq!(total["items"], 2, "{total}");
    for key in ["bytes_done", "rate", "eta_seconds"] {
        assert!(
            total[key].as_u64().is_some_and(|number| number > 0),
            "{total}"
        );
    }
}
