//! Commands of a registry's day, one after the other, and what they say with everything masked that
//! differs from one day or machine to the next.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdkr_core::credentials::Credential;
use vdkr_host::registry_cli::help;

use crate::rig::gate::Gate;
use crate::rig::{User, stderr, stdout, write_layout};

/// Status and words; `< TEXT` at the end is what is typed, `HOST` the registry, `GATE` one that wants a
/// password.
pub(crate) const LINES: &[(i32, &[&str])] = &[
    (3, &["status"]),
    (0, &["stop"]),
    (2, &["start", "--listen", "everywhere"]),
    (0, &["start"]),
    (0, &["start"]),
    (0, &["status"]),
    (2, &["serve", "--listen", "everywhere"]),
    (2, &["stop", "now"]),
    (0, &["label", "app-latest-oci", "--label", "a=b"]),
    (5, &["label", "nowhere", "--label", "a=b"]),
    (0, &["push", "app-latest-oci", "--tag", "v1", "--tag", "v2"]),
    (0, &["push", "other-latest-oci", "--tag", "v1"]),
    (5, &["push", "./nowhere"]),
    (
        7,
        &[
            "push",
            "app-latest-oci",
            "torn-latest-oci",
            "--strategy",
            "latest",
        ],
    ),
    (0, &["import", "HOST/yocto/app:v1", "taken"]),
    (5, &["import", "HOST/yocto/nothing:v1"]),
    (0, &["copy", "oci:app-latest-oci", "oci:copied:v1"]),
    (5, &["copy", "oci:nowhere", "oci:copied:v2"]),
    (2, &["copy", "ftp://app", "oci:copied:v2"]),
    (0, &["list"]),
    (3, &["--url", "localhost:1", "list"]),
    (0, &["tags", "app"]),
    (5, &["tags", "nothing"]),
    (0, &["catalog"]),
    (3, &["--url", "localhost:1", "catalog"]),
    (0, &["inspect", "app:v1"]),
    (5, &["inspect", "app:nothing"]),
    (0, &["push", "next/app-latest-oci", "--tag", "v1"]),
    (0, &["history", "app:v1"]),
    (5, &["history", "app:nothing"]),
    (0, &["rollback", "app:v1"]),
    (5, &["rollback", "app:nothing"]),
    (5, &["rollback", "other:v1"]),
    (0, &["pin", "app:v1"]),
    (5, &["pin", "app:nothing"]),
    (0, &["unpin", "app:v1"]),
    (5, &["unpin", "app:nothing"]),
    (0, &["delete", "app:v2"]),
    (5, &["delete", "app:v2"]),
    (2, &["delete", "app"]),
    (0, &["delete", "app:latest"]),
    (0, &["push", "next/app-latest-oci", "--tag", "v3"]),
    (
        0,
        &["prune", "app", "--keep-last", "1", "--explain", "--dry-run"],
    ),
    (0, &["prune", "app", "--keep-last", "1", "< n"]),
    (0, &["prune", "app", "--keep-last", "1", "--yes"]),
    (2, &["prune"]),
    (0, &["gc", "--grace", "0s", "--keep-history", "0", "< n"]),
    (0, &["gc", "--grace", "0s", "--keep-history", "0", "--yes"]),
    (1, &["gc"]),
    (0, &["fsck"]),
    (
        3,
        &[
            "--url",
            "0.0.0.0:1",
            "--insecure",
            "0.0.0.0:1",
            "--storage",
            "/dev/null/none",
            "fsck",
        ],
    ),
    (5, &["pki", "show"]),
    (0, &["pki", "init"]),
    (0, &["pki", "show"]),
    (0, &["pki", "renew"]),
    (0, &["pki", "renew", "--ca"]),
    (1, &["--storage", "/dev/null/none", "pki", "init"]),
    (1, &["--storage", "/dev/null/none", "pki", "renew"]),
    (
        0,
        &["bake", "--rootfs", "rootfs", "--profile", "docker,podman"],
    ),
    (0, &["bake", "--rootfs", "rootfs", "--undo"]),
    (5, &["bake", "--rootfs", "nowhere", "--profile", "docker"]),
    (2, &["bake", "--rootfs", "rootfs", "--profile", "dokcer"]),
    (4, &["--url", "GATE", "list"]),
    (
        4,
        &["login", "GATE", "-u", "me", "--password-stdin", "< wrong"],
    ),
    (
        0,
        &["login", "GATE", "-u", "me", "--password-stdin", "< right"],
    ),
    (0, &["auth", "explain", "GATE"]),
    (2, &["auth", "explain", "--authfile", "nowhere"]),
    (0, &["logout", "GATE"]),
    (2, &["logout", "no host"]),
    (0, &["config"]),
    (2, &["--url", "no host", "config"]),
    (0, &["info"]),
    (2, &["info", "all"]),
    (0, &["doctor"]),
    (0, &["stop"]),
    (1, &["doctor"]),
    (0, &["serve"]),
    (0, &["completions", "fish"]),
    (2, &["completions", "tcsh"]),
    (0, &["man", "pages"]),
    (1, &["man", "/dev/null/pages"]),
];

