//! Requests to an engine that does what a test has it do.

use std::rc::Rc;

use serde_json::{Value, json};
use vdkr_core::{
    channel::message::{
        ContainerReply, ContainerRequest, ExecRequest, Failure, FailureCode, Life, PruneRequest,
        Removed, Reply, Request, RunRequest, VolumeAction,
    },
    container::restart::RestartPolicy,
    engine::EngineKind,
};

use super::{
    Engine, carry_out,
    scripted::{Host, Say, Turn, answer, ends, engine, engine_of, output, streams, turn},
};
use crate::{args::ServeOptions, channel::Control, request::Agent};

mod stores;

type Done = Result<Reply, Failure>;

/// Has a request carried out, and something done meanwhile.
async fn ask_while(
    engine: &Rc<Engine>,
    host: &Host,
    request: Request,
    meanwhile: impl AsyncFnOnce(&Host),
) -> Done {
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::open(&ServeOptions::of_state(state.path().to_owned())).unwrap();
    let agent = Rc::new(agent);
    let asked = carry_out(&agent, engine, request, &host.stream);
    tokio::join!(asked, meanwhile(host)).0
}

async fn ask(engine: &Rc<Engine>, host: &Host, request: Request) -> Done {
    ask_while(engine, host, request, async |_| {}).await
}

fn container(request: ContainerRequest) -> Request {
    Request::Container(request)
}

fn ok(document: &Value) -> Vec<Say> {
    answer(200, document)
}

fn nothing() -> Vec<Say> {
    answer(204, &Value::Null)
}

fn refusal(status: u16, words: &str) -> Vec<Say> {
    answer(status, &json!({ "message": words }))
}

/// What an engine says of the container `c`.
fn said(state: &str, status: i32, round: u64, policy: &str) -> Value {
    json!({
        "Id": "c", "Name": "/web", "RestartCount": round,
        "State": {"Status": state, "ExitCode": status, "StartedAt": "2023-11-14T22:13:21Z",
                  "FinishedAt": "2023-11-14T22:13:20Z"},
        "HostConfig": {"RestartPolicy": {"Name": policy, "MaximumRetryCount": 1}},
        "Config": {},
    })
}

/// What leads to a container that is being made.
fn making(mut turns: Vec<Turn>) -> Vec<Turn> {
    let images = json!([{"Id": "sha256:ab", "RepoTags": ["img:latest"]}]);
    turns.extend([
        turn("GET /images/json", [ok(&images)]),
        turn(
            "POST /containers/create",
            [answer(201, &json!({"Id": "c"}))],
        ),
    ]);
    turns
}

fn run_of(image: &str, restart: RestartPolicy) -> RunRequest {
    RunRequest {
        image: image.to_owned(),
        life: Life {
            restart,
            ..Life::default()
        },
        ..RunRequest::default()
    }
}

const START: &str = "POST /containers/c/start";
const KILL: &str = "POST /containers/c/kill";

#[test]
fn a_container_is_shown_through_all_its_rounds() {
    let policy = "on-failure";
    let turns = making(vec![
        turn("POST /containers/c/wait", [ends(START, 1)]),
        turn(
            "POST /containers/c/attach",
            [streams([Say::After(START), output("one ")])],
        ),
        turn(START, [nothing()]),
        turn(
            "GET /containers/c/logs",
            [{
                let head = Say::Bytes(b"HTTP/1.1 200 OK\r\n\r\n".to_vec());
                vec![head, output("two")]
            }],
        ),
        turn(
            "GET /containers/c/json",
            [
                ok(&said("running", 0, 0, policy)),
                ok(&said("restarting", 1, 1, policy)),
                ok(&said("running", 0, 1, policy)),
                ok(&said("exited", 1, 1, policy)),
            ],
        ),
    ]);
    let ((done, got), asked) = engine(turns, async |engine, host| {
        let request = run_of("img", RestartPolicy::OnFailure { max: 1 });
        let done = ask(&engine, host, Request::Run(request)).await;
        (done, host.got())
    });
    assert_eq!(done, Ok(Reply::Ran { status: 1 }));
    assert_eq!(got, ("one two".to_owned(), vec!["started c".to_owned()]));
    let place = |begin: &str| asked.iter().position(|line| line.starts_with(begin));
    // Who asks later may find nothing.
    let wait = place("POST /containers/c/wait?condition=next-exit");
    assert!(wait.is_some() && wait < place(START), "{asked:#?}");
    assert!(place("POST /containers/c/attach?detachKeys=ctrl-%5e").is_some());
    let log = "GET /containers/c/logs?stdout=1&stderr=1&follow=1&since=1700000000.500000000";
    assert!(place(log).is_some(), "{asked:#?}");
}

