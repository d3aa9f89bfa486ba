//! `vdkr run -v`, `--mount` and `vdkr volume` against an agent without a machine.

mod fake_agent;
mod user;

use std::fs;

use user::{User, status, stderr, stdout};
use vdkr_core::channel::message::{MountSource, Request, VolumeAction};

#[test]
fn mounts_reach_the_agent_without_any_path_of_the_hosts() {
    let user = User::with_agent();
    let dir = user.home.path().join("data");
    fs::create_dir(&dir).unwrap();
    let volume = format!("{}:/v:ro", dir.display());
    let again = format!("type=bind,source={}/../data,target=/w,ro", dir.display());
    let args = [
        "run",
        "-v",
        &volume,
        "--mount",
        &again,
        "-v",
        "named:/n",
        "-v",
        "/a",
        "--mount",
        "type=tmpfs,target=/t,tmpfs-size=1m",
        "img",
        "exit",
        "0",
    ];
    status(&user.run(&args), 0);
    let run = user.last_run();
    let targets: Vec<_> = run.mounts.iter().map(|mount| &*mount.target).collect();
    assert_eq!(targets, ["/v", "/w", "/n", "/a", "/t"]);
    assert!(run.mounts[0].read_only && !run.mounts[2].read_only);
    for mount in &run.mounts[..2] {
        assert!(matches!(&mount.source, MountSource::Share { share, .. } if share == "feedfeed"));
    }
    let named = |name: Option<&str>| MountSource::Volume {
        name: name.map(Into::into),
        no_copy: false,
    };
    assert_eq!(run.mounts[2].source, named(Some("named")));
    assert_eq!(run.mounts[3].source, named(None));
    // The same path is served once.
    let requests = user.agent.requests.lock().unwrap();
    let served: Vec<_> = requests
        .iter()
        .filter(|request| matches!(request, Request::Share { .. }))
        .collect();
    let path = dir.canonicalize().unwrap().display().to_string();
    let read_only = true;
    let name = None;
    assert_eq!(
        served,
        [&Request::Share {
            path,
            read_only,
            name
        }]
    );
}

#[test]
fn what_cannot_be_mounted_is_refused_before_anything_runs() {
    let user = User::with_agent();
    let typo = user.home.path().join("typo");
    let volume = format!("{}:/v", typo.display());
    let output = user.run(&["run", "-v", &volume, "img", "exit", "0"]);
    status(&output, 125);
    assert_eq!(
        stderr(&output),
        format!(
            "vdkr: volume source not found: {0}\nmake it first: mkdir -p {0}\n",
            typo.display()
        )
    );
    assert!(!typo.exists());
    for (words, told) in [
        (&["-v", "a/b:/v"][..], "./a/b"),
        (&["-v", "/dev/null:/v"], "neither a directory nor a file"),
        (&["-v", "/:/"], "no place for a mount"),
        (&["-v", "/:/v", "-v", "/:/v"], "two mounts on /v"),
        (&["--mount", "type=bind,target=/v"], "names no source"),
    ] {
        let output = user.run(&[&["run"], words, &["img", "exit", "0"]].concat());
        status(&output, 125);
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
    }
    assert!(user.agent.requests.lock().unwrap().is_empty());
}

#[test]
fn volumes_are_made_shown_and_removed() {
    let user = User::with_agent();
    let said = |args: &[&str]| {
        let output = user.run(args);
        status(&output, 0);
        stdout(&output)
    };
    assert_eq!(
        said(&["volume", "create", "data", "--label", "a=b"]),
        "data\n"
    );
    assert_eq!(said(&["volume", "create"]), "0123abcd\n");
    assert!(said(&["volume", "ls"]).starts_with("DRIVER   VOLUME NAME"));
    assert_eq!(said(&["volume", "list", "-q"]), "data\nother\n");
    let json: serde_json::Value = serde_json::from_str(&said(&["volume", "ls", "--json"])).unwrap();
    assert_eq!(json[1]["Name"], "other");
    assert!(
        said(&["volume", "inspect", "data"]).contains("\"CreatedAt\": \"2020-01-02T03:04:05Z\"")
    );
    assert_eq!(said(&["volume", "rm", "-f", "x1", "x2"]), "x1\nx2\n");
    let pruned = user.run(&["volume", "prune", "-f", "--all"]);
    assert_eq!(
        (stdout(&pruned), stderr(&pruned)),
        (
            "Deleted Volumes:\n0123abcd\n\nTotal reclaimed space: 4.26MB\n".into(),
            String::new()
        )
    );

    status(&user.run(&["volume", "inspect", "missing"]), 5);
    status(&user.run(&["volume", "create", "a/b"]), 2);
    // Nobody was asked, so nothing is removed.
    let asked = user.run(&["volume", "prune"]);
    status(&asked, 2);
    assert!(stderr(&asked).contains("--force"), "{}", stderr(&asked));
    let requests = user.agent.requests.lock().unwrap();
    let prunes = requests.iter().filter(|request| {
        matches!(
            request,
            Request::Volume {
                action: VolumeAction::Prune { .. }
            }
        )
    });
    assert_eq!(prunes.count(), 1);
}

/// A container that has the directory around another shared one can put a link in its place.
#[test]
fn a_start_gives_no_path_that_a_link_has_come_to_lead_elsewhere() {
    let user = User::with_agent();
    let data = user.home.path().canonicalize().unwrap().join("proj/data");
    fs::create_dir_all(&data).unwrap();
    fs::create_dir(user.home.path().join(".ssh")).unwrap();
    let granted = user.state_dir().join("granted");
    fs::create_dir(&granted).unwrap();
    let note = serde_json::json!({
        "paths": [{ "share": "00ff00ff", "path": data, "read_only": false }],
    });
    let id = "b".repeat(64);
    fs::write(granted.join(format!("{id}.json")), note.to_string()).unwrap();
    let shares = |user: &User| {
        let share = |request: &Request| matches!(request, Request::Share { .. });
        user.requests().iter().filter(|r| share(r)).count()
    };
    status(&user.run(&["start", "old"]), 0);
    assert_eq!(shares(&user), 1);

    fs::remove_dir(&data).unwrap();
    std::os::unix::fs::symlink("../.ssh", &data).unwrap();
    let output = user.run(&["start", "old"]);
    status(&output, 1);
    let words = stderr(&output);
    assert!(words.contains(data.to_str().unwrap()), "{words}");
    assert!(words.contains("symbolic link"), "{words}");
    assert_eq!(shares(&user), 1);

    fs::remove_file(&data).unwrap();
    fs::create_dir(&data).unwrap();
    status(&user.run(&["start", "old"]), 0);
    assert_eq!(shares(&user), 2);
}

#[test]
fn names_from_a_machine_are_one_line_of_text() {
    let user = User::with_agent();
    let name = "x\u{1b}[2J\nvdkr: y";
    let output = user.run(&["rmi", name]);
    assert!(
        stdout(&output).starts_with("Untagged: docker.io/library/x[2Jvdkr: y:latest\nDeleted: "),
        "{}",
        stdout(&output)
    );
}
