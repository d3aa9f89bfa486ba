//! The main job with real parts: registry, push, QEMU, pull through 10.0.2.2, run.

use std::io::Read as _;
use std::process::Stdio;

use serde_json::Value;
use vdkr_tests::fixtures::{deploy_dir, layout};
use vdkr_tests::process::{free_port, run_within};
use vdkr_tests::registry::Registry;
use vdkr_tests::scripted::{Counter, Script, serve};
use vdkr_tests::vm::{PATIENCE, User};

/// A registry filled from the deploy directory as in the README.
fn filled_registry() -> Registry {
    let registry = Registry::start();
    let deploy = deploy_dir();
    let push = ["push", "--deploy-dir-images", deploy.to_str().unwrap()];
    registry.run(push).expect(0);
    registry
}

fn prefix(registry: &Registry) -> String {
    format!("{}/yocto", registry.host())
}

/// A user with a VM that runs and has `container-base`, pulled from the registry.
fn user_with_vm(registry: &Registry) -> User {
    let user = User::new("x86_64");
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    user.run(["--registry", &prefix(registry), "pull", "container-base"])
        .expect(0);
    user
}

#[test]
fn from_deploy_directory_to_running_container_without_a_kept_vm() {
    let registry = filled_registry();
    let user = User::new("x86_64");
    let stored = format!("10.0.2.2:{}/yocto/container-base", registry.port());

    let pulled = user
        .run(["--registry", &prefix(&registry), "pull", "container-base"])
        .expect(0);
    assert_eq!(
        pulled.text().trim().lines().last(),
        Some(&*format!("{stored}:latest"))
    );

    let images = user.run(["images"]).expect(0).text();
    assert!(images.contains(&stored), "{images}");
    let said = user
        .run(["run", "container-base", "echo", "hello from the target"])
        .expect(0);
    assert_eq!(said.text(), "hello from the target\n");
    user.run(["run", "container-base", "sh", "-c", "exit 7"])
        .expect(7);
}

#[test]
fn containers_behave_as_docker_users_expect() {
    let registry = filled_registry();
    let user = user_with_vm(&registry);
    let run = |args: &[&str]| {
        user.run(
            ["run", "container-base"]
                .into_iter()
                .chain(args.iter().copied()),
        )
    };

    // Arguments arrive exactly as given.
    let odd = [
        "a b",
        "",
        "it's \"quoted\"",
        "line\nbreak",
        "$HOME `id` \\ * ?",
        "--rm",
        "é☃",
    ];
    let script = "for a in \"$@\"; do printf '%s\\0' \"$a\"; done";
    let echoed = run(&[&["sh", "-c", script, "sh"][..], &odd[..]].concat()).expect(0);
    let expected = odd.join("\0") + "\0";
    assert_eq!(echoed.text(), expected);

    // Streams stay apart; the status comes back.
    let both = run(&["sh", "-c", "echo out; echo err >&2; exit 3"]).expect(3);
    assert_eq!(both.text(), "out\n");
    assert_eq!(both.stderr, "err\n");
    run(&["no-such-program"]).expect(127);
    run(&["/etc"]).expect(126);
    run(&["sh", "-c", "sh -c 'kill -KILL $$'; exit $?"]).expect(137);
    user.run(["run", "--no-such-option", "container-base", "true"])
        .expect(125);

    // Input reaches the container with -i, bytes unchanged.
    let input: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let back = user
        .run_with_input(["run", "-i", "container-base", "cat"], &input)
        .expect(0);
    assert!(
        back.stdout == input,
        "{} bytes came back",
        back.stdout.len()
    );
    let none = user
        .run_with_input(["run", "container-base", "cat"], b"unseen")
        .expect(0);
    assert_eq!(none.text(), "");

    // Process isolation: its own pids, host name and root; no way to the VM's devices.
    assert_eq!(run(&["sh", "-c", "echo $$"]).expect(0).text(), "1\n");
    let named = user
        .run(["run", "--hostname", "board", "container-base", "hostname"])
        .expect(0);
    assert_eq!(named.text(), "board\n");
    run(&[
        "sh",
        "-c",
        "test ! -e /dev/sda && test ! -e /dev/vda && test ! -e /init && test -c /dev/null",
    ])
    .expect(0);
    run(&["mount", "-t", "tmpfs", "none", "/tmp"]).expect(1);

    // Options that change the process.
    let env = user.run([
        "run",
        "-e",
        "A=b c",
        "-w",
        "/tmp",
        "container-base",
        "sh",
        "-c",
        "echo \"$A\"; pwd",
    ]);
    assert_eq!(env.expect(0).text(), "b c\n/tmp\n");
    let uid = user
        .run(["run", "-u", "1000:100", "container-base", "id"])
        .expect(0)
        .text();
    assert!(
        uid.starts_with("uid=1000") && uid.contains("gid=100"),
        "{uid}"
    );
    let entry = user.run(["run", "--entrypoint", "/bin/echo", "container-base", "only"]);
    assert_eq!(entry.expect(0).text(), "only\n");
    user.run(["run", "--read-only", "container-base", "touch", "/x"])
        .expect(1);

    // Each container starts from the image, whatever the one before did.
    run(&["rm", "-rf", "/bin/ls", "/etc/passwd"]).expect(0);
    run(&["ls", "/etc/passwd"]).expect(0);
}

