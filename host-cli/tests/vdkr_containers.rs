//! The commands about containers against an agent without a machine: what is asked, what is
//! printed, which status comes out.

mod fake_agent;
mod user;

use std::fs;

use user::{User, status, stderr, stdout};
use vdkr_core::{
    channel::message::{ContainerRequest, ExecRequest, LogsRequest, Request, Until},
    container::restart::RestartPolicy,
};

fn asked(user: &User) -> ContainerRequest {
    match user.requests().pop() {
        Some(Request::Container(request)) => request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_detached_run_prints_the_id() {
    let user = User::with_agent();
    let cid = user.home.path().join("cid");
    let output = user.run(&[
        "run",
        "-d",
        "--restart",
        "on-failure:2",
        "--init",
        "--stop-signal=INT",
        "--stop-timeout",
        "3",
        "-l",
        "a=b",
        "--cidfile",
        cid.to_str().unwrap(),
        "img",
        "true",
    ]);
    status(&output, 0);
    assert_eq!(stdout(&output), format!("{}\n", "c".repeat(64)));
    assert_eq!(fs::read_to_string(cid).unwrap(), "c".repeat(64));
    let life = user.last_run().life;
    assert_eq!(life.until, Until::Started);
    assert_eq!(life.restart, RestartPolicy::OnFailure { max: 2 });
    assert!(life.init);
    assert_eq!((life.stop_signal, life.stop_timeout), (Some(2), Some(3)));
    assert_eq!(life.labels["a"], "b");

    status(&user.run(&["create", "-it", "img"]), 0);
    let run = user.last_run();
    assert!(run.tty && run.stdin && run.life.until == Until::Created);
    status(&user.run(&["vrun", "img", "exit", "4"]), 4);
    let run = user.last_run();
    assert!(run.rm && run.entrypoint == Some(Vec::new()));
}

#[test]
fn containers_are_listed() {
    let user = User::with_agent();
    let output = user.run(&["ps"]);
    status(&output, 0);
    let text = stdout(&output);
    assert!(text.starts_with("CONTAINER ID   IMAGE"), "{text}");
    assert!(
        text.contains("aaaaaaaaaaaa") && !text.contains("bbbbbbbbbbbb"),
        "{text}"
    );
    assert_eq!(
        stdout(&user.run(&["ps", "-aq"])),
        "aaaaaaaaaaaa\nbbbbbbbbbbbb\n"
    );
    let shown = user.run(&[
        "ps",
        "-a",
        "--filter",
        "status=exited",
        "--format",
        "{{.Names}} {{.Status}}",
    ]);
    assert_eq!(stdout(&shown), "old Exited (3)\n");
    let json = stdout(&user.run(&["ps", "--format", "json"]));
    let row: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(row["Names"], "web");
    for wrong in [
        &["ps", "--filter", "colour=red"][..],
        &["ps", "--format", "{{.Nothing"],
    ] {
        status(&user.run(wrong), 2);
    }
}

#[test]
fn several_are_done_one_after_the_other() {
    let user = User::with_agent();
    let output = user.run(&["stop", "-t", "-1", "-s", "HUP", "web", "missing", "old"]);
    status(&output, 7);
    assert_eq!(stdout(&output), "web\nold\n");
    assert!(stderr(&output).contains("no such container: missing"));
    let expected = ContainerRequest::Stop {
        name: "old".into(),
        timeout: Some(-1),
        signal: Some(1),
    };
    assert_eq!(asked(&user), expected);
    status(&user.run(&["rm", "missing"]), 5);
    let output = user.run(&["rm", "-f", "missing", "web"]);
    status(&output, 0);
    assert_eq!(stdout(&output), "web\n");
    assert!(stderr(&output).contains("no such container: missing"));
    let output = user.run(&["wait", "web", "old"]);
    assert_eq!(stdout(&output), "3\n3\n");
    status(&user.run(&["kill", "-s", "RTMIN+1", "web"]), 0);
    assert!(matches!(
        asked(&user),
        ContainerRequest::Kill { signal: 35, .. }
    ));
    status(&user.run(&["kill", "-s", "NOPE", "web"]), 2);
    status(&user.run(&["rename", "web", "site"]), 0);
    status(&user.run(&["start", "-a", "web", "old"]), 2);
}

#[test]
fn exec_takes_its_own_options_and_no_others() {
    let user = User::with_agent();
    let file = user.home.path().join("vars");
    fs::write(&file, "F=2\n").unwrap();
    let file = file.to_str().unwrap();
    let words = [
        "exec",
        "-d",
        "-e",
        "A=1",
        "--env-file",
        file,
        "-u",
        "me",
        "-w",
        "/x",
        "web",
        "ls",
        "-la",
        "--",
        "-d",
        "",
    ];
    status(&user.run(&words), 0);
    let expected = ExecRequest {
        name: "web".into(),
        args: ["ls", "-la", "--", "-d", ""].map(Into::into).into(),
        env: vec!["F=2".into(), "A=1".into()],
        workdir: Some("/x".into()),
        user: Some("me".into()),
        detach: true,
        ..ExecRequest::default()
    };
    assert_eq!(asked(&user), ContainerRequest::Exec(expected));
    status(&user.run(&["exec", "-d", "web", "missing"]), 127);
    status(&user.run(&["exec", "web"]), 2);
    status(&user.run(&["exec", "-it", "web", "sh"]), 2);
}

#[test]
fn logs_are_asked_for_as_told() {
    let user = User::with_agent();
    let words = [
        "logs",
        "-ft",
        "-n",
        "5",
        "--since",
        "1970-01-01T00:00:02Z",
        "--until",
        "3",
        "web",
    ];
    status(&user.run(&words), 0);
    let expected = LogsRequest {
        name: "web".into(),
        follow: true,
        timestamps: true,
        tail: Some(5),
        since_ns: Some(2_000_000_000),
        until_ns: Some(3_000_000_000),
    };
    assert_eq!(asked(&user), ContainerRequest::Logs(expected));
    status(&user.run(&["logs", "-n", "few", "web"]), 2);
    status(&user.run(&["logs", "--since", "soon", "web"]), 2);
}

#[test]
fn inspect_finds_containers_and_images() {
    let user = User::with_agent();
    let output = user.run(&["inspect", "web", "img", "missing"]);
    status(&output, 7);
    let documents: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(documents[0]["Name"], "/web");
    assert_eq!(documents[1]["Id"], "img");
    status(&user.run(&["inspect", "--type", "container", "img"]), 5);
    let output = user.run(&["image", "inspect", "web"]);
    assert!(stdout(&output).contains("\"Id\": \"web\""));
}

#[test]
fn a_copy_needs_one_container() {
    let user = User::with_agent();
    for words in [
        ["cp", "a", "b"],
        ["cp", "web:/a", "old:/b"],
        ["cp", "-", "./b"],
        ["cp", "web:", "b"],
    ] {
        status(&user.run(&words), 2);
    }
}

#[test]
fn what_cannot_stay_is_not_detached() {
    let user = User::new();
    let output = user.run(&["--stateless", "run", "-d", "img"]);
    status(&output, 125);
    assert!(
        stderr(&output).contains("without state"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn ports_of_a_container_and_of_none() {
    let user = User::with_agent();
    for name in ["web", "aaaa"] {
        let output = user.run(&["port", name]);
        status(&output, 0);
        assert_eq!(stdout(&output), "80/tcp -> 127.0.0.1:8080\n");
    }
    let output = user.run(&["port", "old"]);
    status(&output, 0);
    assert!(stderr(&output).contains("no port of this computer leads to container old"));
    status(&user.run(&["port", "old", "80"]), 1);
    let output = User::new().run(&["port", "web"]);
    status(&output, 0);
    assert!(
        stderr(&output).contains("no machine runs"),
        "{}",
        stderr(&output)
    );
    for words in [&["port", "nosuch"][..], &["port", "nosuch", "80"]] {
        let output = user.run(words);
        status(&output, 5);
        assert!(
            stderr(&output).contains("no such container: nosuch"),
            "{}",
            stderr(&output)
        );
    }
}
