//! The agent on a target that has an engine: what it pulls is in the engine's own store, under the name
//! that the user gave, and `vdkr --target` works with the engine's containers.

use serde_json::Value;
use vdkr_tests::engine::{ADDRESS, Computer, RegistryThere};
use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{Ran, program};

/// A computer that is a target as well.
struct Board {
    computer: Computer,
    engine: &'static str,
}

impl Board {
    /// Starts an engine, and the agent as its service.
    fn start(engine: &'static str) -> Self {
        let board = Self {
            computer: Computer::that_runs(engine),
            engine,
        };
        let here = board.computer.path("");
        let agent = Self::agent();
        board
            .sh(&format!(
                "{agent} serve --engine {engine} --engine-socket {0}/d.sock --unix {0}/a.sock \
                 --state-dir {0}/state >agent.log 2>&1 & echo $! >agent.pid\n\
                 until test -S a.sock; do kill -0 $(cat agent.pid) || exit 1; sleep 0.1; done",
                here.display()
            ))
            .expect(0);
        board.computer.at_end("kill $(cat agent.pid)");
        // podman's containers outlive its service.
        if engine == "podman" {
            board
                .computer
                .at_end("podman --cgroup-manager cgroupfs rm -af -t 0");
        }
        board
    }

    fn agent() -> String {
        program("vdkr-agent").display().to_string()
    }

    fn sh(&self, commands: &str) -> Ran {
        self.computer.sh(commands)
    }

    /// `vdkr` with this target; `words` are the shell's.
    fn vdkr(&self, words: &str) -> Ran {
        let program = program("vdkr");
        let socket = self.computer.path("a.sock");
        let (program, socket) = (program.display(), socket.display());
        self.sh(&format!("{program} --target unix:{socket} {words}"))
    }

    /// The engine's own command.
    fn own(&self, words: &str) -> Ran {
        match self.engine {
            "docker" => self.sh(&format!("docker {words}")),
            _ => self.sh(&format!(
                "podman --cgroup-manager cgroupfs --events-backend file {words}"
            )),
        }
    }
}

fn push(registry: &RegistryThere<'_>, name: &str, tag: &str) {
    let source = layout("qemux86-64", name);
    registry
        .run(["push", source.to_str().unwrap(), "--tag", tag])
        .expect(0);
}

/// Names with a tag that the engine has.
fn names(board: &Board) -> Vec<String> {
    let listed = board
        .own("images --format '{{.Repository}}:{{.Tag}}'")
        .expect(0);
    let mut names: Vec<String> = listed.text().lines().map(str::to_owned).collect();
    names.sort();
    names
}

fn everything(engine: &'static str) {
    let board = Board::start(engine);
    let plain = format!("{ADDRESS}:5000");
    let registry = board
        .computer
        .registry(&plain, &[("CONTAINER_REGISTRY_INSECURE", "1")]);
    push(&registry, "container-base-latest-oci", "latest");
    push(&registry, "many-layers-latest-oci", "v2");
    let from = format!("--registry {plain}/yocto --insecure-registry {plain}");

    pulling(&board, &plain, &from);
    falling_back(&board, &plain);
    images(&board, &plain);
    running(&board, &from);
    living(&board);
    files(&board);
    refusals(&board);
    commands_of_the_board(&board);
}

/// Under both names, and for good.
fn pulling(board: &Board, plain: &str, from: &str) {
    let pulled = board.vdkr(&format!("{from} pull container-base")).expect(0);
    assert!(
        pulled.text().contains("container-base"),
        "{}",
        pulled.text()
    );
    let found = names(board);
    let own = match board.engine {
        "docker" => "container-base:latest",
        _ => "docker.io/library/container-base:latest",
    };
    assert!(found.contains(&own.to_owned()), "{found:?}");
    assert!(
        found.contains(&format!("{plain}/yocto/container-base:latest")),
        "{found:?}"
    );
    // The engine knows it under the name that the user gave.
    board.own("image inspect container-base").expect(0);
    // Nothing is fetched twice.
    let again = board.vdkr(&format!("{from} pull container-base")).expect(0);
    assert!(!again.stderr.contains("ownload"), "{}", again.stderr);
    board
        .vdkr(&format!(
            "--insecure-registry {plain} pull {plain}/yocto/many-layers:v2"
        ))
        .expect(0);
    assert!(names(board).contains(&format!("{plain}/yocto/many-layers:v2")));
}