#[test]
fn a_hundred_megabytes_of_output_arrive_whole() {
    let registry = filled_registry();
    let user = user_with_vm(&registry);
    let mut command = user.command();
    let script = "head -c 104857600 /dev/zero | tr '\\0' 'x'; echo end >&2";
    command.args(["run", "container-base", "sh", "-c", script]);
    let ran = run_within(&mut command, b"", PATIENCE).expect(0);
    assert_eq!(ran.stdout.len(), 104_857_600);
    assert!(ran.stdout.iter().all(|byte| *byte == b'x'));
    assert_eq!(ran.stderr, "end\n");

    // A reader that leaves early ends the container, and the VM goes on.
    let mut child = user
        .command()
        .args(["run", "container-base", "yes"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut some = [0; 1000];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert!(child.wait().unwrap().code().is_some());
    user.run(["run", "container-base", "true"]).expect(0);
}

#[test]
fn images_are_listed_inspected_tagged_and_removed() {
    let registry = filled_registry();
    let user = user_with_vm(&registry);
    let stored = format!("10.0.2.2:{}/yocto/container-base", registry.port());

    for command in [&["images"][..], &["image", "ls"]] {
        let listed = user.run(command.iter().copied()).expect(0).text();
        let mut lines = listed.lines();
        assert!(lines.next().unwrap().starts_with("REPOSITORY"), "{listed}");
        assert!(lines.next().unwrap().starts_with(&stored), "{listed}");
    }
    let inspected = user.run(["inspect", "container-base"]).expect(0).text();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected[0]["Architecture"], "amd64");
    assert_eq!(
        inspected[0]["RepoTags"][0],
        format!("{stored}:latest").as_str()
    );
    let id = inspected[0]["Id"].as_str().unwrap();
    let by_id = user
        .run(["image", "inspect", &id["sha256:".len()..][..12]])
        .expect(0)
        .text();
    assert_eq!(serde_json::from_str::<Value>(&by_id).unwrap()[0]["Id"], id);

    user.run(["tag", "container-base", "local/name:v2"])
        .expect(0);
    user.run(["run", "--rm", "local/name:v2", "true"]).expect(0);
    user.run(["rmi", &format!("{stored}:latest")]).expect(0);
    user.run(["run", "--rm", "--pull", "never", "local/name:v2", "true"])
        .expect(0);
    user.run(["image", "rm", "local/name:v2"]).expect(0);
    assert_eq!(user.run(["images", "-q"]).expect(0).text(), "");
    user.run(["rmi", "local/name:v2"]).expect(5);
    user.run(["inspect", "nothing"]).expect(5);
    user.run(["run", "--pull", "never", "nothing", "true"])
        .expect(125);
}

#[test]
fn docker_hub_is_asked_after_a_404_and_never_else() {
    let registry = filled_registry();
    let hub = Registry::start();
    let image = layout("qemux86-64", "container-base-latest-oci");
    hub.run([
        "--namespace",
        "library",
        "push",
        image.to_str().unwrap(),
        "--tag",
        "3.1",
    ])
    .expect(0);
    // The name that only Docker Hub knows.
    hub.run([
        "import",
        &format!("{}/library/container-base:3.1", hub.host()),
        "library/public:3.1",
    ])
    .expect(0);

    let user = User::new("x86_64");
    user.run(["vconfig", "registry", &prefix(&registry)])
        .expect(0);
    user.run(["vconfig", "mirror", "docker.io", &hub.url()])
        .expect(0);
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let pulled = user.run(["pull", "public:3.1"]).expect(0).text();
    assert_eq!(
        pulled.trim().lines().last(),
        Some("docker.io/library/public:3.1")
    );
    assert_eq!(
        user.run(["run", "public:3.1", "echo", "ok"])
            .expect(0)
            .text(),
        "ok\n"
    );

    // Known to both: the registry's wins.
    let pulled = user.run(["pull", "container-base"]).expect(0).text();
    assert!(pulled.contains("10.0.2.2"), "{pulled}");

    // Known to neither: one that refuses has said its word, and nobody else is asked.
    let refusing = Counter::before(serve(Script::Status(403, "DENIED")));
    user.run(["vconfig", "mirror", "docker.io", &refusing.url()])
        .expect(0);
    let unknown = user.run(["pull", "nobody/has-this"]).expect(4);
    assert!(
        unknown.stderr.contains("docker.io/nobody/has-this"),
        "{}",
        unknown.stderr
    );
    assert!(refusing.count() > 0, "Docker Hub was not asked after a 404");

    // A mirror that has nothing is asked first and leaves the last word to the registry itself.
    let lacking = Counter::before(serve(Script::Status(404, "NAME_UNKNOWN")));
    user.run(["vconfig", "mirror", &registry.host(), &lacking.url()])
        .expect(0);
    let beyond = format!("{}/yocto/container-base", registry.host());
    user.run(["pull", "--quiet", &beyond]).expect(0);
    assert!(lacking.count() > 0, "the mirror was not asked");
    user.run(["vconfig", "mirror", &registry.host(), "--reset"])
        .expect(0);

    // A name that names its host is tried there and nowhere else.
    user.run(["pull", &format!("{}/yocto/no-such", registry.host())])
        .expect(5);

    // With the registry stopped, Docker Hub is not asked, for pull or for run.
    registry.stop();
    let hub_counted = Counter::before(free_port());
    user.run(["vconfig", "mirror", "docker.io", &hub_counted.url()])
        .expect(0);
    let refused = user.run(["pull", "other"]).expect(3);
    assert!(
        refused.stderr.contains("--no-registry"),
        "no way out is named: {}",
        refused.stderr
    );
    user.run(["run", "other", "true"]).expect(125);
    assert_eq!(
        hub_counted.count(),
        0,
        "Docker Hub was asked behind an outage"
    );

    // Going round the registry is the user's own decision.
    user.run(["vconfig", "mirror", "docker.io", &hub.url()])
        .expect(0);
    user.run(["--no-registry", "pull", "container-base:3.1"])
        .expect(0);
    user.run(["vconfig", "registry", "--reset"]).expect(0);
    user.run(["pull", "public:3.1"]).expect(0);
}

#[test]
fn a_kept_vm_is_found_and_ends_cleanly() {
    let registry = filled_registry();
    let user = User::new("x86_64");
    user.run(["memres", "status"]).expect(3);
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    user.run(["memres", "status"]).expect(0);
    user.run(["memres", "start"]).expect(0);
    user.run(["--registry", &prefix(&registry), "pull", "container-base"])
        .expect(0);
    user.run(["memres", "stop"]).expect(0);
    user.run(["memres", "status"]).expect(3);
    // The image is on the state disk; no VM runs now, so this boots one.
    user.run([
        "--accel",
        "tcg",
        "run",
        "--pull",
        "never",
        "container-base",
        "true",
    ])
    .expect(0);
    // Nothing of it with --stateless.
    user.run([
        "--accel",
        "tcg",
        "--stateless",
        "run",
        "--pull",
        "never",
        "container-base",
        "true",
    ])
    .expect(125);
}

#[test]
fn killing_qemu_loses_no_pulled_image() {
    let registry = filled_registry();
    let user = user_with_vm(&registry);
    let found = qemu_of(&user);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(found),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    vdkr_tests::process::wait_until("the monitor notices", PATIENCE, || {
        user.run(["memres", "status"]).code() == 3
    });
    user.run([
        "--accel",
        "tcg",
        "run",
        "--pull",
        "never",
        "container-base",
        "true",
    ])
    .expect(0);
}

/// The emulator of this user's kept machine.
fn qemu_of(user: &User) -> i32 {
    let status = user.run(["memres", "status", "--json"]).expect(0).text();
    let status: Value = serde_json::from_str(&status).unwrap();
    let pid = status["monitor"]["qemu_pid"].as_i64();
    i32::try_from(pid.expect("an emulator")).unwrap()
}

#[test]
fn acceleration_is_proved_and_the_verdict_remembered() {
    let registry = filled_registry();
    let user = User::new("x86_64");
    let kept = user.home().join(".cache/vdkr/acceleration.json");
    let verdicts = || std::fs::read_to_string(&kept).ok();
    let pull = ["--registry", &*prefix(&registry), "pull", "container-base"];
    let first = user.run(pull).expect(0);
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    let proved = verdicts();
    if cfg!(target_arch = "x86_64") && device.is_ok() {
        let proved: Value = serde_json::from_str(proved.as_ref().unwrap()).unwrap();
        let [verdict] = &proved.as_array().unwrap()[..] else {
            panic!("one start proves one thing: {proved}")
        };
        let fell_back = first.stderr.contains("does not run under kvm");
        match verdict["works"].as_str() {
            Some("kvm") => assert!(!fell_back, "{}", first.stderr),
            Some("tcg") => assert!(fell_back, "{}", first.stderr),
            _ => panic!("{proved}"),
        }
    } else {
        // Without a device there is nothing to prove.
        assert_eq!(proved, None);
        assert!(!first.stderr.contains("kvm"), "{}", first.stderr);
    }
    let again = user.run(["run", "container-base", "true"]).expect(0);
    assert!(
        !again.stderr.contains("kvm"),
        "proved again: {}",
        again.stderr
    );
    assert_eq!(verdicts(), proved);
}

#[test]
fn aarch64_runs_under_emulation() {
    let registry = filled_registry();
    let user = User::new("aarch64");
    user.run(["--registry", &prefix(&registry), "pull", "container-base"])
        .expect(0);
    let said = user.run(["run", "container-base", "uname", "-m"]).expect(0);
    assert_eq!(said.text(), "aarch64\n");
}