#[test]
fn a_container_that_starts_again_and_again_ends_with_its_host() {
    let turns = making(vec![
        turn("POST /containers/c/wait", [ends(START, 1)]),
        turn("POST /containers/c/attach", [streams([Say::After(START)])]),
        turn(START, [nothing()]),
        turn(
            "GET /containers/c/json",
            [ok(&said("restarting", 1, 1, "always"))],
        ),
        turn(KILL, [nothing()]),
        turn("POST /containers/c/stop", [nothing()]),
        turn("DELETE /containers/c", [nothing()]),
    ]);
    let (done, asked) = engine(turns, async |engine, host| {
        let request = RunRequest {
            rm: true,
            ..run_of("img", RestartPolicy::Always)
        };
        ask_while(&engine, host, Request::Run(request), async |host| {
            host.asked("GET /containers/c/json").await;
            // Heard while nothing comes any more.
            host.stream.hear(Control::Signal(2));
            host.asked("POST /containers/c/kill?signal=2").await;
            host.stream.cancelled().cancel();
        })
        .await
    });
    assert_eq!(done.unwrap_err().code, FailureCode::Cancelled);
    let end: Vec<_> = asked
        .iter()
        .rev()
        .take(3)
        .rev()
        .map(|line| line.trim())
        .collect();
    assert_eq!(
        end,
        [
            KILL,
            "POST /containers/c/stop?t=0",
            "DELETE /containers/c?force=1&v=1"
        ]
    );
}

#[test]
fn podman_is_asked_to_kill_what_it_starts_again_meanwhile() {
    let between = || refusal(409, "can only kill running containers");
    let turns = making(vec![
        turn("POST /containers/c/wait", [ends(START, 1)]),
        turn("POST /containers/c/attach", [streams([Say::Hold])]),
        turn(START, [nothing()]),
        turn(KILL, [between(), between(), nothing()]),
        turn("POST /containers/c/stop", [answer(304, &Value::Null)]),
    ]);
    let (done, asked) = engine_of(EngineKind::Podman, turns, async |engine, host| {
        let request = Request::Run(run_of("img", RestartPolicy::Always));
        ask_while(&engine, host, request, async |host| {
            host.asked("POST /containers/c/wait").await;
            host.stream.cancelled().cancel();
        })
        .await
    });
    assert_eq!(done.unwrap_err().code, FailureCode::Cancelled);
    let kills = asked.iter().filter(|line| line.starts_with(KILL));
    assert_eq!(kills.count(), 3);
}

#[test]
fn output_is_read_while_a_signal_has_no_answer() {
    let signal = "POST /containers/c/kill?signal=15";
    let turns = making(vec![
        turn("POST /containers/c/wait", [ends(signal, 0)]),
        turn(
            "POST /containers/c/attach",
            [streams([Say::After(signal), output("late")])],
        ),
        turn(START, [nothing()]),
        turn(KILL, [vec![Say::Hold]]),
    ]);
    let (got, _) = engine(turns, async |engine, host| {
        let request = Request::Run(run_of("img", RestartPolicy::No));
        let done = ask_while(&engine, host, request, async |host| {
            host.stream.hear(Control::Signal(15));
        })
        .await;
        assert_eq!(done, Ok(Reply::Ran { status: 0 }));
        host.got().0
    });
    assert_eq!(got, "late");
}

