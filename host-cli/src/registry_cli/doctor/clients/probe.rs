//! Asking a client of this machine for something of the registry: its own trust, its own login.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

/// How long a client may take; podman makes a store of its own first.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most that is kept of what a client says, in bytes.
const MAX_WORDS: u64 = 64 * 1024;

/// A client, with the program that was found.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has the image's manifest.
    Fetched,
    /// The registry let it in, and said that there is no such image.
    Unknown,
    /// It does not trust the registry, or wants TLS of one that has none.
    Distrust(String),
    /// The registry wants another login, or one at all.
    NoLogin,
    /// Anything else, in the client's words.
    Failed(String),
    /// No answer in time.
    Late,
}

/// Has the client fetch an image's manifest, which every pull begins with. `insecure`: docker's daemon
/// would not insist on TLS; its command has to be told.
pub(super) async fn fetch(client: &Client, image: &str, insecure: bool) -> Outcome {
    let scratch = match tempfile::tempdir() {
        Ok(scratch) => scratch,
        Err(error) => return Outcome::Failed(format!("no temporary directory: {error}")),
    };
    let mut args = store_of_its_own(client.name, scratch.path());
    match client.name {
        "skopeo" => args.extend(["inspect", "--raw"].map(OsString::from)),
        _ => args.extend(["manifest", "inspect"].map(OsString::from)),
    }
    if insecure && client.name == "docker" {
        args.push("--insecure".into());
    }
    args.push(match client.name {
        "skopeo" => format!("docker://{image}").into(),
        _ => image.into(),
    });
    let ran = run(&client.program, &args, false, PATIENCE).await;
    match ran {
        Ok(Some(ran)) if ran.done => Outcome::Fetched,
        Ok(Some(ran)) => judge(&ran.words),
        Ok(None) => Outcome::Late,
        Err(error) => Outcome::Failed(format!("{}: {error}", client.program.display())),
    }
}

/// The user that the client would log in as.
pub(super) async fn login(client: &Client, host: &str) -> Option<String> {
    let scratch = tempfile::tempdir().ok()?;
    let mut args = store_of_its_own(client.name, scratch.path());
    args.extend(["login", "--get-login", host].map(OsString::from));
    let ran = run(&client.program, &args, true, PATIENCE).await.ok()??;
    let name = ran.output.trim();
    (ran.done && !name.is_empty()).then(|| name.to_owned())
}

/// Options that keep podman from making its store where images of the user would be.
fn store_of_its_own(name: &str, scratch: &Path) -> Vec<OsString> {
    if name != "podman" {
        return Vec::new();
    }
    let at = |name: &str| scratch.join(name).into_os_string();
    let mut args = vec!["--root".into(), at("root"), "--runroot".into(), at("run")];
    args.extend(["--storage-driver", "vfs", "--events-backend", "none"].map(OsString::from));
    args.extend(["--cgroup-manager", "cgroupfs"].map(OsString::from));
    args
}

struct Ran {
    done: bool,
    output: String,
    words: String,
}