/// What `doctor` finds on every machine.
const SAME_EVERYWHERE: [&str; 6] = [
    "storage",
    "clock",
    "server",
    "listening",
    "registry",
    "guest",
];

/// A user's day.
pub(crate) struct Day {
    user: User,
    /// What was typed and said.
    pub(crate) text: String,
    /// Commands, and whether they succeeded.
    pub(crate) seen: BTreeSet<(String, bool)>,
    digests: Vec<String>,
}

/// A user with images, and a registry elsewhere that wants a password.
pub(crate) fn prepared() -> (Day, Gate) {
    let mut user = User::new();
    user.set("TZ", "UTC").set("OCI_IMAGE_AUTO_LABELS", "0");
    user.started = true;
    write_layout(&user.path("app-latest-oci"), "one");
    write_layout(&user.path("next/app-latest-oci"), "two");
    write_layout(&user.path("other-latest-oci"), "three");
    user.write(
        "torn-latest-oci/oci-layout",
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    user.write("torn-latest-oci/index.json", "{ torn");
    std::fs::create_dir(user.path("rootfs")).unwrap();
    let right = Credential::from_pair("me:right").unwrap();
    let gate = Gate::open(right.authorization().unwrap().expose(), None);
    let day = Day {
        user,
        text: String::new(),
        seen: BTreeSet::new(),
        digests: Vec::new(),
    };
    (day, gate)
}

impl Day {
    /// Types one line and keeps what is said.
    #[track_caller]
    pub(crate) fn says(&mut self, code: i32, words: &[&str], gate: &Gate) {
        let (host, gate) = (self.user.host(), gate.host());
        let (typed, words) = match words.split_last() {
            Some((last, words)) if last.starts_with("< ") => (&last[2..], words),
            _ => ("", words),
        };
        let line: Vec<_> = words
            .iter()
            .map(|word| word.replace("HOST", &host).replace("GATE", &gate))
            .collect();
        let output = if words == ["serve"] {
            self.serve()
        } else {
            self.user.run_with_input(&line, typed.as_bytes())
        };
        let found = output.status.code().unwrap();
        let (out, err) = (stdout(&output), stderr(&output));
        assert_eq!(found, code, "{words:?}\n{out}{err}");
        self.seen.insert((leaf(words), code == 0));
        let shown = words.join(" ");
        let typed = match typed {
            "" => String::new(),
            typed => format!(" < {typed}"),
        };
        writeln!(self.text, "$ container-registry {shown}{typed}").unwrap();
        let (out, err) = match words {
            // They have a test of their own.
            ["completions", ..] if code == 0 => ("…\n".to_owned(), err),
            // How much there is to be looked at hangs on the machine.
            ["doctor"] => (doctor(&out), String::new()),
            _ => (out, err),
        };
        for (stream, text) in [("", out), ("! ", err)] {
            let text = text.replace(&host, "HOST").replace(&gate, "GATE");
            let port = self.user.port;
            let text = [":", "port ", "registry-"]
                .iter()
                .fold(text, |text, before| {
                    text.replace(&format!("{before}{port}"), &format!("{before}PORT"))
                });
            let home = self.user.home.path().display().to_string();
            // Images that lie in the home are from a machine of its name.
            let name = self.user.home.path().file_name().unwrap();
            let text = text.replace(&home, "HOME");
            for line in text.replace(name.to_str().unwrap(), "HOME").lines() {
                let line = self.masked(line);
                writeln!(self.text, "{stream}{}", line.trim_end()).unwrap();
            }
        }
        writeln!(self.text, "(status {code})\n").unwrap();
    }

    /// In the foreground until it answers, then told to end.
    fn serve(&self) -> Output {
        let mut serve = self.user.command(["serve"]);
        let child = serve
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.user.run(["catalog"]).status.code() != Some(0) {
            assert!(Instant::now() < deadline, "it does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        child.wait_with_output().unwrap()
    }

    /// A line without digests, times, and numbers of processes. Equal digests stay equal.
    fn masked(&mut self, line: &str) -> String {
        // This machine's.
        if line.trim_start().starts_with("Names: ") {
            return "  Names: …".into();
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || ":-_.".contains(c);
        let mut masked = String::new();
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            if length == 0 {
                masked.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let (token, behind) = rest.split_at(length);
            let behind_it = |words: &str| masked.ends_with(words);
            let known = if behind_it("PID: ") || behind_it("pid ") {
                "PID".to_owned()
            } else if behind_it("Registry CA ") {
                "HEX".to_owned()
            } else if behind.starts_with(" days left") {
                "N".to_owned()
            } else {
                self.token(token)
            };
            masked.push_str(&known);
            rest = behind;
        }
        squeezed(&masked)
    }

    fn token(&mut self, token: &str) -> String {
        let hex = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit());
        let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        let (prefix, last) = match token.rsplit_once("sha256:") {
            Some((prefix, last)) => (format!("{prefix}sha256:"), last),
            None => (String::new(), token),
        };
        if matches!(last.len(), 12 | 64) && hex(last) {
            let known = self
                .digests
                .iter()
                .position(|known| known.starts_with(last));
            let at = known.unwrap_or_else(|| {
                self.digests.push(last.to_owned());
                self.digests.len() - 1
            });
            return format!("{prefix}DIGEST{at}");
        }
        // A certificate's fingerprint.
        if token.len() == 95 && token.split(':').all(|pair| pair.len() == 2 && hex(pair)) {
            return "FINGERPRINT".into();
        }
        let date: Vec<_> = token.splitn(3, '-').collect();
        if date.len() == 3 && digits(date[0]) && date[0].len() == 4 && digits(date[1]) {
            return "TIME".into();
        }
        let clock: Vec<_> = token.split(':').collect();
        if clock.len() == 3 && clock.iter().all(|part| part.len() == 2 && digits(part)) {
            return String::new();
        }
        let number = token.trim_end_matches(char::is_alphabetic);
        let unit = &token[number.len()..];
        if matches!(unit, "s" | "ms") && number.parse::<f64>().is_ok() {
            return "TIME".into();
        }
        token.to_owned()
    }
}

/// Columns are as wide as what is in them; two blanks are enough.
fn squeezed(line: &str) -> String {
    let indent = line.len() - line.trim_start().len();
    let mut text = line[..indent].to_owned();
    let mut blanks = 0;
    for c in line[indent..].chars() {
        blanks = if c == ' ' { blanks + 1 } else { 0 };
        if blanks <= 2 {
            text.push(c);
        }
    }
    text
}

/// What does not hang on the machine.
fn doctor(text: &str) -> String {
    let mut kept = String::new();
    let mut keeps = false;
    for line in text.lines() {
        if !line.starts_with(' ') {
            let subject = line.split_whitespace().nth(1);
            keeps = subject.is_some_and(|subject| SAME_EVERYWHERE.contains(&subject));
        }
        if keeps {
            writeln!(kept, "{line}").unwrap();
        }
    }
    kept
}

/// The command that a line is about.
fn leaf(words: &[&str]) -> String {
    let all = help::command();
    let mut command = &all;
    let mut found = Vec::new();
    for word in words {
        if let Some(below) = command.find_subcommand(word) {
            found.push(*word);
            command = below;
        } else if !found.is_empty() {
            break;
        }
    }
    found.join(" ")
}