#[test]
fn the_status_of_a_container_that_went_with_its_end_is_known() {
    for kind in [EngineKind::Docker, EngineKind::Podman] {
        let turns = vec![
            turn(
                "GET /containers/web/json",
                [ok(&said("created", 0, 0, "no"))],
            ),
            turn("GET /containers/c/json", [refusal(404, "gone")]),
            turn("POST /containers/c/wait", [ends(START, 7)]),
            turn(
                "POST /containers/c/attach",
                [streams([Say::After("POST /containers/c/wait")])],
            ),
            turn(START, [nothing()]),
        ];
        let (done, asked) = engine_of(kind, turns, async |engine, host| {
            let request = ContainerRequest::Start {
                name: "web".to_owned(),
                attach: true,
                stdin: false,
            };
            ask(&engine, host, container(request)).await
        });
        assert_eq!(done, Ok(Reply::Ran { status: 7 }));
        let place = |begin: &str| asked.iter().position(|line| line.starts_with(begin));
        let before = place("POST /containers/c/wait") < place(START);
        assert_eq!(before, kind == EngineKind::Docker, "{asked:?}");
    }
}

#[test]
fn podman_may_take_a_moment_to_start_a_container_again() {
    let policy = "on-failure";
    let turns = vec![
        turn(
            "GET /containers/web/json",
            [ok(&said("exited", 1, 0, policy))],
        ),
        turn("POST /containers/c/wait", [ends(START, 1)]),
        turn(
            "POST /containers/c/attach",
            [streams([Say::After(START), output("one ")])],
        ),
        turn(START, [nothing()]),
        turn(
            "GET /containers/c/logs",
            [{
                let head = Say::Bytes(b"HTTP/1.1 200 OK\r\n\r\n".to_vec());
                vec![head, output("two")]
            }],
        ),
        turn(
            "GET /containers/c/json",
            [
                ok(&said("exited", 1, 0, policy)),
                ok(&said("exited", 1, 0, policy)),
                ok(&said("exited", 1, 1, policy)),
            ],
        ),
    ];
    let ((done, got), asked) = engine_of(EngineKind::Podman, turns, async |engine, host| {
        let request = ContainerRequest::Start {
            name: "web".to_owned(),
            attach: true,
            stdin: false,
        };
        let done = ask(&engine, host, container(request)).await;
        (done, host.got().0)
    });
    assert_eq!(done, Ok(Reply::Ran { status: 1 }));
    assert_eq!(got, "one two");
    let keys = "POST /containers/c/attach?detachKeys=&stream=1";
    assert!(asked.iter().any(|line| line.starts_with(keys)), "{asked:?}");
}

#[test]
fn a_container_that_is_let_go_of_goes_on() {
    let turns = vec![
        turn("GET /containers/", [ok(&said("running", 0, 0, "always"))]),
        turn("POST /containers/c/wait", [ends("never", 0)]),
        turn("POST /containers/c/attach", [streams([Say::Hold])]),
    ];
    let (done, asked) = engine(turns, async |engine, host| {
        let request = ContainerRequest::Attach {
            name: "web".to_owned(),
            stdin: false,
        };
        ask_while(&engine, host, container(request), async |host| {
            host.asked("POST /containers/c/attach").await;
            host.stream.hear(Control::Detach);
        })
        .await
    });
    assert_eq!(done, Ok(Reply::Container(ContainerReply::Done)));
    assert!(!asked.iter().any(|line| line.starts_with(KILL)));
}

#[test]
fn a_container_that_ended_before_it_was_joined_does_not_run() {
    for (state, wanted) in [("created", None), ("exited", Some(3))] {
        let turns = vec![
            turn(
                "GET /containers/web/json",
                [ok(&said("running", 0, 0, "no"))],
            ),
            turn("GET /containers/c/json", [ok(&said(state, 3, 0, "no"))]),
            turn("POST /containers/c/wait", [ends("never", 0)]),
            turn("POST /containers/c/attach", [streams([Say::Hold])]),
        ];
        let (done, _) = engine(turns, async |engine, host| {
            let request = ContainerRequest::Attach {
                name: "web".to_owned(),
                stdin: false,
            };
            ask(&engine, host, container(request)).await
        });
        match (done, wanted) {
            (Ok(Reply::Ran { status }), Some(wanted)) => assert_eq!(status, wanted),
            (Err(failure), None) => {
                assert_eq!(failure.message, "container web does not run: it is created");
            }
            (done, _) => panic!("{state}: {done:?}"),
        }
    }
}