/// Docker Hub only when the registry says that it does not know the name.
fn falling_back(board: &Board, plain: &str) {
    let unknown = format!("--registry {plain}/yocto --insecure-registry {plain} pull nowhere");
    let unknown = board.vdkr(&unknown);
    assert_ne!(unknown.code(), 0);
    let hub = "docker.io/library/nowhere";
    assert!(unknown.stderr.contains(hub), "{}", unknown.stderr);
    // Nobody listens there.
    let dead = format!("{ADDRESS}:5009");
    let refused = board.vdkr(&format!(
        "--registry {dead}/yocto --insecure-registry {dead} pull container-base"
    ));
    assert_eq!(refused.code(), 3, "{}", refused.stderr);
    assert!(!refused.stderr.contains("docker.io"), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("--no-registry"),
        "{}",
        refused.stderr
    );
}

fn images(board: &Board, plain: &str) {
    let listed = board.vdkr("images").expect(0).text();
    assert!(
        listed.contains(&format!("{plain}/yocto/container-base")),
        "{listed}"
    );
    let shown: Value =
        serde_json::from_slice(&board.vdkr("inspect container-base").expect(0).stdout).unwrap();
    assert_eq!(shown[0]["Architecture"], "amd64");
    board.vdkr("tag container-base mine:7").expect(0);
    board.own("image inspect mine:7").expect(0);
    let gone = board.vdkr("rmi mine:7").expect(0).text();
    assert!(gone.contains("mine:7"), "{gone}");
    assert_ne!(board.own("image inspect mine:7").code(), 0);
    board.vdkr("rmi nothing").expect(5);
    let info = board.vdkr("info").expect(0).text();
    assert!(info.contains(board.engine), "{info}");
    let version = board.vdkr("version").expect(0).text();
    assert!(version.contains("vdkr"), "{version}");
}

fn running(board: &Board, from: &str) {
    // Else what fails below would be laid at our door.
    board
        .own("run --rm --network none container-base true")
        .expect(0);
    let run = |words: &str| board.vdkr(&format!("{from} run --network none {words}"));
    let ran = run("--rm container-base sh -c 'echo out; echo err >&2; exit 7'").expect(7);
    assert_eq!(ran.text(), "out\n");
    assert!(ran.stderr.contains("err"), "{}", ran.stderr);
    let fed = board.sh(&format!(
        "seq 1 20000 | {} --target unix:{} run --rm -i --network none container-base wc -l",
        program("vdkr").display(),
        board.computer.path("a.sock").display()
    ));
    assert_eq!(fed.expect(0).text().trim(), "20000");
    let ran = run(
        "--rm -e A=1 -w /tmp -h board --read-only --tmpfs /scratch --entrypoint /bin/sh \
         container-base -c 'echo $A $(pwd) $(hostname); touch /x || touch /scratch/x'",
    )
    .expect(0);
    assert_eq!(ran.text(), "1 /tmp board\n");
    run("--rm container-base nothing-of-this-name").expect(127);
    run("--rm container-base /etc").expect(126);
    let left = board.own("ps -aq").expect(0).text();
    assert_eq!(left, "", "--rm leaves nothing");
}