/// Runs to the end, `None` when that takes too long.
async fn run(
    program: &Path,
    args: &[OsString],
    listen: bool,
    patience: Duration,
) -> io::Result<Option<Ran>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = super::SYSTEM.iter().map(PathBuf::from);
    let path = std::env::join_paths(std::env::split_paths(&path).chain(more));
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", path.as_deref().unwrap_or(OsStr::new("/usr/bin")))
        .stdin(Stdio::null())
        .stdout(if listen {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let whole = async {
        let (output, words, status) = tokio::join!(text(stdout), text(stderr), child.wait());
        Ok::<_, io::Error>(Ran {
            done: status?.success(),
            output,
            words,
        })
    };
    tokio::time::timeout(patience, whole).await.ok().transpose()
}

/// The beginning of what comes; the rest is read, so that nobody waits for us, and forgotten.
async fn text(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(from) = from else {
        return String::new();
    };
    let (mut bytes, mut from) = (Vec::new(), from.take(MAX_WORDS));
    let _ = from.read_to_end(&mut bytes).await;
    let _ = tokio::io::copy(&mut from.into_inner(), &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a client's words mean. All of these are written in Go, over the same libraries.
fn judge(words: &str) -> Outcome {
    let line = last_line(words);
    let says = |parts: &[&str]| parts.iter().any(|part| line.contains(part));
    if says(&[
        "manifest unknown",
        "name unknown",
        "repository name not known",
    ]) {
        Outcome::Unknown
    } else if says(&["x509:", "tls: ", "HTTP response to HTTPS client"]) {
        Outcome::Distrust(line)
    } else if says(&[
        "unauthorized",
        "no basic auth credentials",
        "authentication required",
        "denied",
        "invalid username/password",
    ]) {
        Outcome::NoLogin
    } else {
        Outcome::Failed(line)
    }
}

/// The last line that says something, without a logger's ornaments.
fn last_line(words: &str) -> String {
    const LONGEST: usize = 300;
    let line = words.lines().map(str::trim).rfind(|line| !line.is_empty());
    let line = line.unwrap_or("it failed without a word");
    let line = match line.split_once(" msg=\"") {
        Some((_, message)) => message.trim_end_matches('"').replace("\\\"", "\""),
        None => line.trim_start_matches("Error: ").to_owned(),
    };
    let mut short: String = line.chars().take(LONGEST).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn words_of_real_clients() {
        let skopeo = |cause: &str| {
            format!(
                "time=\"2026-01-01T00:00:00Z\" level=fatal msg=\"Error parsing image name \\\"docker://r/a:b\\\": {cause}\"\n"
            )
        };
        let is = |words: &str| match judge(words) {
            Outcome::Unknown => "unknown",
            Outcome::Distrust(_) => "distrust",
            Outcome::NoLogin => "login",
            _ => "failed",
        };
        for (words, expected) in [
            (
                skopeo("reading manifest b in r/a: manifest unknown: no such"),
                "unknown",
            ),
            (
                skopeo(
                    "pinging container registry r: Get \\\"https://r/v2/\\\": x509: certificate signed by unknown authority",
                ),
                "distrust",
            ),
            (
                skopeo(
                    "pinging container registry r: Get \\\"https://r/v2/\\\": http: server gave HTTP response to HTTPS client",
                ),
                "distrust",
            ),
            (
                skopeo("reading manifest b in r/a: unauthorized: authentication required"),
                "login",
            ),
            (
                skopeo("pinging container registry r: dial tcp 127.0.0.1:1: connection refused"),
                "failed",
            ),
            (
                "Error: reading image \"docker://r/a:b\": reading manifest b in r/a: name unknown: repository name not known to registry".into(),
                "unknown",
            ),
            (
                "Get \"https://r/v2/a/manifests/b\": no basic auth credentials".into(),
                "login",
            ),
            ("no such manifest: r/a:b\n".into(), "failed"),
            (String::new(), "failed"),
        ] {
            assert_eq!(is(&words), expected, "{words}");
        }
        assert_eq!(
            last_line(&skopeo("cause")),
            "Error parsing image name \"docker://r/a:b\": cause"
        );
        assert_eq!(last_line("a\nError: b\n\n"), "b");
        assert_eq!(last_line(&"é".repeat(1000)).chars().count(), 301);
    }

    fn script(dir: &Path, body: &str) -> PathBuf {
        let path = dir.join("client");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn clients_are_asked_in_their_own_way_and_podman_in_a_store_that_is_gone_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(
            dir.path(),
            "printf '%s\\n' \"$@\" > \"$0.args\"; test \"$1\" != --root || test -d \"${2%/*}\"",
        );
        let args = async |name: &'static str, insecure: bool| {
            let program = program.clone();
            let outcome = fetch(&Client { name, program }, "r/a:b", insecure).await;
            assert_eq!(outcome, Outcome::Fetched, "{name}");
            let args = fs::read_to_string(dir.path().join("client.args")).unwrap();
            args.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let podman = args("podman", true).await;
        assert_eq!(podman[0], "--root");
        assert!(!Path::new(&podman[1]).parent().unwrap().exists());
        assert_eq!(
            podman[podman.len() - 3..],
            ["manifest", "inspect", "r/a:b"].map(str::to_owned)
        );
        let skopeo = args("skopeo", true).await;
        assert_eq!(skopeo, ["inspect", "--raw", "docker://r/a:b"]);
        let docker = args("docker", false).await;
        assert_eq!(docker, ["manifest", "inspect", "r/a:b"]);
        let docker = args("docker", true).await;
        assert_eq!(docker, ["manifest", "inspect", "--insecure", "r/a:b"]);
    }

    #[tokio::test]
    async fn a_client_that_hangs_or_talks_on_and_on_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let hangs = script(dir.path(), "exec sleep 1000");
        let ran = run(&hangs, &[], true, Duration::from_millis(200)).await;
        assert!(ran.unwrap().is_none());
        let talks = script(
            dir.path(),
            "head -c 1000000 /dev/zero >&2; echo out; exit 3",
        );
        let ran = run(&talks, &[], true, PATIENCE).await.unwrap().unwrap();
        assert!(!ran.done);
        assert_eq!(ran.words.len() as u64, MAX_WORDS);
        assert_eq!(ran.output, "out\n");
        assert!(
            run(&dir.path().join("none"), &[], true, PATIENCE)
                .await
                .is_err()
        );
    }
}