#[test]
fn a_process_has_its_status_when_it_has_ended() {
    let turns = vec![
        turn(
            "POST /containers/web/exec",
            [answer(201, &json!({"Id": "e"}))],
        ),
        turn("POST /exec/e/start", [streams([output("x")])]),
        turn(
            "GET /exec/e/json",
            [
                ok(&json!({"Running": true, "ContainerID": "c"})),
                ok(&json!({"Running": true, "ExitCode": null})),
                ok(&json!({"Running": false, "ExitCode": 5})),
            ],
        ),
    ];
    let (done, asked) = engine(turns, async |engine, host| {
        let request = ExecRequest {
            name: "web".to_owned(),
            args: vec!["x".to_owned()],
            ..ExecRequest::default()
        };
        ask(&engine, host, container(ContainerRequest::Exec(request))).await
    });
    assert_eq!(done, Ok(Reply::Ran { status: 5 }));
    assert!(asked[0].contains(r#""DetachKeys":"ctrl-^"#), "{}", asked[0]);
}

fn stop(timeout: Option<i64>) -> Request {
    container(ContainerRequest::Stop {
        name: "web".to_owned(),
        timeout,
        signal: Some(10),
    })
}

#[test]
fn a_signal_stops_what_runs_and_no_more() {
    let looked = "GET /containers/";
    let stopped = |turns: Vec<Turn>, timeout: Option<i64>| {
        engine(turns, async |engine, host| {
            ask(&engine, host, stop(timeout)).await
        })
    };
    let done = Ok(Reply::Container(ContainerReply::Done));
    // There is nothing to stop.
    let (said_so, asked) = stopped(
        vec![turn(looked, [ok(&said("exited", 0, 0, "no"))])],
        Some(5),
    );
    assert_eq!((said_so, asked.len()), (done.clone(), 1));
    // It has no time at all.
    let mut hurried = said("running", 0, 0, "no");
    hurried["Config"]["StopTimeout"] = json!(0);
    let (said_so, asked) = stopped(
        vec![
            turn(looked, [ok(&hurried)]),
            turn(KILL, [nothing()]),
            turn("POST /containers/c/wait", [vec![Say::Hold]]),
            turn("POST /containers/c/stop", [nothing()]),
        ],
        None,
    );
    assert_eq!(said_so, done);
    assert!(asked[1].starts_with("POST /containers/c/kill?signal=10"));
    assert!(
        asked[3].starts_with("POST /containers/c/stop?t=0"),
        "{asked:?}"
    );
    // It goes with its end.
    let (said_so, _) = stopped(
        vec![
            turn(looked, [ok(&said("running", 0, 0, "no"))]),
            turn(KILL, [nothing()]),
            turn("POST /containers/c/wait", [refusal(404, "gone")]),
        ],
        None,
    );
    assert_eq!(said_so, done);
    // What the engine cannot say is no end.
    let (failed, asked) = stopped(
        vec![
            turn(looked, [ok(&said("running", 0, 0, "no"))]),
            turn(KILL, [nothing()]),
            turn("POST /containers/c/wait", [refusal(500, "broken")]),
        ],
        None,
    );
    assert_eq!(failed.unwrap_err().message, "docker: broken");
    assert_eq!(asked.len(), 3, "{asked:?}");
    // It ended between two requests.
    let (said_so, _) = stopped(
        vec![
            turn(
                looked,
                [
                    ok(&said("running", 0, 0, "no")),
                    ok(&said("exited", 0, 0, "no")),
                ],
            ),
            turn(KILL, [refusal(409, "not running")]),
        ],
        None,
    );
    assert_eq!(said_so, done);
}

#[test]
fn a_request_that_is_cancelled_waits_for_no_engine() {
    for (path, request) in [
        ("GET /info", Request::Info),
        (
            "GET /containers/web/export",
            container(ContainerRequest::Export {
                name: "web".to_owned(),
            }),
        ),
        (
            "PUT /containers/web/archive",
            container(ContainerRequest::CopyIn {
                name: "web".to_owned(),
                path: "/x".to_owned(),
            }),
        ),
    ] {
        let turns = vec![turn(path, [vec![Say::Hold]])];
        let (done, _) = engine(turns, async |engine, host| {
            ask_while(&engine, host, request, async |host| {
                host.asked(path).await;
                host.stream.cancelled().cancel();
            })
            .await
        });
        assert_eq!(done.unwrap_err().code, FailureCode::Cancelled, "{path}");
    }
}
