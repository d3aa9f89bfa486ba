//! The agent on a target that has an engine: what it pulls is in the engine's own store, under the name
//! that the user gave, and `vdkr --target` works with the engine's containers.

use serde_json::Value;
use vdkr_tests::engine::{ADDRESS, Computer, RegistryThere};
use vdkr_tests::fixtures::layout;
use vdkr_tests::namespaces::is_whole_root;
use vdkr_tests::process::{Ran, not_tested, program};

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

    /// `vdkr` with this target.
    fn program(&self) -> String {
        let program = program("vdkr");
        let socket = self.computer.path("a.sock");
        format!("{} --target unix:{}", program.display(), socket.display())
    }

    /// The same with these words, which are the shell's.
    fn vdkr(&self, words: &str) -> Ran {
        self.sh(&format!("{} {words}", self.program()))
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
    by_digest(&board, &plain);
    falling_back(&board, &plain);
    images(&board, &plain);
    names_of_the_owner(&board, &plain, &from);
    secured(&board);
    if !is_whole_root() {
        not_tested(&format!(
            "containers that {engine} runs on a target: that takes root"
        ));
        return;
    }
    running(&board, &from);
    rounds(&board);
    living(&board);
    volumes(&board);
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

/// What has no name is found again all the same.
fn by_digest(board: &Board, plain: &str) {
    let digest = board
        .sh(&format!(
            "curl -sI -H 'Accept: application/vnd.oci.image.manifest.v1+json, \
             application/vnd.oci.image.index.v1+json' \
             http://{plain}/v2/yocto/many-layers/manifests/v2 | \
             tr -d '\\r' | sed -n 's/^[Dd]ocker-[Cc]ontent-[Dd]igest: //p'"
        ))
        .expect(0)
        .text();
    let name = format!("{plain}/yocto/many-layers@{}", digest.trim());
    let pull = format!("--insecure-registry {plain} pull {name}");
    let first = board.vdkr(&pull).expect(0);
    let second = board.vdkr(&pull).expect(0);
    assert!(!second.stderr.contains("ownload"), "{}", second.stderr);
    assert_eq!(first.text(), second.text());
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

/// What the owner of the board calls so is meant, whatever the registry has under that name.
fn names_of_the_owner(board: &Board, plain: &str, from: &str) {
    let id = |name: &str| {
        let inspect = format!("image inspect -f '{{{{.Id}}}}' {name}");
        let id = board.own(&inspect).expect(0).text();
        id.trim().trim_start_matches("sha256:").to_owned()
    };
    let (pulled, other) = (
        format!("{plain}/yocto/container-base:latest"),
        format!("{plain}/yocto/many-layers:v2"),
    );
    let own_name = "docker.io/library/container-base:latest";
    for (image, given) in [(&pulled, false), (&other, true)] {
        if given {
            board.own(&format!("tag {image} {own_name}")).expect(0);
        }
        board
            .vdkr(&format!(
                "{from} create --name meant --network none container-base true"
            ))
            .expect(0);
        let made = board
            .own("container inspect -f '{{.Image}}' meant")
            .expect(0)
            .text();
        assert!(made.contains(&id(image)), "{image}: {made}");
        board.vdkr("rm meant").expect(0);
    }
    board.own(&format!("tag {pulled} {own_name}")).expect(0);
}

/// CA and login come with the request, and leave nothing with the engine or the agent.
fn secured(board: &Board) {
    let host = format!("{ADDRESS}:5443");
    let registry = board
        .computer
        .registry(&host, &[("CONTAINER_REGISTRY_SECURE", "1")]);
    push(&registry, "many-layers-latest-oci", "s1");
    let file = |name: &str| registry.storage().join(name).display().to_string();
    let (ca, password) = (file("pki/ca.crt"), file("auth/password"));
    let pull = |settings: &str, input: &str| {
        board.vdkr(&format!(
            "--registry {host}/yocto {settings} pull many-layers:s1 <{input}"
        ))
    };
    let login = "--registry-user yocto --registry-password-stdin";
    let with_ca = format!("--ca-cert {ca}");
    let unknown = pull(&format!("--secure-registry {login}"), &password).expect(3);
    assert!(unknown.stderr.contains("certificate"), "{}", unknown.stderr);
    pull(&with_ca, "/dev/null").expect(4);
    board.sh("echo wrong-password >wrong").expect(0);
    pull(&format!("{with_ca} {login}"), "wrong").expect(4);
    let name = format!("{host}/yocto/many-layers:s1");
    assert!(!names(board).contains(&name));
    pull(&format!("{with_ca} {login}"), &password).expect(0);
    assert!(names(board).contains(&name));
    // And the next request has none of it.
    pull(&with_ca, "/dev/null").expect(4);
    board.sh("test ! -e /etc/docker/certs.d").expect(0);
    let left = board.sh(&format!("grep -rlF -f {password} agent.log state"));
    assert_eq!((left.code(), left.text()), (1, String::new()));
    board.vdkr(&format!("rmi {name}")).expect(0);
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
        "seq 1 20000 | {} run --rm -i --network none container-base wc -l",
        board.program()
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

/// Containers that start again, that are stopped from outside, and that go with their end.
fn rounds(board: &Board) {
    let run = |words: &str| format!("run --network none {words}");
    let ran = board
        .vdkr(&run(
            "--name again --restart on-failure:2 container-base sh -c 'echo round; exit 3'",
        ))
        .expect(3);
    assert_eq!(ran.text(), "round\nround\nround\n");
    board.vdkr("rm again").expect(0);
    let always =
        run("--name always --restart always container-base sh -c 'echo x; sleep 0.2; exit 1'");
    let interrupted = board.sh(&format!(
        "timeout -k 30 -s KILL 5 {} {always} >/dev/null; echo $?",
        board.program()
    ));
    assert_eq!(interrupted.expect(0).text().trim(), "137");
    let ended = "until test -z \"$(COMMAND ps -q)\"; do sleep 0.2; done";
    board
        .sh(&ended.replace("COMMAND", &board.program()))
        .expect(0);
    board.sh("sleep 2").expect(0);
    assert_eq!(board.vdkr("ps -q").expect(0).text(), "", "it starts again");
    board.vdkr("rm always").expect(0);
    // A signal that the container knows, and one that it does not.
    let trapped = run("--rm container-base sh -c 'trap \"exit 9\" INT; sleep 30 & wait'");
    let signalled = board.sh(&format!(
        "{} {trapped} & pid=$!; sleep 3; kill -INT $pid; wait $pid; echo $?",
        board.program()
    ));
    assert_eq!(signalled.expect(0).text().trim(), "9");
    board
        .vdkr("create --rm --name gone --network none container-base sh -c 'echo out; exit 7'")
        .expect(0);
    let ran = board.vdkr("start -a gone").expect(7);
    assert_eq!(ran.text(), "out\n");
    let left = "until test -z \"$(COMMAND ps -aq)\"; do sleep 0.2; done";
    board
        .sh(&left.replace("COMMAND", &board.program()))
        .expect(0);
}

fn volumes(board: &Board) {
    board.vdkr("volume create kept").expect(0);
    board.vdkr("volume create loose").expect(0);
    board
        .vdkr("create --name holds -v kept:/k --network none container-base true")
        .expect(0);
    let pruned = board.vdkr("volume prune -a -f").expect(0).text();
    assert!(
        pruned.contains("loose") && !pruned.contains("kept"),
        "{pruned}"
    );
    let left = board.vdkr("volume ls -q").expect(0).text();
    assert_eq!(left, "kept\n");
    assert_ne!(board.vdkr("volume rm kept").code(), 0);
    board.vdkr("rm holds").expect(0);
    board.vdkr("volume rm kept").expect(0);
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
    let top = board.vdkr("top web");
    match top.code() {
        0 => assert!(top.text().contains("sleep"), "{}", top.text()),
        // podman says nothing of processes where it may not look.
        _ => {
            let words = "podman does not say which processes web has";
            assert!(top.stderr.contains(words), "{}", top.stderr);
        }
    }
    let fed = board.sh(&format!(
        "seq 1 20000 | {} exec -i web wc -l",
        board.program()
    ));
    assert_eq!(fed.expect(0).text().trim(), "20000");
    let shown: Value = serde_json::from_slice(&board.vdkr("inspect web").expect(0).stdout).unwrap();
    assert_eq!(shown[0]["Config"]["Labels"]["a"], "b");
    board.vdkr("rename web site").expect(0);
    board.vdkr("restart -t 5 site").expect(0);
    board.vdkr("stop -t 5 site").expect(0);
    let listed = board.vdkr("ps -a").expect(0).text();
    assert!(listed.contains("Exited"), "{listed}");
    board.vdkr("start site").expect(0);
    let followed = board.sh(&format!(
        "{} logs -f site >followed & sleep 1; {0} kill site; wait $!; tail -n 1 followed",
        board.program()
    ));
    assert_eq!(followed.expect(0).text().lines().last(), Some("begun"));
    assert_eq!(board.vdkr("wait site").expect(0).text().trim(), "137");
    // There is nothing left to stop.
    board.vdkr("stop -s USR1 site").expect(0);
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