/// A container that lives on.
fn living(board: &Board) {
    let loop_ = "'trap exit TERM; echo begun; echo wrong >&2; while :; do sleep 0.1; done'";
    let id = board
        .vdkr(&format!(
            "run -d --name web --network none -l a=b container-base sh -c {loop_}"
        ))
        .expect(0)
        .text();
    assert_eq!(id.trim().len(), 64, "{id}");
    let listed = board.vdkr("ps").expect(0).text();
    assert!(
        listed.contains("web") && listed.contains("container-base"),
        "{listed}"
    );
    assert!(board.own("ps").expect(0).text().contains("web"));
    board.sh("sleep 1").expect(0);
    let logs = board.vdkr("logs web").expect(0);
    assert_eq!(
        (logs.text().as_str(), logs.stderr.as_str()),
        ("begun\n", "wrong\n")
    );
    let one = board.vdkr("logs --tail 0 web").expect(0);
    assert_eq!(one.text(), "");
    let ran = board
        .vdkr("exec web sh -c 'echo in; echo beside >&2; exit 5'")
        .expect(5);
    assert_eq!((ran.text().as_str(), ran.stderr.trim()), ("in\n", "beside"));
    // Engines differ in what they call it.
    let missing = board.vdkr("exec web nothing-of-this-name").code();
    assert!(matches!(missing, 126 | 127), "{missing}");
    // podman says nothing of processes where it may not look.
    let top = board.vdkr("top web");
    let words = top.text() + &top.stderr;
    assert!(
        words.contains("sleep") || words.contains(board.engine),
        "{words}"
    );
    let shown: Value = serde_json::from_slice(&board.vdkr("inspect web").expect(0).stdout).unwrap();
    assert_eq!(shown[0]["Config"]["Labels"]["a"], "b");
    board.vdkr("rename web site").expect(0);
    board.vdkr("restart -t 5 site").expect(0);
    board.vdkr("stop -t 5 site").expect(0);
    let listed = board.vdkr("ps -a").expect(0).text();
    assert!(listed.contains("Exited"), "{listed}");
    board.vdkr("start site").expect(0);
    board.vdkr("kill site").expect(0);
    board.vdkr("wait site").expect(0);
    board.vdkr("rm site").expect(0);
    assert_eq!(board.own("ps -aq").expect(0).text(), "");
    board.vdkr("logs site").expect(5);
}

/// `cp` in both directions, under other names.
fn files(board: &Board) {
    board
        .vdkr("create --name box --network none container-base sleep 100")
        .expect(0);
    board.sh("mkdir -p tree/sub && echo content >tree/sub/file && ln -s sub/file tree/link");
    board.vdkr("cp tree box:/tmp/copy").expect(0);
    board.vdkr("cp box:/tmp/copy back").expect(0);
    let back = board
        .sh("cat back/sub/file && readlink back/link")
        .expect(0)
        .text();
    assert_eq!(back, "content\nsub/file\n");
    board.vdkr("cp box:/tmp/copy/sub/file other-name").expect(0);
    assert_eq!(board.sh("cat other-name").expect(0).text(), "content\n");
    board.vdkr("cp box:/nowhere x").expect(5);
    board.vdkr("cp nobody:/etc x").expect(5);
    board.vdkr("rm -f box").expect(0);
    // A directory of the host, in both directions.
    let here = board.computer.path("tree");
    let words = "--network none container-base sh -c 'cat /v/sub/file; echo new >/v/added'";
    let ran = board
        .vdkr(&format!("run --rm -v {}:/v {words}", here.display()))
        .expect(0);
    assert_eq!(ran.text(), "content\n");
    assert_eq!(board.sh("cat tree/added").expect(0).text(), "new\n");
}

/// What cannot be is said in one sentence that names the engine.
fn refusals(board: &Board) {
    for words in ["save -o x.tar container-base", "history container-base"] {
        let refused = board.vdkr(words).expect(1);
        assert!(refused.stderr.contains(board.engine), "{}", refused.stderr);
    }
}

/// The agent's own commands, without the service.
fn commands_of_the_board(board: &Board) {
    let agent = Board::agent();
    let engine = board.engine;
    let own = format!(
        "--engine {engine} --engine-socket {}",
        board.computer.path("d.sock").display()
    );
    let status = board.sh(&format!("{agent} status {own}")).expect(0).text();
    assert!(status.contains(&format!("engine: {engine} ")), "{status}");
    let dead = format!("{agent} status --engine {engine} --engine-socket /nowhere.sock");
    let status = board.sh(&dead).expect(0).text();
    assert!(
        status.contains("does not answer at /nowhere.sock"),
        "{status}"
    );
    let dead = format!("{agent} pull --engine {engine} --engine-socket /nowhere.sock x");
    let refused = board.sh(&dead).expect(3);
    assert!(
        refused.stderr.contains("systemctl start"),
        "{}",
        refused.stderr
    );
    let unknown = board.sh(&format!("{agent} pull --engine lxc x")).expect(2);
    assert!(
        unknown.stderr.contains("native, docker, podman"),
        "{}",
        unknown.stderr
    );
    let mixed = board.sh(&format!(
        "{agent} pull --state-dir {} --engine native x",
        board.computer.path("state").display()
    ));
    assert!(mixed.expect(1).stderr.contains(engine));
}

#[test]
fn dockers_engine_on_a_target() {
    everything("docker");
}

#[test]
fn podman_on_a_target() {
    everything("podman");
}
